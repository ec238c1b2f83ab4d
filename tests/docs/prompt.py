"""A shell as somebody has it who types what a page says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.harness.server import ROOT

#: Where a machine lacks a program that a page uses, its library stands in.
_STAND_INS = {
    "curl": "import sys, urllib.request as r; sys.stdout.buffer.write(r.urlopen(sys.argv[-1], timeout=30).read())",
    "sqlite3": """\
import re, sqlite3, sys
connection = sqlite3.connect(f"file:{sys.argv[-2]}?mode=ro", uri=True)
if dump := re.fullmatch(r"[.]dump (.+)", sys.argv[-1]):
    print("\\n".join(line for line in connection.iterdump() if dump[1] in line))
else:
    print(*(row[0] for row in connection.execute(sys.argv[-1])))
""",
    "llm-proxy": "from llm_proxy.cli import main; main()",
}


def typed(script: str, folder: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder, with nothing of the developer's own environment in it."""
    programs = folder / ".programs"
    programs.mkdir(exist_ok=True)
    for name, source in _STAND_INS.items():
        path = programs / name
        if not path.exists() and (name == "llm-proxy" or shutil.which(name) is None):
            path.write_text(f"#!{sys.executable}\n{source}")
            path.chmod(0o755)
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HOME": str(folder),
            **(env or {}),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def done(script: str, folder: Path, env: Mapping[str, str] | None = None) -> str:
    """What a script prints that must succeed."""
    result = typed(script, folder, env)
    assert result.returncode == 0, result.stderr
    return result.stdout


def exported(script: str, folder: Path) -> dict[str, str]:
    """The variables that a script of `export` lines leaves in the environment."""
    lines = done(f"{script}\nenv -0", folder).split("\0")
    found = dict(line.split("=", 1) for line in lines if "=" in line)
    names = {line.split("=")[0].removeprefix("export ") for line in script.splitlines() if line.startswith("export ")}
    return {name: found[name] for name in names}
