"""Secrets in files: those that are made here are for their owner only, and complete or not there at all."""

from __future__ import annotations

import os
import secrets
import shlex
import stat
from contextlib import suppress
from pathlib import Path

#: Container engines mount secrets here, as files that every user of the container may read: it has one.
_MOUNTED_SECRETS = "/run/secrets/"


class ExposedFile(Exception):
    """Other users can read or write the file; the message goes on after its name, and says what to do."""


def create(path: Path, text: str) -> None:
    """Make the file (mode 0600) with its whole content in one step, and its folder; do nothing where it exists.

    Of several processes that do this at once, one makes the file, and none ever sees a part of it. When the call
    returns, the file is on disk: what is protected by a secret that is lost is lost too.

    Raises:
        OSError: it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A hard link appears with all its bytes and fails where the name is taken; a plain O_EXCL on the name itself
    # would let another process read the file while it is still empty.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.write(descriptor, text.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        with suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        draft.unlink()
    keep_names(path.parent)


def keep_names(folder: Path) -> None:
    """Have names that came into a folder, or went, outlast a power cut. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path) -> bytes:
    """Read the file.

    Raises:
        ExposedFile: its permissions let others at it.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        _refuse(path, os.fstat(file.fileno()), 0o077, "600")
        return file.read()


def check(path: Path) -> None:
    """Look at a file with a secret that somebody else has made: its owner and its group may read it.

    Raises:
        ExposedFile: every user of this machine may read or change it.
        OSError: it cannot be looked at.
    """
    if not os.path.realpath(path).startswith(_MOUNTED_SECRETS):
        _refuse(path, path.stat(), 0o006, "o-rwx")


def _refuse(path: Path, found: os.stat_result, bits: int, remedy: str) -> None:
    mode = stat.S_IMODE(found.st_mode)
    if mode & bits:
        command = f"chmod {remedy} {shlex.quote(str(path))}"
        raise ExposedFile(f"is open to other users (mode {mode:04o}): run {command}")
