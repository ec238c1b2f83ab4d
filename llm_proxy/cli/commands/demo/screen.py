"""Prints the tour: numbered steps, wrapped to the width of the terminal. Without a terminal, there are no colours."""

from __future__ import annotations

import shutil
import textwrap
from typing import Any

import click

from llm_proxy.cli.output import printable

_MAX_WIDTH = 80
_INDENT = "    "
_steps = 0


def width() -> int:
    """Columns to use."""
    return min(shutil.get_terminal_size((_MAX_WIDTH, 24)).columns, _MAX_WIDTH)


def step(text: str) -> None:
    """Start the next step."""
    global _steps  # noqa: PLW0603 (one tour in a process)
    _steps += 1
    click.echo(f"\n{click.style(f'{_steps:>2}', fg='cyan', bold=True)}  {click.style(text, bold=True)}")


def say(text: str, **style: Any) -> None:
    """Print a paragraph."""
    lines = textwrap.fill(printable(text), width(), initial_indent=_INDENT, subsequent_indent=_INDENT)
    click.echo(click.style(lines, **style))


def block(text: str) -> None:
    """Print lines without wrapping them."""
    click.echo(textwrap.indent(text, _INDENT))


def command(text: str) -> None:
    """Print a command to copy."""
    click.echo(f"\n{textwrap.indent(text, _INDENT[2:])}\n")


class Stream:
    """Prints a streamed response piece by piece, and wraps it."""

    def __init__(self) -> None:
        """Start at the beginning of a line."""
        self.pieces = 0
        self._width = width()
        self._column = 0

    def write(self, piece: str) -> None:
        """Print a piece at once."""
        text = printable(piece)
        if self._column == 0 or self._column + len(text) > self._width:
            click.echo(("\n" if self._column else "") + _INDENT, nl=False)
            self._column = len(_INDENT)
            text = text.lstrip()
        click.echo(click.style(text, fg="green"), nl=False)
        self._column += len(text)
        self.pieces += 1
