"""Prints tables and records for people, and JSON for programs."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click
from attrs import frozen


@frozen
class Column:
    """A column of a table; numbers are aligned to the right."""

    title: str
    number: bool = False


def table(columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> str:
    """Format rows under their titles. None becomes `-`."""
    texts = [["-" if value is None else printable(str(value)) for value in row] for row in rows]
    widths = [
        max([_width(column.title), *(_width(row[place]) for row in texts)]) for place, column in enumerate(columns)
    ]

    def line(cells: Iterable[str]) -> str:
        padded = [
            _pad(cell, width, right=column.number) for cell, width, column in zip(cells, widths, columns, strict=True)
        ]
        return "  ".join(padded).rstrip()

    titles = click.style(line(column.title for column in columns), bold=True)
    return "\n".join([titles, *map(line, texts)])


def record(fields: Mapping[str, object]) -> str:
    """Format one thing: a line per field. None becomes `-`."""
    width = max(map(_width, fields))
    return "\n".join(
        f"{click.style(_pad(name, width), bold=True)}  {'-' if value is None else printable(str(value))}"
        for name, value in fields.items()
    )


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def warn(message: str) -> None:
    """Print a warning to stderr."""
    click.echo(f"{click.style('warning:', fg='yellow', bold=True)} {message}", err=True)


def report_problem(message: str) -> None:
    """Print something to stderr that the operator has to fix."""
    click.echo(f"{click.style('problem:', fg='yellow', bold=True)} {message}", err=True)


def timestamp(text: str | None) -> str | None:
    """Show a timestamp of the management API to the second, in UTC."""
    if text is None:
        return None
    return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


def printable(text: str) -> str:
    """Escape control characters, so that names from a server cannot control the terminal."""
    return "".join(
        char if unicodedata.category(char) not in ("Cc", "Cf", "Zl", "Zp") else repr(char)[1:-1] for char in text
    )


def _width(text: str) -> int:
    """Width of a text on a terminal, in columns."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    combining = sum(unicodedata.combining(char) != 0 for char in text)
    return len(text) + wide - combining


def _pad(text: str, width: int, *, right: bool = False) -> str:
    filler = " " * (width - _width(text))
    return filler + text if right else text + filler
