"""Whole measurements, small: the real server between the upstream and the load."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from benchmarks import cpu, latency, lone, rig, sqlite, throughput
from benchmarks.databases import Databases, Kind
from benchmarks.findings import Chapter
from benchmarks.processes import ProcessFailed, Upstream
from benchmarks.proxy import Proxy
from benchmarks.rig import KEY, Bench, LoadFailed, Rig, Sample, Subject, bottlenecks, generate_load, put_load
from benchmarks.targets import ADDED_P50_MS, CPU_RATIO, LONE_CPU_RATIO, LONE_P50_RATIO, RATE, SEED_RATE, SLOW_FLUSH_MS


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(cpu, "SETTLE", 0.05)
    for part in (latency, sqlite, throughput):
        monkeypatch.setattr(part, "_FEWEST", 0.05)
    databases = Databases()
    yield Bench(tmp_path, databases, [Kind.SQLITE], 1, 0.01, lambda _: None)
    databases.close()


def problems_of(chapter: Chapter) -> list[str]:
    """So little load may well end before the generator has had anything else to do than to start."""
    return [problem for problem in chapter.problems if "bottleneck" not in problem and "reached" not in problem]


def bounds_of(chapter: Chapter) -> list[float]:
    return [check.bound for check in chapter.checks]


def test_cpu_time_is_measured_and_the_ledger_verifies(bench: Bench) -> None:
    (chapter,) = cpu.run(bench, cpu.Plan(connections=4, requests=40, streamed=True))
    assert problems_of(chapter) == []
    names = [str(row[0]) for row in chapter.tables[0].rows]
    assert names == ["bare app, stock Hypercorn", "bare app, the proxy's own server", "LLM Proxy, SQLite"]
    # The proxy's share cannot be less than a tick; that of a bare answer can.
    assert chapter.raw["samples"]["LLM Proxy, SQLite"][0]["cpu_us"] > 0
    assert bounds_of(chapter) == [CPU_RATIO[Kind.SQLITE]]
    logs = list(bench.directory.glob("cpu/*/proxy.log"))
    assert sum(log.read_text().count('"event":"request"') for log in logs) >= 40


def test_lone_requests_are_measured_and_the_ledger_verifies(bench: Bench) -> None:
    (chapter,) = lone.run(bench)
    assert problems_of(chapter) == []
    names = [str(row[0]) for row in chapter.tables[0].rows]
    assert names == ["bare app, stock Hypercorn", "LLM Proxy, SQLite"]
    assert bounds_of(chapter) == [LONE_CPU_RATIO[Kind.SQLITE], LONE_P50_RATIO[Kind.SQLITE]]
    # The upstream is called directly too, as often as through the proxy.
    assert [len(samples) for samples in chapter.raw["samples"].values()] == [1, 1, 1]


def test_capacity_is_measured_and_the_ledger_verifies(bench: Bench) -> None:
    (chapter,) = throughput.run(bench)
    assert problems_of(chapter) == []
    assert [row[:2] for row in chapter.tables[0].rows] == [("SQLite", "1 worker")]
    assert bounds_of(chapter) == [RATE, SEED_RATE]
    assert [check.met for check in chapter.checks][1]
    assert "one writer" in chapter.method


def test_the_bound_of_sqlite_is_measured_and_a_slow_disk_is_slow(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    setups = [setup for setup in sqlite._SETUPS if setup != ("NORMAL", sqlite._SLOW)]
    monkeypatch.setattr(sqlite, "_SETUPS", [*setups[:2], setups[-1]])
    (chapter,) = sqlite.run(bench)
    assert problems_of(chapter) == []
    (table,) = chapter.tables
    assert [row[0] for row in table.rows[:2]] == ["FULL", "NORMAL"]
    if not sqlite.tracing_works():
        assert chapter.checks == []
        assert "strace" in chapter.unchecked[0]
        return
    assert bounds_of(chapter) == [SEED_RATE]
    alone = {(row[0], row[1]): float(row[-1]) for row in table.rows}
    # An answer waits for one flush at least, with FULL.
    assert alone["FULL", "5 ms a flush"] > SLOW_FLUSH_MS
    assert chapter.unchecked == ()


def test_the_upper_bound_of_sqlite_needs_sqlite(bench: Bench) -> None:
    assert sqlite.run(attrs.evolve(bench, kinds=[Kind.POSTGRES])) == []


def test_added_latency_is_measured_and_the_ledger_verifies(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "_CONNECTIONS", (1, 32))
    (chapter,) = latency.run(bench)
    assert problems_of(chapter) == []
    closed, opened = chapter.tables
    assert [row[:2] for row in closed.rows] == [("SQLite", "1"), ("SQLite", "32")]
    assert opened.rows[0][1] > 0  # type: ignore[operator]  # the column of rates
    assert bounds_of(chapter)[0] == ADDED_P50_MS[Kind.SQLITE]
    # A hop and two commits take their time.
    assert chapter.checks[0].measured > 0


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The load generator's reports, for tests that need no load."""
    waiting: list[dict[str, Any]] = []
    monkeypatch.setattr(rig, "generate_load", lambda _options: waiting.pop(0))
    return waiting


def told(**more: Any) -> dict[str, Any]:
    return {"requests": 100, "rate": 50.0, "seconds": 2.0, "cpu_share": 0.5, "latency_ms": {"p50": 2.5}, **more}


def test_load_on_two_instances_adds_up(reports: list[dict[str, Any]], upstream: Upstream) -> None:
    reports += [told(), told(requests=60, rate=30.0, cpu_share=0.9)]
    sample = put_load(Subject("two", [("--url", "a"), ("--url", "b")]), upstream)
    assert (sample.requests, sample.rate, sample.generator_share) == (160, 80.0, 0.9)
    assert Sample([told()]).ms("p50") == 2.5


@pytest.mark.parametrize(
    ("shares", "upstream_share", "words"),
    [([0.5, 0.9, 0.6], 0.5, ""), ([0.9, 0.5, 0.9], 0.5, "load generator"), ([0.5] * 3, 0.95, "upstream")],
)
def test_a_bottleneck_in_most_rounds_is_reported(shares: Sequence[float], upstream_share: float, words: str) -> None:
    samples = [Sample([told(cpu_share=share)], upstream_share=upstream_share) for share in shares]
    late = [Sample([told(behind=True)]), Sample([told()]), Sample([told(behind=True)])]
    assert ["schedule" in line for line in bottlenecks(Subject("SQLite", [], late))] == [True]
    assert bottlenecks(Subject("SQLite", [], late[:2] + late[1:2])) == []
    found = bottlenecks(Subject("SQLite", [], samples))
    assert len(found) == bool(words)
    assert all(words in line and line.startswith("SQLite: ") for line in found)


def test_wrong_counts_and_a_failed_verification_are_problems(bench: Bench) -> None:
    with Rig(bench, "test") as running:
        upstream = running.start_upstream()
        served = running.serve(Kind.SQLITE, upstream)
        options = served.loads("--requests", "3", "--connections", "1")[0]
        sample = Sample([generate_load(options)])
        assert rig.check_upstream(upstream, [sample]) == []
        assert rig.check_upstream(upstream, [sample, sample]) == ["the upstream served 3 requests of 6"]
        served.proxies[0].env["DATABASE_PATH"] = str(bench.directory)
        assert ["ledger verify" in problem for problem in served.verify_ledger()] == [True]


def test_errors_end_the_measurement() -> None:
    failing = ("--header", "x-scripted-status: 500")
    with Upstream.start("--key", KEY) as upstream, pytest.raises(LoadFailed) as caught:
        generate_load(["--url", f"{upstream.url}/v1/models", "--token", KEY, "--requests", "3", *failing])
    assert "/v1/models" in str(caught.value)
    assert "500" in str(caught.value)
    assert KEY not in str(caught.value)


def test_proxy_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ProcessFailed, match="DB_DRIVER"):
        Proxy.start("http://127.0.0.1:9", tmp_path, {"DB_DRIVER": "paper"})
