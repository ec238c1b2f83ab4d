"""A pod of the chart on this machine: its files in a folder, its variables naming them there, its commands run."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.harness.files import write_secret
from tests.helm.chart import Manifest, environment

#: Secrets of every kind, each to be told from the others and from all else.
TOKEN: Final = "canary-management-token"
KEY: Final = base64.b64encode(b"canary encryption key, 32 bytes.").decode()
PASSWORD: Final = "canary-password"
URL: Final = f"postgres://llmproxy:{PASSWORD}@db:5432/llmproxy"
MYSQL_URL: Final = f"llmproxy:{PASSWORD}@tcp(db:3306)/llmproxy?parseTime=true&tls=true"


def address(driver: str, objects: list[Manifest]) -> str:
    """The database's: the one that the chart makes, where it makes one, else one of the kind."""
    for each in objects:
        made: dict[str, Any] = each.get("stringData", {}) if each["kind"] == "Secret" else {}
        for name in ("database-url", "databaseUrl"):
            if name in made:
                return str(made[name])
    return URL if driver == "postgres" else MYSQL_URL


def variables(container: Manifest, url: str, root: Path) -> dict[str, str]:
    """A container's variables, with the files that they name made below `root`, and named there."""
    contents = {"management-token": TOKEN, "encryption-key": KEY, "database-url": url}
    found = {}
    for name, value in environment(container).items():
        found[name] = value
        if value.startswith(("/run/", "/etc/", "/data/")):
            file = root / value.removeprefix("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            found[name] = str(file)
            if not value.startswith("/data/"):
                write_secret(file, contents.get(file.name, "x"))
    return found


@contextmanager
def running(container: Manifest, variables: Mapping[str, str], root: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A container's command, killed at the end if it still runs; its output goes to the file `output` below `root`."""
    command = container["command"]
    program = Path(sys.executable).with_name(command[0])
    environ = {"PATH": os.environ["PATH"], **variables}
    with (root / "output").open("wb") as output:
        process = subprocess.Popen([program, *command[1:]], cwd=root, env=environ, stdout=output, stderr=output)
    with process:
        try:
            yield process
        finally:
            process.kill()
