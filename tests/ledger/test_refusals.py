from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from db.database import Database
from db.errors import DatabaseError, Refused, Unavailable
from db.records import RefusedRequest
from llm_proxy.ledger.refusals import BATCH, MAX_WAITING, PER_MINUTE, RefusalRecorder
from tests.db.queries.factories import a_refusal


class FakeDatabase:
    def __init__(self) -> None:
        self.batches: list[list[RefusedRequest]] = []
        self.error: DatabaseError | None = None

    async def write(self, _: object, batch: list[RefusedRequest]) -> None:
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        self.batches.append(batch)


@pytest.fixture
def database() -> FakeDatabase:
    return FakeDatabase()


def recorder(database: Any) -> RefusalRecorder:
    return RefusalRecorder(cast("Database", database))


async def test_refusals_are_written_in_batches_in_the_background(
    database: FakeDatabase, autojump_clock: MockClock
) -> None:
    refused = [a_refusal(code=f"code{number // PER_MINUTE}") for number in range(BATCH + 10)]
    writer = recorder(database)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        for one in refused:
            writer.add(one)
        assert database.batches == []
        await trio.sleep(2)
        nursery.cancel_scope.cancel()
    assert database.batches == [refused[:BATCH], refused[BATCH:]]
    assert writer.unrecorded == 0


async def test_a_flood_of_one_code_leaves_room_for_others(
    database: FakeDatabase, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    log = SimpleNamespace(warning=lambda event, **_: told.append(event))
    monkeypatch.setattr("llm_proxy.ledger.refusals._log", log)
    writer = recorder(database)
    for _ in range(PER_MINUTE + 40):
        writer.add(a_refusal(code="token_invalid"))
    last = a_refusal()
    writer.add(last)
    await writer.drain()
    assert sum(map(len, database.batches)) == PER_MINUTE + 1
    assert database.batches[-1][-1] == last
    assert writer.unrecorded == 40
    assert told == ["too many requests are refused; further ones are only counted"]
    await trio.sleep(61)
    writer.add(a_refusal(code="token_invalid"))
    await writer.drain()
    assert sum(map(len, database.batches)) == PER_MINUTE + 2


async def test_refusals_wait_for_the_database_in_bounded_memory(
    database: FakeDatabase, autojump_clock: MockClock
) -> None:
    writer = recorder(database)
    database.error = Unavailable("down")
    refused = [a_refusal(code=f"code{number // PER_MINUTE}") for number in range(MAX_WAITING + 5)]
    for one in refused:
        writer.add(one)
    with pytest.raises(Unavailable):
        await writer.drain()
    assert writer.unrecorded == 5
    database.error = None
    await writer.drain()
    assert [one for batch in database.batches for one in batch] == refused[:MAX_WAITING]


async def test_refusals_that_the_database_does_not_take_are_counted_and_dropped(database: FakeDatabase) -> None:
    writer = recorder(database)
    database.error = Refused("no")
    writer.add(a_refusal())
    await writer.drain()
    database.error = None
    writer.add(a_refusal())
    await writer.drain()
    assert (writer.unrecorded, len(database.batches)) == (1, 1)
