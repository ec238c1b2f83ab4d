"""Runs commands in an empty folder, without the settings of the developer."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llm_proxy.cli import program
from llm_proxy.config import Settings
from llm_proxy.config.sources import declared

Run = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of the test, empty."""
    monkeypatch.chdir(tmp_path)
    for name in set(os.environ) & {*declared(Settings), *(f"{name}_FILE" for name in declared(Settings))}:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Run:
    """Run `llm-proxy` with these arguments in this process; `env` adds environment variables, `input` is stdin."""

    def invoke(*arguments: str, env: dict[str, str] | None = None, input: str = "") -> Result:  # noqa: A002 (click's name)
        return CliRunner().invoke(program, list(arguments), prog_name="llm-proxy", env=env, input=input)

    return invoke
