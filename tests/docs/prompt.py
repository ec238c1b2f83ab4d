"""A shell as somebody has it who types what a page says."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from benchmarks.ports import free_port
from benchmarks.processes import Process, family
from tests.harness.server import ROOT, Server, loaded

#: Replacements for programs of a page that a machine may not have.
_STAND_INS = {
    "curl": "import sys, urllib.request as r; sys.stdout.buffer.write(r.urlopen(sys.argv[-1], timeout=30).read())",
    "sqlite3": """\
import re, sqlite3, sys
if len(sys.argv) == 2:
    sqlite3.connect(sys.argv[1]).executescript(sys.stdin.read())
    sys.exit()
connection = sqlite3.connect(f"file:{sys.argv[-2]}?mode=ro", uri=True)
if dump := re.fullmatch(r"[.]dump (.+)", sys.argv[-1]):
    print("\\n".join(line for line in connection.iterdump() if dump[1] in line))
else:
    print(*(row[0] for row in connection.execute(sys.argv[-1])))
""",
    "openssl": """\
import base64, secrets, sys
_, form, size = sys.argv[1:]
made = secrets.token_bytes(int(size))
print({"-hex": made.hex(), "-base64": base64.b64encode(made).decode()}[form])
""",
    "mysql": "import os, sys; os.execvp('mariadb', ['mariadb', *sys.argv[1:]])",
    "mysqldump": "import os, sys; os.execvp('mariadb-dump', ['mariadb-dump', *sys.argv[1:]])",
    "llm-proxy": "from llm_proxy.cli import main; main()",
}
#: Where programs are that only write down how they are called.
RECORDERS = ".recorders"
#: Replaces a program that a test machine cannot have: writes each call as a line of JSON.
_RECORDER = """\
import json, os, sys
with open({file!r}, "a") as file:
    print(json.dumps([os.getcwd(), {name!r}, *sys.argv[1:]]), file=file)
"""


def programs(folder: Path) -> Path:
    """The folder of programs that comes first on the PATH of what is typed in a folder."""
    made = folder / ".programs"
    made.mkdir(exist_ok=True)
    for name, source in _STAND_INS.items():
        if name == "llm-proxy" or shutil.which(name) is None:
            make_program(made / name, source)
    return made


def forked(folder: Path) -> Path:
    """The folder of `llm-proxy` as a fork, for commands that end by themselves: a signal would not reach it."""
    made = folder / ".warm"
    if not (made / "llm-proxy").exists():
        loaded().put(made, "llm-proxy")
    return made


def make_program(path: Path, source: str) -> None:
    """Make a program of some lines of Python, unless it is there."""
    if not path.exists():
        path.write_text(f"#!{sys.executable}\n{source}")
        path.chmod(0o755)


def environment(folder: Path, env: Mapping[str, str] | None = None) -> dict[str, str]:
    """What is in a shell's environment: nothing of the developer's own."""
    return {
        "PATH": f"{programs(folder)}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder),
        **(env or {}),
    }


def typed(
    script: str, folder: Path, env: Mapping[str, str] | None = None, given: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder; `given` is what its programs read."""
    variables = environment(folder, env)
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=variables | {"PATH": f"{forked(folder)}:{variables['PATH']}"},
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def done(script: str, folder: Path, env: Mapping[str, str] | None = None, given: str = "") -> str:
    """What a script prints that must succeed."""
    result = typed(script, folder, env, given)
    assert result.returncode == 0, result.stderr
    return result.stdout


def exported(script: str, folder: Path) -> dict[str, str]:
    """The variables that a script of `export` lines leaves in the environment."""
    lines = done(f"{script}\nenv -0", folder).split("\0")
    found = dict(line.split("=", 1) for line in lines if "=" in line)
    names = {line.split("=")[0].removeprefix("export ") for line in script.splitlines() if line.startswith("export ")}
    return {name: found[name] for name in names}


@frozen
class Call:
    """How a program was called: its name, its arguments, and the folder in which."""

    name: str
    arguments: list[str]
    folder: Path


def recorded(script: str, folder: Path, names: Sequence[str], env: Mapping[str, str] | None = None) -> list[Call]:
    """Run a script in which these programs do nothing; return how they were called."""
    file, made = folder / ".calls", folder / RECORDERS
    file.write_text("")
    made.mkdir(exist_ok=True)
    for name in names:
        make_program(made / name, _RECORDER.format(name=name, file=str(file)))
    done(f"PATH={made}:$PATH\n{script}", folder, env)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [Call(name, arguments, Path(place)) for place, name, *arguments in lines]


@contextmanager
def serving(script: str, folder: Path, env: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Run a script whose last line starts a server; it listens where the test says, and must end well at the end."""
    port = free_port()
    settings = {"LISTEN_ADDR": f"127.0.0.1:{port}", **(env or {})}
    with (folder / "output").open("wb") as output:
        popen = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=folder,
            env=environment(folder, settings),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = Server(Process(popen), "127.0.0.1", port, folder, settings)
    try:
        server.wait_ready()
        yield server
        os.kill(family(popen.pid)[-1], signal.SIGTERM)
        assert server.wait() == 0, server.output
    finally:
        server.kill()
