"""The options that several commands share, and the settings behind them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import click
from attrs import evolve

from llm_proxy.cli.failures import ERROR, WrongUsage
from llm_proxy.cli.output import warn
from llm_proxy.config import Settings, kinds, read_one
from llm_proxy.config.kinds import Kind

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

#: Read if it exists, unless `--config` names another file.
DOTENV = Path(".env")


class Value(click.ParamType[T], Generic[T]):
    """The type of an option that is parsed like a setting."""

    def __init__(self, kind: Kind[T]) -> None:
        self.name = kind.name
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> T:
        """Parse the text of an option; a default may be a parsed value already."""
        try:
            return self._kind.read(value) if isinstance(value, str) else value
        except ValueError:
            self.fail(f"{kinds.quoted(value)} is not {self._kind.allowed}", param, ctx)


BASE_URL: Final = Value(
    evolve(kinds.BASE_URL, allowed="an http or https URL without user and query, such as http://localhost:8080")
)


def _patterns(text: str) -> list[str]:
    """Parse patterns of models; empty for 'all'."""
    patterns = [one.strip() for one in text.split(",")]
    if not all(patterns):
        raise click.BadParameter(f"{text!r} has an empty pattern; give one or more with commas, or 'all'")
    return [] if patterns == ["all"] else patterns


models_option = click.option(
    "--models",
    type=_patterns,
    metavar="PATTERNS",
    help="Models that requests may name, with commas, e.g. 'gpt-5.4*,o4-mini'; 'all': any.",
)
config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File of NAME=value lines to read settings from.  [default: .env if it exists]",
)
db_option = click.option("--db", metavar="PATH", help="Path of the SQLite database.  [DATABASE_PATH]")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
#: For commands that call `confirm`.
yes_option = click.option("--yes", is_flag=True, help="Do not ask for confirmation; required without a terminal.")


def database_options(function: F) -> F:
    """Add `--db` and `--config`, for commands that work on the database itself."""
    return db_option(config_option(function))


def confirm(question: str, *, yes: bool) -> None:
    """Ask for confirmation before something is deleted or disabled. Ends the command if the answer is no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise WrongUsage(f"this needs confirmation ({question}); run it with --yes")
    if not click.confirm(question, err=True):
        click.echo("Nothing was changed.", err=True)
        raise click.exceptions.Exit(ERROR)


def load_settings(
    config: Path | None, db: str | None = None, *, serving: bool = False, **flags: str | None
) -> Settings:
    """Load the settings of this process, and warn of misspelt variables. Raises `SettingsError`.

    With `serving`, they must be complete for a server. `flags` has values of other options by the names of settings.
    """
    if db is not None:
        flags |= {"DB_DRIVER": "sqlite", "DATABASE_PATH": db}
    given, dotenv = _given(flags), _dotenv(config)
    for warning in Settings.warnings(os.environ, given, dotenv):
        warn(warning)
    return Settings.load(os.environ, given, dotenv, serving=serving)


def load_setting(name: str, config: Path | None, **flags: str | None) -> Any:
    """Load one setting, for commands that do not need the others to be right. Raises `SettingsError`."""
    return read_one(name, os.environ, _given(flags), _dotenv(config))


def _given(flags: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in flags.items() if value is not None}


def _dotenv(config: Path | None) -> Path | None:
    return config or (DOTENV if DOTENV.is_file() else None)
