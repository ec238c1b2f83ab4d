"""A small disk that a test can fill: a file system in memory, which only root can mount, and only on Linux."""

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
    """A mounted disk of its own."""

    folder: Path

    @property
    def _filler(self) -> Path:
        return self.folder / "filler"

    def fill(self) -> None:
        """Leave no room, whatever others write or remove meanwhile."""
        with self._filler.open("ab", buffering=0) as filler:
            for size in (1 << 20, 1 << 12):
                _write_until_full(filler.fileno(), b"x" * size)

    def free(self) -> None:
        """Give the room back."""
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
        Missing: it cannot be mounted here.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        message = "a small disk to fill can only be mounted by root, on Linux"
        raise Missing(message)
    # A short path: a socket's may have no more than about 100 characters.
    with tempfile.TemporaryDirectory(prefix="llm-proxy-disk-") as name:
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0777", "tmpfs", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        if done.returncode != 0:
            message = f"a small disk to fill cannot be mounted: {done.stderr.strip()}"
            raise Missing(message)
        try:
            yield Disk(Path(name))
        finally:
            subprocess.run(["umount", "--lazy", name], check=True, timeout=30)
