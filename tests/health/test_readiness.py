from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from attrs import define
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from db.errors import Unavailable
from llm_proxy.health.readiness import READY_TIMEOUT, Readiness

LEDGER = SimpleNamespace(alive=True)


@define
class Database:
    """Answers after a while, and like a thread it cannot be cancelled."""

    answer: Callable[[], bool] = lambda: True
    takes: float = 0.0
    reads: int = 0

    async def read(self, _fn: Any) -> bool:
        self.reads += 1
        with trio.CancelScope(shield=True):
            await trio.sleep(self.takes)
        return self.answer()


@asynccontextmanager
async def checking(database: Any, ledger: Any = LEDGER, outage: Any = None) -> AsyncIterator[Readiness]:
    async with trio.open_nursery() as nursery:
        yield Readiness(database, ledger, outage, nursery)


def unreachable() -> bool:
    raise Unavailable("connection refused")


@pytest.mark.parametrize(
    ("answer", "failing"), [(lambda: True, []), (lambda: False, ["schema"]), (unreachable, ["database"])]
)
async def test_the_state_of_the_database_is_named(answer: Callable[[], bool], failing: list[str]) -> None:
    async with checking(Database(answer)) as readiness:
        assert await readiness.failing() == failing


async def test_a_frozen_database_fails_after_the_timeout(autojump_clock: MockClock) -> None:
    database = Database(takes=12.0)
    async with checking(database) as readiness:
        began = trio.current_time()
        assert await readiness.failing() == ["database"]
        assert trio.current_time() - began == pytest.approx(READY_TIMEOUT)
        # A later caller does not wait, and does not start a second query.
        assert await readiness.failing() == ["database"]
        assert trio.current_time() - began == pytest.approx(READY_TIMEOUT)
        assert database.reads == 1
        await trio.sleep(12.0)
        database.takes = 0.0
        assert await readiness.failing() == []
        assert database.reads == 2


async def test_simultaneous_callers_share_one_query(autojump_clock: MockClock) -> None:
    database = Database(takes=1.0)
    found: list[list[str]] = []

    async def ask() -> None:
        found.append(await readiness.failing())

    async with checking(database) as readiness, trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
    assert found == [[]] * 10
    assert database.reads == 1


async def test_a_cancelled_caller_does_not_cancel_the_query(autojump_clock: MockClock) -> None:
    async with checking(Database(takes=1.0)) as readiness:
        with trio.move_on_after(0.5) as scope:
            await readiness.failing()
        assert scope.cancelled_caught
        assert await readiness.failing() == []


async def test_an_unexpected_error_is_logged_and_stops_nothing() -> None:
    def fail() -> bool:
        raise ValueError("unheard of")

    with capture_logs() as logs:
        async with checking(Database(fail)) as readiness:
            assert await readiness.failing() == ["database"]
            await wait_all_tasks_blocked()
    assert [line["event"] for line in logs] == ["the database could not be checked"]


@pytest.mark.parametrize(
    ("draining", "alive", "admits_offline", "refuses_all", "failing"),
    [
        (True, True, False, False, ["draining"]),
        (False, False, False, False, ["writer"]),
        (False, True, True, False, ["database"]),
        (False, True, False, True, ["writer"]),
        (True, False, True, True, ["draining", "writer", "database"]),
    ],
)
async def test_draining_the_writer_and_an_outage_are_named(
    draining: bool, alive: bool, admits_offline: bool, refuses_all: bool, failing: list[str]
) -> None:
    outage = SimpleNamespace(admits_offline=admits_offline, refuses_all=refuses_all)
    database = Database()
    async with checking(database, SimpleNamespace(alive=alive), outage) as readiness:
        readiness.draining = draining
        assert await readiness.failing() == failing
        assert readiness.admits_offline is admits_offline
    assert database.reads == (not admits_offline), "in an outage the database is not queried"
