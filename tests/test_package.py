from __future__ import annotations

import tomllib
from pathlib import Path

import llm_proxy

ROOT = Path(__file__).resolve().parents[1]


def test_the_version_is_the_distribution_s() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert project["version"] == llm_proxy.__version__
    assert project["scripts"] == {"llm-proxy": "llm_proxy.cli:main"}


def test_the_map_of_the_package_is_complete() -> None:
    rooms = {path.stem for path in (ROOT / "llm_proxy").iterdir() if path.suffix == ".py" or path.is_dir()}
    rooms -= {"__init__", "__main__", "__pycache__"}

    assert llm_proxy.__doc__
    assert {room for room in rooms if f"`{room}`" not in llm_proxy.__doc__} == set()
