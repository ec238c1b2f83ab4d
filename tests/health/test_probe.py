"""`/ready` has its answer in time, whatever the database does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from attrs import define
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from db.errors import Unavailable
from llm_proxy.health.probe import Probe

DEADLINE = 2.0


@define
class Database:
    """Answers when it is let, as a thread would that cannot be left: cancelling does not end it."""

    answer: Callable[[], bool] = lambda: True
    takes: float = 0.0
    reads: int = 0

    async def read(self, _fn: Any) -> bool:
        self.reads += 1
        with trio.CancelScope(shield=True):
            await trio.sleep(self.takes)
        return self.answer()


@asynccontextmanager
async def probing(database: Any) -> AsyncIterator[Probe]:
    async with trio.open_nursery() as nursery:
        yield Probe(database, nursery, DEADLINE)


def away() -> bool:
    raise Unavailable("connection refused")


@pytest.mark.parametrize(
    ("answer", "reasons"), [(lambda: True, ()), (lambda: False, ("schema",)), (away, ("database",))]
)
async def test_what_is_wrong(answer: Callable[[], bool], reasons: tuple[str, ...]) -> None:
    async with probing(Database(answer)) as probe:
        assert await probe.reasons() == reasons


async def test_a_frozen_database_is_not_waited_for(autojump_clock: MockClock) -> None:
    database = Database(takes=12.0)
    async with probing(database) as probe:
        began = trio.current_time()
        assert await probe.reasons() == ("database",)
        assert trio.current_time() - began == pytest.approx(DEADLINE)
        # Who comes later is told at once, and asks nothing of a database that has not answered yet.
        assert await probe.reasons() == ("database",)
        assert trio.current_time() - began == pytest.approx(DEADLINE)
        assert database.reads == 1
        await trio.sleep(12.0)
        database.takes = 0.0
        assert await probe.reasons() == ()
        assert database.reads == 2


async def test_those_who_ask_at_the_same_time_share_a_look(autojump_clock: MockClock) -> None:
    database = Database(takes=1.0)
    found = []

    async def ask() -> None:
        found.append(await probe.reasons())

    async with probing(database) as probe, trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
    assert found == [()] * 10
    assert database.reads == 1


async def test_who_stops_asking_leaves_the_others_their_answer(autojump_clock: MockClock) -> None:
    async with probing(Database(takes=1.0)) as probe:
        with trio.move_on_after(0.5) as left:
            await probe.reasons()
        assert left.cancelled_caught
        assert await probe.reasons() == ()


async def test_what_nobody_thought_of_is_logged_and_takes_nothing_along() -> None:
    def fail() -> bool:
        raise ValueError("unheard of")

    with capture_logs() as logs:
        async with probing(Database(fail)) as probe:
            assert await probe.reasons() == ("database",)
            await wait_all_tasks_blocked()
    assert [line["event"] for line in logs] == ["the database could not be looked at"]
