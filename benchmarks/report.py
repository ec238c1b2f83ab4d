"""The results of a run as files: a Markdown page, JSON with every sample, and plots as SVG."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from string import Template
from typing import Any, TypeVar

import attrs
import msgspec
from attrs import Factory, frozen

from benchmarks import plots
from benchmarks.findings import Chapter, Check, Table, write_number
from benchmarks.processes import ROOT

T = TypeVar("T")

RESULTS = ROOT / "benchmarks" / "results"
_PAGE = Path(__file__).with_name("page.md")


@frozen
class Report:
    """Everything about one run.

    Attributes:
        name: the part that was run, or "all".
        began: local date and time.
        machine: what was measured on, by name.
        databases: versions, by name.
        missing: databases that this machine has not, each with the reason.
    """

    name: str
    began: str
    rounds: int
    scale: float
    machine: Mapping[str, str]
    databases: Mapping[str, str]
    missing: Mapping[str, str] = Factory(dict)
    chapters: Sequence[Chapter] = ()

    def failures(self) -> Iterator[str]:
        """Return a line for each missed target and each problem."""
        for chapter in self.chapters:
            yield from (f"MISSED: {check}" for check in chapter.checks if not check.met)
            yield from (f"PROBLEM: {chapter.title}: {problem}" for problem in chapter.problems)


def write_table(table: Table) -> str:
    """Return a table in Markdown; columns of numbers are right-aligned."""
    rows = [[cell if isinstance(cell, str) else write_number(cell) for cell in row] for row in table.rows]
    numeric = [all(_is_numeric(row[column]) for row in rows) and bool(rows) for column in range(len(table.columns))]
    lines = [table.columns, ["---:" if right else "---" for right in numeric], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _is_numeric(cell: str) -> bool:
    return not any(character.isalpha() for character in cell.replace(" to ", ""))


def write_targets(chapters: Sequence[Chapter]) -> str:
    """Return all targets with what was measured, and those that were not checked."""
    checks = [check for chapter in chapters for check in chapter.checks]
    text = write_table(Table(("target", "measured", "bound", "met"), [_row(check) for check in checks]))
    unchecked = [f"- {reason}" for chapter in chapters for reason in chapter.unchecked]
    if unchecked:
        text += "\n\nNot checked on this machine:\n\n" + "\n".join(unchecked)
    return text


def _row(check: Check) -> tuple[str, str, str, str]:
    word = "at most" if check.at_most else "at least"
    measured = f"{write_number(check.measured)} {check.unit}"
    return check.name, measured, f"{word} {check.bound:,g} {check.unit}", "yes" if check.met else "**no**"


def write_chapter(chapter: Chapter, images: str) -> str:
    """Return a chapter in Markdown; `images` is where its plots lie, seen from the page."""
    blocks = [f"## {chapter.title}", *(f"**Problem:** {problem}" for problem in chapter.problems)]
    blocks += [f"![{plot.title}]({images}/{plot.name}.svg)" for plot in chapter.plots]
    blocks += [write_table(table) for table in chapter.tables]
    blocks.append(chapter.method)
    return "\n\n".join(block for block in blocks if block)


def write_machine(report: Report) -> str:
    """Return what was measured on, as a table."""
    rows = [*report.machine.items(), *report.databases.items()]
    rows += [(name, f"not measured: {reason}") for name, reason in report.missing.items()]
    rows += [("measured", report.began), ("rounds", str(report.rounds)), ("scale", f"{report.scale:g}")]
    return write_table(Table(("", ""), rows))


def save(report: Report, directory: Path = RESULTS) -> Path:
    """Write page, JSON and plots, named by the run and the time; returns the page's path."""
    directory.mkdir(parents=True, exist_ok=True)
    stem = f"{report.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    page = directory / f"{stem}.md"
    page.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(attrs.asdict(report))) + b"\n")
    _draw(report.chapters, directory / stem)
    blocks = [f"# Benchmarks: {report.name}", "## Targets", write_targets(report.chapters)]
    blocks += [write_chapter(chapter, stem) for chapter in report.chapters]
    blocks += ["## The machine", write_machine(report)]
    page.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    return page


def load(path: Path) -> Report:
    """Read what `save` wrote as JSON. Raises msgspec.DecodeError and OSError."""
    return msgspec.convert(_restore(msgspec.json.decode(path.read_bytes())), Report)


def _restore(value: Any) -> Any:
    """Restore NaN, which JSON has as null."""
    match value:
        case None:
            return math.nan
        case list():
            return [_restore(item) for item in value]
        case dict():
            return {name: item if name == "raw" else _restore(item) for name, item in value.items()}
    return value


def join(reports: Sequence[Report]) -> Report:
    """Merge the chapters of several runs; later ones replace earlier ones of the same title and database.

    Raises ValueError if they are from different machines.
    """
    first = reports[0]
    chapters: dict[str, Chapter] = {}
    databases: dict[str, str] = {}
    for report in reports:
        if any(report.machine.get(name) != first.machine.get(name) for name in ("processor", "cores")):
            raise ValueError("the results are of different machines")
        for chapter in report.chapters:
            earlier = chapters.get(chapter.title)
            chapters[chapter.title] = chapter if earlier is None else _renew(earlier, chapter, report.databases)
        databases |= report.databases
    commits = dict.fromkeys(report.machine.get("commit", "unknown") for report in reports)
    machine = {**first.machine, "commit": ", ".join(commits)}
    return attrs.evolve(first, machine=machine, databases=databases, chapters=list(chapters.values()))


def _renew(earlier: Chapter, later: Chapter, databases: Iterable[str]) -> Chapter:
    """Return a later run's chapter, with an earlier one's results on databases that the later run did not measure.

    The keys are the first cell of a row, the name of a line, and the database at the start of a problem.
    """
    tables = [
        attrs.evolve(new, rows=_added(old.rows, new.rows, lambda row: row[0])) if old.columns == new.columns else new
        for old, new in zip_longest(earlier.tables, later.tables, fillvalue=Table((), ()))
    ]
    series = {plot.name: plot.series for plot in earlier.plots}
    plots_ = [
        attrs.evolve(plot, series=_added(series.get(plot.name, ()), plot.series, lambda line: line.name))
        for plot in later.plots
    ]
    measured = tuple(databases)
    problems = [problem for problem in earlier.problems if not problem.startswith(measured)]
    return attrs.evolve(
        later,
        tables=[table for table in tables if table.columns],
        plots=plots_,
        checks=_added(earlier.checks, later.checks, lambda check: check.name),
        problems=[*problems, *later.problems],
        raw={**earlier.raw, **later.raw},
        unchecked=_added(earlier.unchecked, later.unchecked, lambda words: words),
    )


def _added(old: Sequence[T], new: Sequence[T], key: Callable[[T], object]) -> list[T]:
    """Return the old items that the new ones do not replace, then those."""
    replaced = {key(item) for item in new}
    return [*(item for item in old if key(item) not in replaced), *new]


def publish(report: Report, page: Path) -> None:
    """Write the page for readers of the documentation, with its plots in `images/` beside it."""
    images = f"images/{page.stem}"
    chapters = "\n\n".join(write_chapter(chapter, images) for chapter in report.chapters)
    text = Template(_PAGE.read_text(encoding="utf-8")).substitute(
        targets=f"## Targets\n\n{write_targets(report.chapters)}", chapters=chapters, machine=write_machine(report)
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")
    _draw(report.chapters, page.parent / images)


def _draw(chapters: Sequence[Chapter], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for chapter in chapters:
        for plot in chapter.plots:
            (folder / f"{plot.name}.svg").write_bytes(plots.draw(plot))
