"""What a part of the suite found: a chapter of the report, with its figures, its plots and the targets it checked.

Parts fill these in; the report writes them out as Markdown, JSON and SVG, and knows nothing of how they came about.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from attrs import Factory, frozen


@frozen
class Check:
    """A target, and what was measured. `name` says what it is about, with the database and the conditions.

    Attributes:
        name: such as "CPU per request, PostgreSQL, 32 connections".
        measured: in `unit`.
        bound: the most that passes, or the least.
        at_most: whether the bound is an upper one.
        unit: "x", "ms", "requests/s", "KB".
    """

    name: str
    measured: float
    bound: float
    at_most: bool
    unit: str

    @property
    def met(self) -> bool:
        """Whether the target is met; what is not a number is not."""
        return self.measured <= self.bound if self.at_most else self.measured >= self.bound

    def __str__(self) -> str:
        """Tell it in one line, as `… 1.31 x (at most 1.3 x)`."""
        word = "at most" if self.at_most else "at least"
        return f"{self.name}: {self.measured:.3g} {self.unit} ({word} {self.bound:g} {self.unit})"


@frozen
class Table:
    """Rows of a report. Cells are text or numbers; numbers are rounded to three significant digits when written."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | float]]


@frozen
class Series:
    """One line, or one colour of bars: pairs of a place on the x axis and a value."""

    name: str
    points: Sequence[tuple[float | str, float]]


@frozen
class Plot:
    """A picture. `name` becomes the name of its file, so it is short and in kebab case.

    Bars of one series lie on their side, with their names in front of them; those of several stand in groups. `levels`
    are lines across it, each with what it stands for: a bound, a reference.
    """

    name: str
    title: str
    x: str
    y: str
    series: Sequence[Series]
    kind: Literal["lines", "bars"] = "lines"
    log_x: bool = False
    log_y: bool = False
    levels: Sequence[tuple[float, str]] = ()


@frozen
class Chapter:
    """What one part found.

    Attributes:
        title: its heading.
        method: how it was measured and under which conditions, in a few sentences.
        tables, plots, checks: as above.
        problems: what went wrong, so that the figures mean little: errors, books that do not balance, a load
            generator that was the bottleneck.
        raw: every sample, for the JSON file.
        unchecked: targets that this run could not check, each with the reason.
    """

    title: str
    method: str
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    checks: Sequence[Check] = ()
    problems: Sequence[str] = ()
    raw: dict[str, Any] = Factory(dict)
    unchecked: Sequence[str] = ()

    @property
    def passed(self) -> bool:
        """Whether every target is met and nothing went wrong."""
        return not self.problems and all(check.met for check in self.checks)


def ratio(ours: Iterable[float], theirs: Iterable[float]) -> float:
    """Return the median of the rounds' ratios: both sides of a round were measured one after the other.

    A machine that was slower during one round was so for both sides of it.
    """
    return statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))


def write_number(value: float) -> str:
    """Write a number with three significant digits, and commas between thousands."""
    if not math.isfinite(value):
        return "–"  # noqa: RUF001 - the sign for nothing in a table
    digits = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    # Rounded first: a large number must not claim digits that nobody measured.
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.{min(digits, 6)}f}"
