"""A small disk that a test can fill: a file system in memory. Only root can mount it, and only on Linux."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import define

from tests.databases.servers import Missing


@define
class Disk:
    """A mounted disk."""

    folder: Path

    @property
    def _filler(self) -> Path:
        return self.folder / "filler"

    def fill(self) -> None:
        """Fill the disk."""
        with self._filler.open("ab", buffering=0) as filler:
            for size in (1 << 20, 1 << 12):
                _write_until_full(filler.fileno(), b"x" * size)

    def free(self) -> None:
        """Free the space."""
        self._filler.unlink(missing_ok=True)


def _write_until_full(descriptor: int, block: bytes) -> None:
    try:
        while os.write(descriptor, block) == len(block):
            pass
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


@contextmanager
def small_disk(megabytes: int) -> Iterator[Disk]:
    """Mount a disk of this size in a folder under `/tmp`.

    Raises:
        Missing: this machine cannot mount it.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        raise Missing("a small disk to fill can only be mounted by root, on Linux")
    # A short path: a socket's may have no more than about 100 characters.
    with tempfile.TemporaryDirectory(prefix="llm-proxy-disk-") as name:
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0777", "tmpfs", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        if done.returncode != 0:
            raise Missing(f"a small disk to fill cannot be mounted: {done.stderr.strip()}")
        try:
            yield Disk(Path(name))
        finally:
            subprocess.run(["umount", "--lazy", name], check=True, timeout=30)
