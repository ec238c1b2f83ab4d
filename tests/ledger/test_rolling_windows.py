"""Windows that end while several workers admit and settle: none is exceeded, and none is charged for another."""
# ruff: noqa: ASYNC110 (the ledger is looked at from outside, where there is no event to wait for)

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
import trio
from attrs import define, field
from sqlalchemy import select

from db import Connection
from db.dsn import Target
from db.queries import counters
from db.queries import limits as limit_queries
from db.schema import limit_counters
from llm_proxy.errors import ProxyError
from llm_proxy.ledger import Ledger
from llm_proxy.limits import Bound, started_at
from tests.databases.kinds import Kind
from tests.ledger.stage import Scene, scene
from tests.ledger.test_limits import OK, FixedDemand, apply, limited

#: The last minutes of a year.
START, MINUTE, MINUTES = datetime(2028, 12, 31, 23, 57, 30, tzinfo=UTC), timedelta(minutes=1), 5
CLIENTS, AT_ONCE, REQUESTS = 24, 6, 20
#: A budget of thirteen worst cases; the requests of a minute cost less.
DEMAND, BUDGET = FixedDemand(bound=Bound(10, 10, 2000)), 26_500


@define
class Clients:
    """Clients of one token; they count what is admitted in each minute.

    Attributes:
        now: the database's clock.
        most: requests that were running at once.
    """

    stage: Scene
    now: datetime = START
    stopping: bool = False
    admitted: Counter[datetime] = field(factory=Counter)
    refused: set[str] = field(factory=set)
    most: int = 0
    _running: int = 0

    async def keep_on(self, ledger: Ledger) -> None:
        while not self.stopping:
            try:
                grant = await ledger.admit(apply(self.stage.token, DEMAND))
            except ProxyError as error:
                self.refused.add(error.code)
                await trio.sleep(0.01)
                continue
            assert all(one.used + one.reserved <= one.limit.amount for one in grant.limits)
            self._running += 1
            self.most = max(self.most, self._running)
            minute = grant.reservation.admitted_at.replace(second=0)
            self.admitted[minute] += 1
            ends_late = self.admitted[minute] % 10 == 5
            await trio.sleep(0.001)
            if ends_late:
                while self.now < minute + MINUTE and not self.stopping:
                    await trio.sleep(0.002)
            self._running -= 1
            ledger.settle(grant, OK)

    async def let_time_pass(self) -> None:
        """End each minute as soon as its requests are used up."""
        for _ in range(MINUTES):
            with trio.fail_after(20):
                while self.admitted[self.now.replace(second=0)] < REQUESTS:
                    await trio.sleep(0.002)
            self.now += MINUTE
        self.stopping = True


async def test_windows_that_end_under_load_are_exact(
    migrated_target: Target, database_kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(migrated_target) as stage:
        make = partial(limited, stage.database.real, stage.token, created_at=datetime.now(UTC))
        of_requests = make(period="minute", amount=REQUESTS)
        of_money = make(period="minute", metric="cost", policy="reserved", amount=BUDGET)
        at_once = make(metric="concurrency", amount=AT_ONCE)
        stand_in: Any = stage.database
        others = 0 if database_kind is Kind.SQLITE else 2
        workers = [stage.ledger, *(Ledger(stand_in, stage.ledger._worker, stage.observed) for _ in range(others))]
        clients = Clients(stage)
        read = limit_queries.of_subjects
        monkeypatch.setattr(
            limit_queries, "of_subjects", lambda connection, subjects: (read(connection, subjects)[0], clients.now)
        )
        monkeypatch.setattr(counters, "clock", lambda _: clients.now)
        async with trio.open_nursery() as writing:
            for worker in workers[1:]:
                await writing.start(worker.run)
            async with trio.open_nursery() as nursery:
                for number in range(CLIENTS):
                    nursery.start_soon(clients.keep_on, workers[number % len(workers)])
                await clients.let_time_pass()
            for worker in workers:
                while worker.busy:
                    await trio.sleep(0.005)
            writing.cancel_scope.cancel()

        def used(connection: Connection) -> dict[tuple[str, datetime | None], tuple[int, int]]:
            own = limit_counters.c
            rows = connection.execute(select(own.limit_id, own.started_at, own.used, own.reserved))
            return {(row.limit_id, row.started_at): (row.used, row.reserved) for row in rows}

        found = await stage.database.real.read(used)
        proof = await stage.database.real.read(counters.prove, started_at)
    assert max(clients.admitted.values()) == REQUESTS, clients.admitted
    assert clients.most == AT_ONCE
    assert clients.refused <= {"rate_limit_exceeded", "budget_reserved"}
    cost = OK.cost_nanousd or 0
    expected: dict[tuple[str, datetime | None], tuple[int, int]] = {(at_once.id, None): (0, 0)}
    for minute, number in clients.admitted.items():
        expected[of_requests.id, minute] = (number, 0)
        expected[of_money.id, minute] = (number * cost, 0)
    assert {key: value for key, value in found.items() if any(value) or key[1] is None} == expected
    assert proof.wrong == []
