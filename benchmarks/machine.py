"""On what a measurement was made."""

from __future__ import annotations

import os
import platform
import subprocess
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


def describe() -> dict[str, str]:
    """Return processor, cores, Python, package versions and the commit, by name."""
    about = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": _commit(),
        "load average": f"{os.getloadavg()[0]:.2f}",
    }
    return about | {name: metadata.version(name) for name in _PACKAGES}
