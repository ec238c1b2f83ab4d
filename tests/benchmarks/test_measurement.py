"""Distributions, the ratio, and the report."""

from __future__ import annotations

import random
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec
import pytest
from click.testing import CliRunner

from benchmarks import cpu, report
from benchmarks.__main__ import main
from benchmarks.cpu import Outcome, Plan, Sample, Subject
from benchmarks.upstream.latency import delay, seconds

if TYPE_CHECKING:
    from benchmarks.processes import Process


def subject(name: str, *costs: float) -> Subject:
    samples = [Sample(cost, 1000.0, 1.0, 2.0, 0.5, generator_busy=False) for cost in costs]
    return Subject(name, cast("Process", None), (), samples)


def outcome(ratio: float, *problems: str) -> Outcome:
    subjects = (subject("bare", 400, 500, 450), subject("proxy", 200, 260, 230))
    return Outcome(Plan(3, 32, 100, env={"DATABASE_URL": "secret"}), subjects, ratio, (ratio,), problems)


@pytest.mark.parametrize(("text", "value"), [("250us", 0.00025), ("5ms", 0.005), ("1.5s", 1.5), ("2", 2.0)])
def test_durations(text: str, value: float) -> None:
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "5 m", "-1ms", "fast", "normal:1ms", "uniform:1ms", "lognormal:1ms"])
def test_senseless_delays_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        delay(text)


@pytest.mark.parametrize(
    ("text", "median"),
    [("5ms", 0.005), ("uniform:2ms-4ms", 0.003), ("exponential:10ms", 0.00693), ("lognormal:20ms,0.5", 0.02)],
)
def test_delays_have_the_named_distribution(text: str, median: float) -> None:
    draw = delay(text)
    assert draw is not None
    source = random.Random(1)
    assert statistics.median(draw(source) for _ in range(4000)) == pytest.approx(median, rel=0.1)


def test_no_delay_is_none() -> None:
    assert delay("0") is None


def test_table_shows_medians_and_the_ratio() -> None:
    table = report.table(outcome(0.52))
    assert "| bare | 450 | 400 to 500 | 1,000 | 1.0 | 2.0 |" in table
    assert "| proxy | 230 | 200 to 260 |" in table
    assert "**0.52**" in table


def test_results_are_written_without_the_environment(tmp_path: Path) -> None:
    page = report.save(outcome(0.5, "something"), tmp_path)
    assert "problem: something" in page.read_text()
    data = msgspec.json.decode(page.with_suffix(".json").read_bytes())
    assert data["ratio"] == 0.5
    assert data["subjects"]["proxy"][1]["cpu_us"] == 260
    assert "secret" not in page.read_text() + page.with_suffix(".json").read_text()


@pytest.mark.parametrize(
    ("found", "options", "status", "words"),
    [
        (outcome(0.99), (), 0, ""),
        (outcome(1.01), (), 1, "proxy: ratio 1.01 is above the target 1.00"),
        (outcome(1.01), ("--target", "1.1"), 0, ""),
        (outcome(0.5, "books out of balance"), (), 1, "books out of balance"),
    ],
)
def test_exit_status_follows_the_target(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: Outcome, options: tuple[str, ...], status: int, words: str
) -> None:
    monkeypatch.setattr(cpu, "run", lambda *_: found)
    monkeypatch.setattr(report, "save", lambda _: tmp_path)
    result = CliRunner().invoke(main, ["cpu", *options])
    assert result.exit_code == status
    assert words in result.output
    assert ("FAILED" in result.output) == (status != 0)


def test_another_database_needs_its_url() -> None:
    result = CliRunner().invoke(main, ["cpu", "--db", "postgres"])
    assert result.exit_code == 2
    assert "--database-url" in result.output
