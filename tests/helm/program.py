"""Where the program `helm` is: named in `HELM`, on the PATH, or put under `.cache` by `tests.helm.install`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

CACHED = Path(__file__).parents[2] / ".cache" / "helm" / "helm"

#: A program that starts slowly on a busy machine has started.
PATIENCE = 120.0


@cache
def find_helm() -> str | None:
    """The first that is really Helm 3 or newer: Debian has a synthesizer of the same name."""
    return next((program for program in _candidates() if _is_helm(program)), None)


def _candidates() -> Iterator[str]:
    if named := os.environ.get("HELM"):
        yield named
        return
    if found := shutil.which("helm"):
        yield found
    if CACHED.exists():
        yield str(CACHED)


def _is_helm(program: str) -> bool:
    try:
        command = [program, "version", "--template", "{{.Version}}"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except OSError:
        return False
    return said.returncode == 0 and said.stdout.startswith(("v3.", "v4."))
