"""Installs other gateways, each into a separate cached folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.processes import ROOT

#: Not in the repository, and gone with `make clean`.
CACHE = ROOT / ".cache" / "peers"
#: Debian installs servers in folders that may not be in a user's PATH.
_MORE_FOLDERS = ("/usr/local/sbin", "/usr/sbin")
_SHOWN = 600


class Absent(Exception):
    """A gateway is not available on this machine; the message says what to do."""


def find_program(name: str, hint: str) -> Path:
    """Return where a program is; raises Absent with the hint."""
    places = os.pathsep.join((os.environ.get("PATH", os.defpath), *_MORE_FOLDERS))
    found = shutil.which(name, path=places)
    if found is None:
        raise Absent(f"there is no {name} on this machine; {hint}")
    return Path(found)


def install_once(folder: Path, commands: Sequence[Sequence[str | Path]], say: Callable[[str], None]) -> Path:
    """Run the commands that fill a folder, unless they all succeeded before; returns the folder.

    Raises:
        Absent: one of them failed, with the end of what it printed.
    """
    mark = folder / ".complete"
    if mark.exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    say(f"peers: installing {folder.name} into {folder.parent}")
    for command in commands:
        done = subprocess.run(  # noqa: S603 - the caller names the program
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        if done.returncode:
            words = done.stdout.decode(errors="replace").strip()[-_SHOWN:]
            raise Absent(f"installing {folder.name} failed: {words}")
    mark.touch()
    return folder


def install_from_pypi(package: str, extra: str, version: str, cache: Path, say: Callable[[str], None]) -> Path:
    """Install a Python package with an extra into a virtual environment; returns the environment's folder."""
    folder = cache / f"{package}-{version}"
    pip = folder / "bin" / "python"
    commands = (
        (sys.executable, "-m", "venv", folder),
        (pip, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{package}[{extra}]=={version}"),
    )
    return install_once(folder, commands, say)


def install_from_npm(package: str, version: str, cache: Path, say: Callable[[str], None]) -> Path:
    """Install an npm package; returns the folder in which package.json lies. No script of any package is run."""
    npm = find_program("npm", "install Node.js 18 or newer with npm: sudo apt-get install nodejs npm")
    folder = cache / f"{package.removeprefix('@').replace('/', '-')}-{version}"
    options = ("--prefix", folder, "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error")
    install_once(folder, [(npm, "install", *options, f"{package}@{version}")], say)
    return folder / "node_modules" / package
