"""Files that hold secrets, as people are to make them."""

from __future__ import annotations

from pathlib import Path


def write_secret(path: Path, text: str) -> None:
    """Write a file that its owner alone may read."""
    path.touch()
    path.chmod(0o600)
    path.write_text(text)
