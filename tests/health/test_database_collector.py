from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import trio
import trio.testing
from attrs import define, field

from db.database import Database, open_database
from db.dsn.target import Target
from db.errors import Unavailable
from db.options import Options
from llm_proxy.health.database_collector import COLLECT_TIMEOUT, DatabaseCollector
from tests.databases.kinds import on


@define
class Unreachable:
    """A database that fails, or never answers."""

    error: Exception | None = None
    asked: int = 0
    answer: trio.Event = field(factory=trio.Event)

    async def read(self, fn: Callable[..., Any]) -> Any:
        self.asked += 1
        if self.error is not None:
            raise self.error
        await self.answer.wait()
        return 7, {"bytes": 1}


def collector_of(database: object, nursery: trio.Nursery) -> DatabaseCollector:
    return DatabaseCollector(cast("Database", database), nursery)


@on("sqlite", "postgres", "mysql", "mariadb")
async def test_the_revision_and_the_size_are_collected(migrated_target: Target, nursery: trio.Nursery) -> None:
    async with open_database(migrated_target, Options()) as database:
        collector = collector_of(database, nursery)
        with trio.fail_after(30):
            while collector.revision is None:
                await collector.collect()
        assert collector.revision > 0
        assert collector.sizes["bytes"] > 0


async def test_only_the_first_reader_waits_for_a_frozen_database(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    unreachable = Unreachable()
    collector = collector_of(unreachable, nursery)
    for seconds in (COLLECT_TIMEOUT, 0, 0):
        before = trio.current_time()
        await collector.collect()
        assert trio.current_time() - before == pytest.approx(seconds)
    assert (unreachable.asked, collector.revision) == (1, None)
    unreachable.answer.set()
    await trio.testing.wait_all_tasks_blocked()
    assert collector.revision == 7
    await collector.collect()
    assert unreachable.asked == 2


async def test_the_last_values_stay_while_the_database_is_unavailable(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    unreachable = Unreachable()
    unreachable.answer.set()
    collector = collector_of(unreachable, nursery)
    await collector.collect()
    unreachable.error = Unavailable("unavailable")
    await collector.collect()
    await collector.collect()
    assert (unreachable.asked, collector.revision, collector.sizes) == (3, 7, {"bytes": 1})
