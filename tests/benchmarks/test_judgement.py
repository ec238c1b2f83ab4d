"""What capacity and latency make of their samples, without any load."""

from __future__ import annotations

import os
from typing import Any

import pytest

from benchmarks import latency, throughput
from benchmarks.databases import Kind
from benchmarks.rig import Sample, Served, Subject
from benchmarks.targets import ADDED_P99_OVER_P50, TWO_WORKERS


def sample(rate: float = 100.0, key: str = "latency_ms", **percentiles: float) -> Sample:
    return Sample([{"requests": 10, "rate": rate, "cpu_share": 0.1, key: percentiles}])


def setup(kind: Kind, workers: int, instances: int, *rates: float) -> Any:
    served = Served(kind, [None] * instances, "token")  # type: ignore[list-item]  # only their number counts
    name = f"{kind}, {throughput._NAMES[workers, instances]}"
    return throughput._Setup(served, workers, Subject(name, [], [sample(rate) for rate in rates]))


SETUPS = [
    setup(Kind.SQLITE, 1, 1, 3000, 3100, 2900),
    setup(Kind.POSTGRES, 1, 1, 1000, 2000, 3000),
    setup(Kind.POSTGRES, 2, 1, 1800, 3800, 4000),
    setup(Kind.POSTGRES, 1, 2, 90, 80, 70),
]


def test_two_workers_have_a_target_if_there_are_enough_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    checks, unchecked = throughput._check(SETUPS)
    assert unchecked == []
    (gain,) = [check for check in checks if check.bound == TWO_WORKERS]
    assert (gain.name, gain.measured, gain.met) == ("2 workers over 1, PostgreSQL", 1.8, True)


def test_two_workers_are_unchecked_if_there_are_too_few_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    checks, unchecked = throughput._check(SETUPS)
    assert [check.bound for check in checks if check.bound == TWO_WORKERS] == []
    assert ["share 2 cores" in reason for reason in unchecked] == [True]
    assert throughput._tabulate(SETUPS).rows[2] == ("PostgreSQL", "2 workers", 3800, "1,800 to 4,000", "1.80")


def test_each_required_rate_is_a_target() -> None:
    checks, _ = throughput._check(SETUPS)
    assert [(check.name, check.measured, check.met) for check in checks] == [
        ("Requests/s, sqlite, 1 worker", 3000, True),
        ("Requests/s that were asked for, sqlite, 1 worker", 3000, True),
        ("Requests/s, postgres, 1 worker", 2000, True),
        ("Requests/s that were asked for, postgres, 2 instances", 80, False),
    ]


def pair(key: str, rate: float, *rounds: tuple[float, float]) -> latency._Pair:
    """Make a pair of which the upstream takes 1 ms always; `rounds` are the proxy's p50 and p99."""
    proxy = [sample(rate, key, p50=p50, p95=p50, p99=p99) for p50, p99 in rounds]
    direct = [sample(rate, key, p50=1.0, p95=1.0, p99=1.0) for _ in rounds]
    return latency._Pair(Kind.MYSQL, Subject("MySQL", [], proxy), Subject("direct", [], direct), key, 100.0)


def test_added_latency_is_the_difference_in_each_round() -> None:
    closed = pair(latency._CLOSED, 100, (2.0, 3.0), (9.0, 9.0), (3.5, 7.0))
    opened = pair(latency._OPEN, 100, (2.0, 3.0), (2.0, 12.0), (2.0, 8.0))
    first, tail = latency._check([closed], [opened])
    assert (first.measured, first.bound, first.met) == (2.5, 4.0, True)
    assert (tail.measured, tail.bound, tail.met) == (7.0, ADDED_P99_OVER_P50, False)
    assert closed.cells == (2.5, 2.5, 6.0, 2.4, 1.0, 1.0)


def test_a_rate_that_was_not_reached_is_a_problem() -> None:
    assert latency._lag(pair(latency._OPEN, 96, (2.0, 3.0))) == []
    assert ["only 90 requests/s" in line for line in latency._lag(pair(latency._OPEN, 90, (2.0, 3.0)))] == [True]
