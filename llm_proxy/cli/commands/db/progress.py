"""How far a long walk through the tables is, on stderr: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

import click

#: Seconds between two lines.
_LINE_EVERY = 5.0


class TableProgress:
    """A context manager that is called with a table, the rows done in it, and those that it has."""

    def __init__(self) -> None:
        """Show nothing yet."""
        self._bar: Any = None
        self._table = ""
        self._told = 0.0

    def __call__(self, table: str, done: int, whole: int) -> None:
        """Show how far it is; `whole` may have grown since it was counted."""
        if sys.stderr.isatty():
            self._draw(table, done, whole)
        else:
            self._tell(table, done, whole)

    def _draw(self, table: str, done: int, whole: int) -> None:
        if table != self._table:
            self._end()
            self._bar = click.progressbar(length=max(whole, 1), label=f"{table:<14}", show_pos=True, file=sys.stderr)
            self._bar.__enter__()
            self._table = table
        self._bar.update(min(done, self._bar.length) - self._bar.pos)

    def _tell(self, table: str, done: int, whole: int) -> None:
        now = time.monotonic()
        if table != self._table:
            self._table, self._told = table, now
        if done >= whole or now - self._told >= _LINE_EVERY:
            self._told = now
            click.echo(f"{table}: {done:,} of {max(done, whole):,} rows", err=True)

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.length - self._bar.pos)
            self._bar.__exit__(None, None, None)
            self._bar = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Leave the line of a bar that was not finished."""
        if error is None:
            self._end()
        elif self._bar is not None:
            click.echo(err=True)
