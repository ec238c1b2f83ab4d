"""Where a SQLite file may be: on a disk of this machine, under one name, and in a folder that comes with it.

SQLite's write-ahead log is a second file beside the database, and a third that its users share as memory. Both are
found by the file's name, and neither works across machines (sqlite.org, "Write-Ahead Logging" and "How To Corrupt An
SQLite Database File"). What cannot hold all of that is refused.
"""

from __future__ import annotations

import os
from pathlib import Path

from attrs import frozen

from db.errors import BadDsn

#: The system's list of this process's mounts; macOS has none.
_PROC = Path("/proc/self")
#: Other machines have the files too, or only they do.
_NETWORK = frozenset(
    (
        *("nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "ncpfs", "afs", "coda", "ceph", "glusterfs", "lustre"),
        *("gpfs", "beegfs", "orangefs", "pvfs2", "ocfs2", "gfs2", "wekafs", "acfs"),
    )
)
#: The files are those of the machine that this one is a guest of, over a protocol without locks and shared memory.
_OF_THE_HOST = frozenset(("9p", "vboxsf", "vmhgfs", "prl_fs", "drvfs"))
#: Of all that runs as FUSE, what passes everything on to a disk of this machine.
_LOCAL_FUSE = frozenset(("fuse.fuse-overlayfs", "fuse.bindfs", "fuse.gocryptfs", "fuse.encfs"))


@frozen
class Mount:
    """A mounted file system: its number (0 where the system does not tell) and its type."""

    number: int
    kind: str


def check(path: Path) -> None:
    """Refuse a place where SQLite does not work, or where two processes could get at a file unseen by each other.

    Args:
        path: of the database, without symbolic links in it; its folder exists, itself need not.

    Raises:
        BadDsn: with the reason, and what to do.
        OSError: the operating system does not let us look.
    """
    folder = mount_of(path.parent)
    kind = folder.kind
    if kind in _NETWORK or kind in _OF_THE_HOST or (kind.startswith("fuse.") and kind not in _LOCAL_FUSE):
        name = "a folder of the machine that hosts this one" if kind in _OF_THE_HOST else "a network file system"
        raise BadDsn(
            f"DATABASE_PATH {path} is on {name} ({kind}), where SQLite's write-ahead log does not work; put it on a "
            "local disk, or use PostgreSQL or MySQL"
        )
    if not path.exists():
        return
    if mount_of(path).number != folder.number:
        raise BadDsn(
            f"DATABASE_PATH {path} is mounted as a single file, and SQLite keeps others beside it; mount its folder"
        )
    links = path.stat().st_nlink
    if links > 1:
        raise BadDsn(
            f"DATABASE_PATH {path} has {links} names (hard links), and SQLite's write-ahead log belongs to one of "
            f"them; keep one: find / -xdev -samefile {path}"
        )


def mount_of(path: Path) -> Mount:
    """The file system that a file or folder is on. Its type is empty where the system does not tell."""
    # Any other descriptor of a database would, when it is closed, take SQLite's own locks of this process away.
    descriptor = os.open(path, getattr(os, "O_PATH", os.O_RDONLY) | os.O_CLOEXEC) if _PROC.exists() else -1
    if descriptor < 0:
        return Mount(0, "")
    try:
        details = (_PROC / "fdinfo" / str(descriptor)).read_text(encoding="ascii")
    finally:
        os.close(descriptor)
    number = next((line.split()[1] for line in details.splitlines() if line.startswith("mnt_id:")), "0")
    return Mount(int(number), _kinds().get(number, ""))


def _kinds() -> dict[str, str]:
    """Types of file systems by the numbers of their mounts (proc_pid_mountinfo(5))."""
    lines = (_PROC / "mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    return {line.split(" ", 1)[0]: line.partition(" - ")[2].split(" ", 1)[0] for line in lines}
