"""The report, from chapters that nobody measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import pytest

from benchmarks import plots, report
from benchmarks.findings import Chapter, Check, Plot, Series, Table, ratio, write_number
from benchmarks.report import Report

BARS = Plot("capacity", "Capacity", "", "requests/s", [Series("one", [("SQLite", 3000.0), ("bare", 5.5)])], "bars")
GROUPS = Plot(
    "groups",
    "Groups",
    "",
    "requests/s",
    [Series("1 worker", [("SQLite", 3.0), ("MySQL", 2.0)]), Series("2 workers", [("MySQL", math.nan)])],
    "bars",
    levels=[(4.0, "at most 4")],
)
LINES = Plot(
    "growth",
    "Growth",
    "rows",
    "ms",
    [Series("SQLite", [(1.0, 0.5), (10.0, 1.0)]), Series("MySQL", [(1.0, 0.0), (10.0, 1.01)])],
    log_x=True,
    log_y=True,
)
WORDS = Plot("words", "Words", "size", "ms", [Series("SQLite", [("1 KB", 1.0), ("10 MB", 2.0)])], levels=[(3, "most")])
NOTHING = Plot("nothing", "Nothing", "x", "y", [Series("SQLite", [])])
CHAPTER = Chapter(
    "Capacity",
    "Each of some connections.",
    tables=[Table(("database", "requests/s"), [("SQLite", 3123.4), ("My|SQL", 0.01234)])],
    plots=[BARS, LINES],
    checks=[
        Check("Requests/s, SQLite", 3123.4, 2000.0, at_most=False, unit="requests/s"),
        Check("CPU, SQLite", 0.71, 0.6, at_most=True, unit="x"),
        Check("Memory, SQLite", math.nan, 120, at_most=True, unit="KB"),
    ],
    problems=["the load generator was the bottleneck"],
    raw={"samples": [1, None]},
    unchecked=["2 workers over 1: too few cores"],
)
REPORT = Report(
    "all", "2026-01-02 03:04", 5, 0.4, {"processor": "A", "commit": "1"}, {"SQLite": "3"}, {"MySQL": "none"}, [CHAPTER]
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (3123.4, "3,120"),
        (123, "123"),
        (12.34, "12.3"),
        (0.01234, "0.0123"),
        (-2.0, "-2.00"),
        (1e6, "1,000,000"),
    ],
)
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert write_number(value) == text


def test_ratio_is_of_rounds_and_not_of_medians() -> None:
    assert ratio([1.0, 40.0, 3.0], [2.0, 80.0, 3.0]) == 0.5


def test_every_missed_target_and_problem_has_a_line() -> None:
    assert list(REPORT.failures()) == [
        "MISSED: CPU, SQLite: 0.71 x (at most 0.6 x)",
        "MISSED: Memory, SQLite: nan KB (at most 120 KB)",
        "PROBLEM: Capacity: the load generator was the bottleneck",
    ]
    assert not CHAPTER.passed


def test_tables_are_markdown() -> None:
    assert report.write_table(CHAPTER.tables[0]).splitlines() == [
        "| database | requests/s |",
        "| --- | ---: |",
        "| SQLite | 3,120 |",
        "| My\\|SQL | 0.0123 |",
    ]


def test_targets_show_what_was_met_missed_and_not_checked() -> None:
    text = report.write_targets([CHAPTER])
    assert "| Requests/s, SQLite | 3,120 requests/s | at least 2,000 requests/s | yes |" in text
    assert "| CPU, SQLite | 0.710 x | at most 0.6 x | **no** |" in text
    assert "- 2 workers over 1: too few cores" in text


def test_files_of_a_run_contain_all_results(tmp_path: Path) -> None:
    page = report.save(REPORT, tmp_path)
    text = page.read_text()
    for words in ("**Problem:** the load", "Each of some", "| MySQL | not measured: none |", "| processor | A |"):
        assert words in text
    assert f"({page.stem}/growth.svg)" in text
    assert (tmp_path / page.stem / "growth.svg").exists()
    data = msgspec.json.decode(page.with_suffix(".json").read_bytes())
    assert data["chapters"][0]["raw"] == {"samples": [1, None]}
    assert data["machine"]["processor"] == "A"


def test_page_of_the_documentation_comes_from_the_json(tmp_path: Path) -> None:
    saved = report.load(report.save(REPORT, tmp_path / "results").with_suffix(".json"))
    assert saved.chapters[0].raw == {"samples": [1, None]}
    assert list(saved.failures()) == list(REPORT.failures())
    page = tmp_path / "docs" / "benchmarks.md"
    report.publish(saved, page)
    text = page.read_text()
    assert "$" not in text
    for words in ("What is not measured", "## Targets", "## Capacity", "(images/benchmarks/capacity.svg)", "| A |"):
        assert words in text
    assert {path.name for path in (page.parent / "images" / "benchmarks").iterdir()} == {"capacity.svg", "growth.svg"}
    before = {path: path.read_bytes() for path in page.parent.rglob("*.*")}
    report.publish(saved, page)
    assert {path: path.read_bytes() for path in page.parent.rglob("*.*")} == before


def test_runs_on_one_machine_are_joined(tmp_path: Path) -> None:
    newer = Report(
        "peers",
        "later",
        5,
        1,
        {"processor": "A", "commit": "2"},
        {},
        {},
        [Chapter("Peers", ""), Chapter("Capacity", "new")],
    )
    joined = report.join([REPORT, newer])
    assert [(chapter.title, chapter.method) for chapter in joined.chapters] == [("Capacity", "new"), ("Peers", "")]
    assert joined.machine["commit"] == "1, 2"
    other = Report("peers", "later", 5, 1, {"processor": "B"}, {}, {}, [])
    with pytest.raises(ValueError, match="different machines"):
        report.join([REPORT, other])


def test_a_run_on_some_databases_keeps_results_of_others() -> None:
    def chapter(method: str, rows: dict[str, float], problems: Sequence[str] = ()) -> Chapter:
        return Chapter(
            "Growth",
            method,
            [Table(("database", "requests/s"), list(rows.items()))],
            [Plot("growth", "", "", "", [Series(name, [(1, rate)]) for name, rate in rows.items()])],
            [Check(f"Growth, {name}", rate, 2, at_most=False, unit="x") for name, rate in rows.items()],
            problems,
            dict(rows),
        )

    def run(databases: Sequence[str], found: Chapter) -> Report:
        return Report("growth", "", 5, 1, {}, dict.fromkeys(databases, ""), {}, [found])

    old = chapter("old", {"SQLite": 1.0, "MySQL": 1.0}, ["MySQL: its ledger", "SQLite: its disk"])
    joined = report.join([run(("SQLite", "MySQL"), old), run(("MySQL",), chapter("new", {"MySQL": 3.0}))])
    (found,) = joined.chapters
    assert found.method == "new"
    assert found.tables[0].rows == [("SQLite", 1.0), ("MySQL", 3.0)]
    assert [(line.name, line.points) for line in found.plots[0].series] == [
        ("SQLite", [(1, 1.0)]),
        ("MySQL", [(1, 3.0)]),
    ]
    assert [(check.name, check.met) for check in found.checks] == [("Growth, SQLite", False), ("Growth, MySQL", True)]
    assert found.problems == ["SQLite: its disk"]
    assert found.raw == {"SQLite": 1.0, "MySQL": 3.0}


@pytest.mark.parametrize("plot", [BARS, GROUPS, LINES, WORDS, NOTHING], ids=lambda plot: plot.name)
def test_plots_are_well_formed_and_the_same_each_time(plot: Plot) -> None:
    drawn = plots.draw(plot)
    root = ET.fromstring(drawn)  # noqa: S314 - our own picture
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert plot.title.encode() in drawn
    assert b"dc:date" not in drawn
    assert plots.draw(plot) == drawn
