"""On what a measurement was made."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import tempfile
import time
from importlib import metadata
from pathlib import Path

from benchmarks.processes import ROOT

_PACKAGES = ("trio", "hypercorn", "httptools", "quart-trio", "sqlalchemy", "pg8000", "pymysql", "msgspec")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"],  # noqa: S607 - the developer's own git
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "unknown"


def flush_ms(folder: Path) -> float:
    """Return how long it takes to add a page to a file and flush it to the disk: what a commit waits for, at least."""
    found = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(20):
            file.write(bytes(4096))
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            found.append(time.perf_counter() - began)
    return statistics.median(found) * 1000


def describe() -> dict[str, str]:
    """Return processor, cores, memory, disk, Python, package versions and the commit, by name."""
    about = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GB",
        "flush to disk": f"{flush_ms(Path(tempfile.gettempdir())):.2f} ms",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": _commit(),
        "load average at the start": f"{os.getloadavg()[0]:.2f}",
    }
    return about | {name: metadata.version(name) for name in _PACKAGES}
