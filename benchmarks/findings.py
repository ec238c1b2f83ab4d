"""The results of a part: a chapter of the report with tables, plots and checked targets.

Parts create these; the report writes them as Markdown, JSON and SVG.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from attrs import Factory, frozen


@frozen
class Check:
    """A target and its measured value.

    Attributes:
        name: with database and conditions, such as "CPU per request, PostgreSQL, 32 connections".
        measured: in `unit`.
        at_most: whether `bound` is an upper one.
        unit: "x", "ms", "requests/s", "KB".
    """

    name: str
    measured: float
    bound: float
    at_most: bool
    unit: str

    @property
    def met(self) -> bool:
        """Whether the target is met; NaN is not."""
        return self.measured <= self.bound if self.at_most else self.measured >= self.bound

    def __str__(self) -> str:
        """Return one line, such as `… 1.31 x (at most 1.3 x)`."""
        word = "at most" if self.at_most else "at least"
        return f"{self.name}: {self.measured:.3g} {self.unit} ({word} {self.bound:g} {self.unit})"


def at_most(name: str, measured: float, bound: float, unit: str) -> Check:
    """Return a target with an upper bound."""
    return Check(name, measured, bound, at_most=True, unit=unit)


def at_least(name: str, measured: float, bound: float, unit: str) -> Check:
    """Return a target with a lower bound."""
    return Check(name, measured, bound, at_most=False, unit=unit)


@frozen
class Table:
    """Rows of a report. Cells are text or numbers; numbers are rounded to three significant digits when written."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | float]]


@frozen
class Series:
    """One line, or one colour of bars: pairs of x and y."""

    name: str
    points: Sequence[tuple[float | str, float]]


@frozen
class Plot:
    """A plot. `name` becomes the name of its file, so it is short and in kebab case.

    Bars of one series are horizontal, bars of several series are vertical groups. `levels` are labelled lines across
    it, such as a bound.
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
    """A chapter of the report.

    Attributes:
        method: how it was measured, in a few sentences.
        problems: errors that make the results unreliable, such as a failed `ledger verify` or a load generator that
            was the bottleneck.
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
    """Return the median of the rounds' ratios; a machine that is slow during a round is slow for both sides."""
    return statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))


def write_number(value: float) -> str:
    """Write a number with three significant digits, and commas between thousands."""
    if not math.isfinite(value):
        return "–"  # noqa: RUF001 - a dash for "no value"
    digits = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    # Rounded first, so that large numbers show no false precision.
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.{min(digits, 6)}f}"
