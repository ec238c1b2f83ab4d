"""How commands come to their settings: the options that they share, and the loading."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from llm_proxy.config import Settings, read_one

F = TypeVar("F", bound=Callable[..., Any])

#: Read where it is there, unless `--config` names another file.
DOTENV = Path(".env")


def config_option(function: F) -> F:
    """Add `--config`."""
    return click.option(
        "--config",
        "config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="File of NAME=value lines to read settings from.  [default: .env where there is one]",
    )(function)


def database_options(function: F) -> F:
    """Add `--db` and `--config`, for commands that work on the database itself."""
    option = click.option("--db", "db", metavar="PATH", help="File of the SQLite database.  [DATABASE_PATH]")
    return option(config_option(function))


def load_settings(
    config: Path | None, db: str | None = None, *, serving: bool = False, **flags: str | None
) -> Settings:
    """Load the settings of this process; `flags` are given by the names of their environment variables.

    `db` is the file that `--db` names; a file means SQLite. Misspelt variables are pointed out on stderr. Raises
    `SettingsError`.
    """
    if db is not None:
        flags |= {"DB_DRIVER": "sqlite", "DATABASE_PATH": db}
    given = _given(flags)
    dotenv = _dotenv(config)
    for warning in Settings.warnings(os.environ, given, dotenv):
        click.echo(f"{click.style('warning:', fg='yellow', bold=True)} {warning}", err=True)
    return Settings.load(os.environ, given, dotenv, serving=serving)


def load_setting(name: str, config: Path | None, **flags: str | None) -> Any:
    """Load one setting alone, for commands that talk to a server elsewhere. Raises `SettingsError`."""
    return read_one(name, os.environ, _given(flags), _dotenv(config))


def _given(flags: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in flags.items() if value is not None}


def _dotenv(config: Path | None) -> Path | None:
    return config or (DOTENV if DOTENV.is_file() else None)
