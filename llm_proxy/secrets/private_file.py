"""Files with secrets, which only their owner can read."""

from __future__ import annotations

import os
import secrets
import shlex
import stat
from contextlib import suppress
from pathlib import Path

#: Container engines mount secrets here, readable by every user of the container, which has only one.
_MOUNTED_SECRETS = "/run/secrets/"


class ExposedFile(Exception):
    """Other users can read or write the file. The message follows the name of the file, and says what to do."""


def create(path: Path, text: str) -> None:
    """Create the file with mode 0600 and its whole content, and its folder, unless it exists.

    If several processes do this at the same time, one creates the file, and none sees a part of it. When the call
    returns, the file is on disk: without the secret, the data that it protects would be lost. Raises `OSError`.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # A hard link appears with all its bytes, and fails if the name exists. With O_EXCL on the name itself, another
    # process could read the file while it is empty.
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
    """Sync a folder, so that new and deleted names survive a power failure. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path) -> bytes:
    """Read the file. Raises `ExposedFile` if other users can read or write it, or `OSError`."""
    with path.open("rb") as file:
        _refuse(path, os.fstat(file.fileno()), 0o077, "600")
        return file.read()


def check(path: Path) -> None:
    """Check a file that the operator has made. Raises `ExposedFile` if others than its owner and group can use it."""
    if not os.path.realpath(path).startswith(_MOUNTED_SECRETS):
        _refuse(path, path.stat(), 0o006, "o-rwx")


def _refuse(path: Path, found: os.stat_result, bits: int, remedy: str) -> None:
    mode = stat.S_IMODE(found.st_mode)
    if mode & bits:
        command = f"chmod {remedy} {shlex.quote(str(path))}"
        raise ExposedFile(f"is open to other users (mode {mode:04o}): run {command}")
