"""The question before a command that deletes or disables something."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from llm_proxy.cli.failures import ERROR, WrongUsage

F = TypeVar("F", bound=Callable[..., Any])


def yes_option(function: F) -> F:
    """Add `--yes`."""
    return click.option("--yes", is_flag=True, help="Do not ask; required without a terminal.")(function)


def confirm(question: str, *, yes: bool) -> None:
    """Go on if the answer is yes.

    Raises:
        click.exceptions.Exit: the answer is no.
        WrongUsage: there is no terminal to ask at, and no `--yes`.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise WrongUsage(f"this needs confirmation ({question}); run it with --yes")
    if not click.confirm(question, err=True):
        click.echo("Nothing was changed.", err=True)
        raise click.exceptions.Exit(ERROR)
