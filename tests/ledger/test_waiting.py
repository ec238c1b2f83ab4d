"""Requests that wait for running ones: in order, bounded, and they end whatever happens meanwhile."""
# ruff: noqa: ASYNC110 (the ledger is looked at from outside, where there is no event to wait for)

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from attrs import define, field

from db.errors import Unavailable
from db.queries import limits as limit_queries
from db.records import Limit, Result
from llm_proxy.errors import DatabaseAway, DatabaseUnavailable, ProxyError, RateLimitExceeded
from llm_proxy.ledger import Grant, Ledger, waiting, writer
from llm_proxy.ledger.batch import PendingAdmission
from llm_proxy.ledger.waiting import BlockedRequests
from llm_proxy.limits import Blocked
from tests.ledger.stage import Scene, scene
from tests.ledger.test_limits import apply, limited

OK = Result(outcome="ok", status=200)


@define
class Queue:
    """Requests of a token with a limit of concurrent requests; `ends` has their decisions, in the order of these."""

    stage: Scene
    limit: Limit
    nursery: trio.Nursery
    ends: list[tuple[int, Grant | ProxyError]] = field(factory=list)

    async def send(self, number: int, ledger: Ledger | None = None) -> trio.CancelScope:
        """Send a request, and return when it waits or has its decision."""
        ledger, scope = ledger or self.stage.ledger, trio.CancelScope()

        async def one() -> None:
            with scope:
                try:
                    self.ends.append((number, await ledger.admit(apply(self.stage.token))))
                except ProxyError as error:
                    self.ends.append((number, error))

        before = len(ledger._blocked), len(self.ends)
        self.nursery.start_soon(one)
        with trio.fail_after(10):
            while (len(ledger._blocked), len(self.ends)) == before or ledger._under_way:
                await trio.sleep(0.002)
        return scope

    async def end(self, number: int) -> None:
        """The last request that was admitted ends; return when there are so many decisions."""
        grant = self.ends[-1][1]
        assert isinstance(grant, Grant)
        self.stage.ledger.settle(grant, OK)
        await self.decided(number)

    async def decided(self, number: int) -> None:
        with trio.fail_after(10):
            while len(self.ends) < number:
                await trio.sleep(0.002)

    @property
    def served(self) -> list[int]:
        return [number for number, decision in self.ends if isinstance(decision, Grant)]

    def reserved(self) -> int:
        key = limit_queries.counter_id(self.limit.id, None)
        counters = self.stage.database.real.read_now(limit_queries.read_counters, [key])
        return counters[key].reserved


@asynccontextmanager
async def queue(path: Path, **fields: Any) -> AsyncIterator[Queue]:
    """One request is admitted, and no second one is until it has ended."""
    usual: dict[str, Any] = {"metric": "concurrency", "amount": 1, "wait_ms": 20_000}
    async with trio.open_nursery() as nursery, scene(path / "ledger.db") as stage:
        found = Queue(stage, limited(stage.database.real, stage.token, **usual | fields), nursery)
        await found.send(0)
        assert found.served == [0]
        yield found


async def test_requests_that_wait_are_admitted_in_the_order_of_their_arrival(tmp_path: Path) -> None:
    async with queue(tmp_path) as found:
        for number in (1, 2, 3):
            await found.send(number)
        for number in (2, 3, 4):
            await found.end(number)
            assert found.reserved() == 1
            if number == 2:
                # This one comes when there is room for one request, which waits already.
                await found.send(4)
        await found.end(5)
        assert found.served == [0, 1, 2, 3, 4]
        await found.end(5)
        await found.stage.settled()
        assert found.reserved() == 0


async def test_what_others_may_wait_for_is_given_back_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SETTLEMENT_PATIENCE", 60.0)
    async with queue(tmp_path) as found:
        with trio.fail_after(3):  # a heartbeat, every five seconds, takes settlements with it
            await found.end(1)
            await found.stage.settled()
        assert found.reserved() == 0


class Waiting:
    """Requests that wait, without a ledger; `ends` has what they were told."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.requests = BlockedRequests()
        self.ends: list[object] = []
        self._nursery = nursery

    async def come(self) -> PendingAdmission:
        one: PendingAdmission = await self._nursery.start(self._wait)
        return one

    async def _wait(self, *, task_status: trio.TaskStatus[PendingAdmission]) -> None:
        one = PendingAdmission(cast("Any", None))
        task_status.started(one)
        self.ends.append(await one.wait())

    def block(self, *pairs: tuple[PendingAdmission, str], seconds: float = 1.0) -> None:
        error = RateLimitExceeded("all are used")
        self.requests.put([(one, Blocked(limit, seconds, error)) for one, limit in pairs], trio.current_time())


async def test_requests_that_meet_another_limit_keep_the_order_of_their_arrival() -> None:
    async with trio.open_nursery() as nursery:
        found = Waiting(nursery)
        first, second, third = [await found.come() for _ in range(3)]
        found.block((second, "a"), (first, "b"), (third, "b"))
        assert found.requests.take(trio.current_time()) == [first, second, third]
        found.block((third, "a"), (second, "a"), (first, "a"))
        assert list(found.requests) == [first, second, third]
        nursery.cancel_scope.cancel()


async def test_a_request_that_waited_is_refused_by_a_limit_that_nobody_may_wait_for() -> None:
    async with trio.open_nursery() as nursery:
        found = Waiting(nursery)
        one = await found.come()
        found.block((one, "a"))
        assert found.requests.take(trio.current_time()) == [one]
        found.block((one, "b"), seconds=0)
        assert (list(found.requests), found.requests.limits) == ([], set())
    assert [str(end) for end in found.ends] == ["all are used"]


async def test_a_request_whose_client_leaves_while_it_waits_holds_nothing(tmp_path: Path) -> None:
    async with queue(tmp_path) as found:
        first = await found.send(1)
        await found.send(2)
        first.cancel()
        await found.end(2)
        assert found.served == [0, 2]
        await found.end(2)
        await found.stage.settled()
        assert (found.reserved(), found.stage.ledger.waiting) == (0, 0)
        assert await found.stage.count() == 2


async def test_no_more_requests_wait_than_the_maximum_and_clients_that_left_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "MAX_BLOCKED", 40)
    async with queue(tmp_path) as found:
        scopes = [await found.send(number) for number in range(1, 41)]
        await found.send(41)
        ((number, refused),) = found.ends[1:]
        assert (number, type(refused)) == (41, RateLimitExceeded)
        # Those at the end of the queue, which are not judged again yet.
        for scope in scopes[-3:]:
            scope.cancel()
        with trio.fail_after(10):
            while len(found.stage.ledger._blocked) > 37:
                await trio.sleep(0.002)
        await found.send(42)
        assert len(found.ends) == 2
        for scope in scopes:
            scope.cancel()
        found.stage.ledger.settle(_grant(found), OK)
        await found.decided(3)
        assert found.served == [0, 42]
        await found.end(3)


def _grant(found: Queue) -> Grant:
    grant = found.ends[0][1]
    assert isinstance(grant, Grant)
    return grant


async def test_a_request_that_has_waited_long_enough_is_refused(tmp_path: Path) -> None:
    async with queue(tmp_path, wait_ms=60) as found:
        await found.send(1)
        await found.decided(2)
        refused = found.ends[1][1]
        assert isinstance(refused, RateLimitExceeded)
        assert (refused.limit_id, refused.retry_after) == (found.limit.id, 1)
        assert found.reserved() == 1
        found.stage.ledger.settle(_grant(found), OK)


async def test_a_shutdown_waits_until_requests_that_wait_are_decided(tmp_path: Path) -> None:
    async with queue(tmp_path, wait_ms=60) as found:
        await found.send(1)
        await found.send(2)
        # The first request has not ended: its reservation is settled by the sweep of another server.
    assert [type(decision) for _, decision in found.ends[1:]] == [RateLimitExceeded] * 2


async def test_requests_that_wait_are_refused_when_the_writer_ends(tmp_path: Path) -> None:
    async with queue(tmp_path) as found, trio.open_nursery() as nursery:
        stage = found.stage
        stand_in: Any = stage.database
        ledger = Ledger(stand_in, stage.ledger._worker, stage.observed)
        await nursery.start(ledger.run)
        await found.send(1, ledger)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await found.decided(2)
            assert type(found.ends[1][1]) is DatabaseUnavailable
            stage.ledger.settle(_grant(found), OK)
            await stage.settled()
        assert found.reserved() == 0


async def test_requests_that_wait_are_refused_when_the_database_is_away(tmp_path: Path) -> None:
    async with queue(tmp_path) as found:
        await found.send(1)
        await found.send(2)
        found.stage.database.before = lambda: Unavailable("away")
        await found.decided(3)
        assert [type(decision) for _, decision in found.ends[1:]] == [DatabaseAway] * 2
        assert not found.stage.ledger._blocked
        found.stage.ledger.settle(_grant(found), OK)
        found.stage.database.before = lambda: None
        with trio.fail_after(10):
            while not found.stage.alive():
                await trio.sleep(0.005)
        await found.send(3)
        assert found.served == [0, 3]
        await found.end(4)
