from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio
import trio.testing

from db.dialects.statements import clock as database_clock
from db.errors import Unavailable
from db.queries import audit, counters, daily, label_values, pruning, refusals
from db.queries.pruning import Pruned
from llm_proxy.ledger.prune import EVERY, LABELS_KEPT, PIECE, Pruner

#: The database's clock, years behind that of this host.
NOW = datetime(2020, 5, 17, 12, tzinfo=UTC)


class FakeDatabase:
    """A database that has so many old rows, and notes when it was asked."""

    def __init__(self, rows: int, *, first: bool = True, away: int = 0) -> None:
        self.rows = rows
        self.first = first
        self.away = away
        self.times: list[float] = []
        self.audited = 0
        self.refused = 0
        self.clock_reads = 0
        self.before: dict[Any, set[object]] = {}

    async def read(self, function: Any, *_: object) -> object:
        if function is daily.waiting:
            return []
        if function is database_clock:
            self.clock_reads += 1
            return NOW
        assert function is pruning.is_first
        if self.away:
            self.away -= 1
            raise Unavailable("the database is away")
        return self.first

    async def write(self, function: Any, before: object = None, limit: int = 0, last: str = "") -> object:
        self.before.setdefault(function, set()).add(before)
        if function in (daily.mark, counters.prune, label_values.prune):
            return 0
        if function is audit.prune:
            self.audited += 1
            return PIECE if self.audited == 1 else 1
        if function is refusals.prune:
            self.refused += 1
            return PIECE if self.refused == 1 else 1
        assert function is pruning.prune
        self.times.append(trio.current_time())
        done = min(limit, self.rows)
        self.rows -= done
        return Pruned(done, 0), "x" if done else None


def pruner(database: FakeDatabase) -> Pruner:
    fake: Any = database
    return Pruner(
        fake, "w", retention=timedelta(days=90), audit_retention=timedelta(days=365), dead_after=timedelta(seconds=20)
    )


async def run(database: FakeDatabase, seconds: float) -> Pruner:
    one = pruner(database)
    with trio.move_on_after(seconds):
        await one.run()
    return one


@pytest.fixture
def clock(autojump_clock: trio.testing.MockClock) -> trio.testing.MockClock:
    return autojump_clock


async def test_a_pass_goes_to_the_end_with_pauses(clock: trio.testing.MockClock) -> None:
    database = FakeDatabase(3 * PIECE + 1)
    one = await run(database, EVERY / 2)
    assert (one.rows, database.rows) == (3 * PIECE + 1, 0)
    assert len(database.times) == 5
    assert all(later > earlier for earlier, later in zip(database.times, database.times[1:], strict=False))
    assert one.last_pass > 0
    assert (database.audited, database.refused) == (2, 2)


async def test_the_clock_of_the_database_says_what_is_old(clock: trio.testing.MockClock) -> None:
    database = FakeDatabase(3 * PIECE + 1)
    await run(database, EVERY / 2)
    ledger, log = {NOW - timedelta(days=90)}, {NOW - timedelta(days=365)}
    assert (database.before[pruning.prune], database.before[refusals.prune]) == (ledger, ledger)
    assert (database.before[audit.prune], database.before[label_values.prune]) == (log, {NOW - LABELS_KEPT})
    assert database.clock_reads == 1


async def test_a_pass_follows_a_pass(clock: trio.testing.MockClock) -> None:
    database = FakeDatabase(0)
    await run(database, 2.5 * EVERY)
    assert len(database.times) == 3


async def test_others_leave_it_to_the_first(clock: trio.testing.MockClock) -> None:
    database = FakeDatabase(10, first=False)
    one = await run(database, 10 * EVERY)
    assert (one.rows, one.last_pass, database.times) == (0, 0.0, [])


async def test_an_outage_is_waited_out(clock: trio.testing.MockClock) -> None:
    database = FakeDatabase(10, away=3)
    one = await run(database, 3.5 * EVERY)
    assert one.rows == 10
