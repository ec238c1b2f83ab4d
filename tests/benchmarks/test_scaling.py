"""The model of many replicas, and a small measurement of what it needs."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from benchmarks import scaling
from benchmarks.databases import Databases, Kind
from benchmarks.ports import free_port
from benchmarks.processes import ProcessFailed, listener
from benchmarks.rig import Bench
from benchmarks.scaling import chapters, measurement
from benchmarks.scaling.measurement import Load
from benchmarks.scaling.model import Cost, Fleet, HotToken, Parameters, filled

FOUND = Parameters(
    proxy=Cost(fixed=400, each=200),
    database=Cost(fixed=300, each=50),
    others=150,
    seconds=Cost(fixed=0.002, each=0.0001),
    shared=0.5,
    busy=1.0,
)


def test_fitting_points_of_a_line_returns_the_line() -> None:
    line = Cost(fixed=300, each=50)
    found = Cost.fitted([(n, line.per_request(n)) for n in (0.5, 2, 10, 40)])
    assert found.fixed == pytest.approx(300)
    assert found.each == pytest.approx(50)
    assert found.per_transaction(10) == pytest.approx(10 * found.per_request(10))


def test_negative_costs_are_zero() -> None:
    assert Cost.fitted([(1, 10.0), (2, 20.0)]).fixed == 0


def test_transactions_that_take_turns_grow_until_they_carry_the_rate() -> None:
    n = filled(5000, FOUND.seconds)
    assert n / FOUND.seconds.per_transaction(n) == pytest.approx(5000)
    assert filled(10_000, FOUND.seconds) == math.inf


@pytest.mark.parametrize(("rate", "n"), [(1, 0.5), (25, 1 / 1.5), (50, 1.0), (200, 1.0), (5000, 20.0), (9999, 500)])
def test_requests_share_a_transaction_when_they_come_close(rate: float, n: float) -> None:
    assert FOUND.sharing(rate) == pytest.approx(n, rel=0.02)


def test_the_same_load_on_more_processes_shares_less_and_costs_more() -> None:
    rates = [FOUND.on_one_machine(2, 64, processes) for processes in (1, 2, 8)]
    assert rates == sorted(rates, reverse=True)
    # 200 + 50 + 150 for a request, and a 32nd of 400 + 300.
    assert rates[0] == pytest.approx(2e6 / (400 + 700 / 32))


def test_on_one_token_the_transactions_take_turns() -> None:
    assert FOUND.on_one_token(64, 8) == pytest.approx(4 / 0.0024)
    assert HotToken.sized(FOUND, 10, 20_000).n == math.inf


def test_wait_for_one_token_grows_with_load() -> None:
    # With a fifth of the time in use, hardly ever anybody is there before; and never more than all others.
    assert HotToken.sized(FOUND, 10, 100).seconds == pytest.approx(0.0021 * (1 + 0.21 / 1.58))
    assert HotToken.sized(FOUND, 2, 470).seconds == pytest.approx(2 * 0.0021)
    busy = HotToken.sized(FOUND, 10, 5000)
    assert busy.n == pytest.approx(20)
    assert busy.seconds == pytest.approx(10 * 0.004)


def test_a_fleet_is_the_sum_of_its_requests() -> None:
    fleet = Fleet.sized(FOUND, 100, 1000)
    assert fleet.n == pytest.approx(1 / 1.8)
    assert fleet.commits == pytest.approx(1800)
    assert fleet.database_cores == pytest.approx(1000 * (50 + 300 * 1.8) / 1e6)


def test_listener_returns_the_process_of_a_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        assert listener(sock.getsockname()[1]) == os.getpid()
    with pytest.raises(ProcessFailed, match="listens"):
        listener(free_port())


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Two processes in the place of eight."""
    loads = (Load(1, 2), Load(1, 8), Load(1, 1, rate=20), Load(2, 8), Load(2, 8, one_token=True))
    monkeypatch.setattr(measurement, "LOADS", loads)
    monkeypatch.setattr(measurement, "_FEWEST", 0.2)
    monkeypatch.setattr(measurement, "SETTLE", 0.05)
    for module in (measurement, chapters):
        monkeypatch.setattr(module, "CONNECTIONS", 8)
        monkeypatch.setattr(module, "PROCESSES", 2)
    databases = Databases()
    yield Bench(tmp_path, databases, [Kind.SQLITE, Kind.POSTGRES], 1, 0.01, lambda _: None)
    databases.close()


def test_costs_are_measured_and_the_ledger_verifies(bench: Bench) -> None:
    told, sized = scaling.run(bench)
    assert [problem for problem in told.problems if "bottleneck" not in problem] == []
    loads, parameters, predictions = told.tables
    assert len(loads.rows) == 5
    assert all(float(cell) > 0 for row in loads.rows for cell in row[2:6])
    lone = loads.rows[2]
    assert float(lone[3]) < 1 < float(loads.rows[1][3])
    assert parameters.rows[0][0] == "PostgreSQL"
    # The writer of each process has one, and the last reader has one more.
    assert 1 <= float(parameters.rows[0][-1]) <= 3
    assert [row[1] for row in predictions.rows] == [
        "2 processes, 8 connections, many tokens",
        "2 processes, 8 connections, one token",
    ]
    assert len(told.checks) == 2
    assert [table.columns[-1] for table in sized.tables] == [
        "cores of proxies + PostgreSQL",
        "PostgreSQL, a transaction",
    ]


def test_sqlite_has_one_process(bench: Bench) -> None:
    assert scaling.run(evolve(bench, kinds=[Kind.SQLITE])) == []
