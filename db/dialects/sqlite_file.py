"""The SQLite file on disk: private to its owner, on a local disk, and used by one process.

The lock is `flock` on a file of its own, because a lock on the database file itself would be dropped by SQLite. The
operating system frees it when its process ends in whatever way, so it is never left behind.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from db.errors import BadDsn, FileInUse, Unavailable

_NETWORK = frozenset(("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "glusterfs", "fuse.sshfs"))


class FileLock:
    """This process's claim on a SQLite file, held until `release`."""

    def __init__(self, descriptor: int) -> None:
        """Take over an open and locked descriptor."""
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
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        filesystem = _filesystem(path.parent.resolve())
        if filesystem in _NETWORK:
            raise BadDsn(
                f"DATABASE_PATH {path} is on a network file system ({filesystem}), where SQLite's write-ahead log does "
                "not work; put it on a local disk, or use PostgreSQL or MySQL"
            )
        lock = _lock(path)
        try:
            _make_private(path)
        except BaseException:
            lock.release()
            raise
    except (FileExistsError, NotADirectoryError) as error:
        raise BadDsn(f"DATABASE_PATH {path}: a part of it that must be a folder is a file") from error
    except OSError as error:
        raise Unavailable(f"SQLite file {path} cannot be opened: {error.strerror}") from error
    return lock


def _lock(path: Path) -> FileLock:
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).strip().decode("ascii", "replace")
            who = f"another llm-proxy process (pid {holder})" if holder.isdecimal() else "another llm-proxy process"
            raise FileInUse(
                f"{who} is using {path}; one process per SQLite file; stop it first, or use PostgreSQL or MySQL for "
                "more than one"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return FileLock(descriptor)


def _make_private(path: Path) -> None:
    # SQLite gives its -wal and -shm files the permissions of the database, so this one is made before it is opened.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        status = os.fstat(descriptor)
        if status.st_mode & 0o077 and status.st_uid == os.geteuid():
            os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


def _filesystem(folder: Path) -> str:
    """The type of the file system that holds `folder`, empty where the system does not tell."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    longest, kind = "", ""
    for line in mounts.splitlines():
        _, point, name, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        if len(point) >= len(longest) and folder.is_relative_to(point):
            longest, kind = point, name
    return kind
