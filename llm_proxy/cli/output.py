"""Prints tables and records for people, and JSON for programs."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import click


def table(titles: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Collection[str] = ()) -> str:
    """Format rows under their titles; the columns in `numbers` are aligned to the right. None becomes `-`."""
    texts = [["-" if value is None else printable(str(value)) for value in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(titles, *texts, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            _pad(cell, width, right=title in numbers) for cell, width, title in zip(cells, widths, titles, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join([click.style(line(titles), bold=True), *map(line, texts)])


def record(fields: Mapping[str, object]) -> str:
    """Format one thing: a line per field. None becomes `-`."""
    width = max(map(_width, fields))
    return "\n".join(
        f"{click.style(_pad(name, width), bold=True)}  {'-' if value is None else printable(str(value))}"
        for name, value in fields.items()
    )


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_record(value: Any, fields: Mapping[str, object], *, as_json: bool) -> None:
    """Print one thing: `value` as JSON, or `fields` for people."""
    if as_json:
        print_json(value)
    else:
        click.echo(record(fields))


def print_table(
    value: Any, titles: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Collection[str] = (), as_json: bool
) -> None:
    """Print a list: `value` as JSON, or `rows` for people."""
    if as_json:
        print_json(value)
    else:
        click.echo(table(titles, rows, numbers=numbers))


def warn(message: str, kind: str = "warning") -> None:
    """Print a warning to stderr; a `problem` is something that the operator has to fix."""
    click.echo(f"{click.style(f'{kind}:', fg='yellow', bold=True)} {message}", err=True)


report_problem = partial(warn, kind="problem")


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
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    combining = sum(unicodedata.combining(char) != 0 for char in text)
    return len(text) + wide - combining


def _pad(text: str, width: int, *, right: bool = False) -> str:
    filler = " " * (width - _width(text))
    return filler + text if right else text + filler
