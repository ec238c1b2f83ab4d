"""The SQLite file on disk: private to its owner, on a local disk, and used by one process.

The lock is `flock` on a file of its own, because a lock on the database file itself would be dropped by SQLite. The
operating system frees it when its process ends in whatever way, so it is never left behind.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from db.dialects.sqlite.location import check
from db.errors import BadDsn, FileInUse, Unavailable


class FileLock:
    """This process's claim on a SQLite file, held until `release`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        """Let others have the file. The lock file stays: removing it would let two processes lock two files."""
        os.close(self._descriptor)


def prepare(path: Path) -> FileLock:
    """Make the file and its folder where they are missing, for the owner alone, and lock it.

    Raises FileInUse when another process has it, BadDsn when SQLite cannot work there, Unavailable when the operating
    system refuses.
    """
    if path.is_dir():
        raise BadDsn(f"DATABASE_PATH {path} is a folder; it must be a file")
    with _translated(path):
        # Whatever name leads to the file, there is one lock.
        real = path.resolve()
        real.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        check(real)
        lock = hold(path, real)
        try:
            _make_private(real)
        except BaseException:
            lock.release()
            raise
    return lock


def identity(path: str) -> tuple[int, int] | None:
    """Which file has this name now: its device and its number; None if there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 - before each transaction, and three times as fast
    except OSError:
        return None
    return status.st_dev, status.st_ino


def look(path: Path) -> None:
    """Refuse to read a file where SQLite cannot work, beside its owner. Raises BadDsn and Unavailable."""
    with _translated(path):
        if path.exists():
            check(path.resolve())


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise BadDsn(f"DATABASE_PATH {path}: a part of it that must be a folder is a file") from error
    except OSError as error:
        raise Unavailable(f"SQLite file {path} cannot be opened: {error.strerror}") from error
    except RuntimeError as error:  # what `resolve` raises
        raise BadDsn(f"DATABASE_PATH {path} is a symbolic link that leads back to itself") from error


def hold(path: Path, real: Path) -> FileLock:
    """Lock a file by its real path. Raises FileInUse, and OSError."""
    descriptor = os.open(real.with_name(real.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileInUse(
                f"{_holder(descriptor)} is using {path}; one process per SQLite file; stop it first, or use PostgreSQL "
                "or MySQL for more than one"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return FileLock(descriptor)


def _holder(descriptor: int) -> str:
    """Who has the lock. In containers a process's number alone says little."""
    pid, _, host = os.pread(descriptor, 300, 0).decode(errors="replace").strip().partition(" ")
    if not pid.isdecimal():
        return "another llm-proxy process"
    return f"another llm-proxy process (pid {pid}{f' on {host}' if host not in ('', socket.gethostname()) else ''})"


def _make_private(path: Path) -> None:
    # SQLite gives its -wal and -shm files the permissions of the database, so this one is made before it is opened.
    # One that is there is not opened here: closing it would take SQLite's locks away, should this process have any.
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        status = path.stat()
        if status.st_mode & 0o077 and status.st_uid == os.geteuid():
            path.chmod(0o600)
