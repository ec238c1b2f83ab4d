"""Spool files: one for each worker, locked by it for as long as it lives. Everything here blocks: call it in a thread.

A file is its worker's while that holds the lock (flock) on it. The lock goes with the process, however that ends, so a
file whose lock can be had is an orphan, and whoever gets the lock may read it and take it away.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from attrs import define, field

from llm_proxy.ledger.outage.spool_lines import Contents, decode
from llm_proxy.secrets.private_file import keep_names

_PREFIX = "outage-"
_SUFFIX = ".spool"
#: Beside a damaged spool whose readable lines are in the database: for people to look at, never read again.
_DAMAGED = ".damaged"


class SpoolError(Exception):
    """The spool cannot be written; the message says which file and why."""


@define(eq=False)
class SpoolFile:
    """A locked spool file. `close` gives the lock back."""

    path: Path
    _descriptor: int = field(repr=False)
    _length: int = field(default=0, init=False)

    @classmethod
    def create(cls, folder: Path, worker_id: str) -> SpoolFile:
        """Make this worker's file, empty and readable by its owner only, and its folder.

        Raises:
            SpoolError: it cannot be made there.
        """
        path = folder / f"{_PREFIX}{worker_id}{_SUFFIX}"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            while True:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                if _locked(descriptor, path):
                    break
                # Somebody took it for an orphan between the two steps, and takes it away.
                os.close(descriptor)
            keep_names(folder)
        except OSError as error:
            raise SpoolError(f"{path} cannot be made: {error.strerror}") from error
        return cls(path, descriptor)

    def append(self, data: bytes, *, from_empty: bool = False) -> None:
        """Write whole lines, after emptying the file where wanted; they are on the disk when this returns.

        Raises:
            SpoolError: they are not; the file is as it was, as far as that can be had.
        """
        try:
            if from_empty:
                os.ftruncate(self._descriptor, 0)
                self._length = 0
            view = memoryview(data)
            while view:
                view = view[os.write(self._descriptor, view) :]
            os.fsync(self._descriptor)
        except OSError as error:
            # A line that nobody was told of must not be found later.
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._length)
            raise SpoolError(f"{self.path} cannot be written: {error.strerror}") from error
        self._length += len(data)

    def read(self) -> Contents:
        """Read everything in it. Raises OSError."""
        return decode(self.path.read_bytes())

    def remove(self, *, keep_damaged: bool = False) -> None:
        """Take the file away, or only its name where it is to be looked at; it stays locked. Raises OSError."""
        if keep_damaged:
            self.path.rename(self.path.with_name(self.path.name + _DAMAGED))
        else:
            self.path.unlink(missing_ok=True)
        keep_names(self.path.parent)

    def close(self) -> None:
        """Give the lock back; a file that is still there is left to whoever wants it."""
        os.close(self._descriptor)


def orphans(folder: Path) -> Iterator[SpoolFile]:
    """The spools of workers that are gone, locked for us one after the other; the caller closes or removes each.

    Raises OSError where one is there and cannot be opened.
    """
    for path in sorted(folder.glob(f"{_PREFIX}*{_SUFFIX}")):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        if _locked(descriptor, path):
            yield SpoolFile(path, descriptor)
        else:
            os.close(descriptor)


def _locked(descriptor: int, path: Path) -> bool:
    """Lock the file if it can be had, and is still the one of that name."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False
