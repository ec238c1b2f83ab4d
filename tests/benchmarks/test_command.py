"""`python -m benchmarks`: which parts run, on which databases, and how it ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from benchmarks import __main__ as command
from benchmarks import cpu, machine
from benchmarks.databases import Databases, Kind, Missing
from benchmarks.findings import Chapter, Check, Table
from benchmarks.rig import Bench

GOOD = Check("CPU, SQLite", 0.5, 0.6, at_most=True, unit="x")
MISSED = Check("Requests/s, SQLite", 90, 100, at_most=False, unit="requests/s")


class Parts:
    """Replaces the modules of all parts."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, Bench]] = []
        self.chapters: dict[str, Chapter] = {}

    def load(self, module: str) -> Any:
        name = module.removeprefix("benchmarks.")

        def run(bench: Bench) -> Sequence[Chapter]:
            self.ran.append((name, bench))
            if name == "growth" and name not in self.chapters:
                raise ValueError("no room to grow")
            return [self.chapters.get(name, Chapter(name, "", tables=[Table(("a", "b"), [(name, 1.0)])]))]

        return SimpleNamespace(run=run)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    parts = Parts()
    monkeypatch.setattr(command, "import_module", parts.load)
    monkeypatch.setattr(machine, "describe", lambda: {"processor": "A"})
    return parts


def invoke(tmp_path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(command.main, [*arguments, "--results", str(tmp_path / "results")])


@pytest.mark.parametrize(
    ("chapter", "status", "words"),
    [
        (Chapter("Memory", "", checks=[GOOD]), 0, "| CPU, SQLite | 0.500 x | at most 0.6 x | yes |"),
        (
            Chapter("Memory", "", checks=[GOOD, MISSED]),
            1,
            "MISSED: Requests/s, SQLite: 90 requests/s (at least 100 requests/s)",
        ),
        (Chapter("Memory", "", problems=["ledger differs"]), 1, "PROBLEM: Memory: ledger differs"),
    ],
)
def test_exit_status_follows_targets_and_problems(
    parts: Parts, tmp_path: Path, chapter: Chapter, status: int, words: str
) -> None:
    parts.chapters["memory"] = chapter
    result = invoke(tmp_path, "memory", "--db", "sqlite")
    assert result.exit_code == status
    assert words in result.output


def test_all_runs_every_part_but_peers_and_one_failure_does_not_end_it(parts: Parts, tmp_path: Path) -> None:
    result = invoke(tmp_path, "all", "--db", "sqlite", "--rounds", "2", "--scale", "0.25")
    assert [name for name, _ in parts.ran] == [
        "cpu",
        "lone",
        "throughput",
        "sqlite",
        "latency",
        "streaming",
        "growth",
        "limits",
        "memory",
    ]
    bench = parts.ran[0][1]
    assert (bench.kinds, bench.rounds, bench.scaled(1000), bench.scaled(1, 3)) == ([Kind.SQLITE], 2, 250, 3)
    assert result.exit_code == 1
    assert "PROBLEM: Growth: the part failed: ValueError: no room to grow" in result.output
    (written,) = (tmp_path / "results").glob("all-*.json")
    titles = [chapter["title"] for chapter in msgspec.json.decode(written.read_bytes())["chapters"]]
    assert titles == ["cpu", "lone", "throughput", "sqlite", "latency", "streaming", "Growth", "limits", "memory"]


def test_missing_database_is_named_and_the_others_are_measured(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def server(self: Databases, kind: Kind) -> Any:
        raise Missing(f"no {kind} server here")

    monkeypatch.setattr(Databases, "server", server)
    result = invoke(tmp_path, "memory")
    assert result.exit_code == 0
    assert "NOT MEASURED: PostgreSQL: no postgres server here" in result.output
    assert parts.ran[0][1].kinds == [Kind.SQLITE]
    (page,) = (tmp_path / "results").glob("memory-*.md")
    assert "| MySQL | not measured: no mysql server here |" in page.read_text()
    asked = invoke(tmp_path, "memory", "--db", "sqlite", "--db", "mysql")
    assert asked.exit_code == 1
    assert len(parts.ran) == 1


def test_cpu_takes_its_own_options(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[cpu.Plan] = []

    def run(_bench: Bench, plan: cpu.Plan) -> list[Chapter]:
        plans.append(plan)
        return []

    monkeypatch.setattr(cpu, "run", run)
    options = ("--connections", "4", "--requests", "9", "--stream")
    assert invoke(tmp_path, "cpu", "--db", "sqlite", *options).exit_code == 0
    assert plans == [cpu.Plan(4, 9, streamed=True)]


def test_report_writes_the_page(parts: Parts, tmp_path: Path) -> None:
    parts.chapters["memory"] = Chapter("Memory", "", checks=[GOOD])
    invoke(tmp_path, "memory", "--db", "sqlite")
    (written,) = (tmp_path / "results").glob("memory-*.json")
    page = tmp_path / "docs" / "benchmarks.md"
    assert CliRunner().invoke(command.main, ["report", str(written), "--to", str(page)]).exit_code == 0
    assert "## Memory" in page.read_text()
    written.write_text("{}")
    assert CliRunner().invoke(command.main, ["report", str(written), "--to", str(page)]).exit_code == 1
