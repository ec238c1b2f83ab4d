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
from llm_proxy.health.database_collector import PATIENCE, Survey
from llm_proxy.ledger import Ledger
from tests.databases.kinds import on


@define
class Away:
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


def survey_of(database: object, nursery: trio.Nursery) -> Survey:
    return Survey(cast("Database", database), cast("Ledger", None), nursery)


@on("sqlite", "postgres", "mysql", "mariadb")
async def test_it_sees_the_schema_and_the_size(migrated_target: Target, nursery: trio.Nursery) -> None:
    async with open_database(migrated_target, Options()) as database:
        survey = survey_of(database, nursery)
        with trio.fail_after(30):
            while survey.revision is None:
                await survey.look()
        assert survey.revision > 0
        assert survey.sizes["bytes"] > 0


async def test_one_reader_waits_for_a_moment_and_no_other(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    away = Away()
    survey = survey_of(away, nursery)
    for seconds in (PATIENCE, 0, 0):
        before = trio.current_time()
        await survey.look()
        assert trio.current_time() - before == pytest.approx(seconds)
    assert (away.asked, survey.revision) == (1, None)
    away.answer.set()
    await trio.testing.wait_all_tasks_blocked()
    assert survey.revision == 7
    await survey.look()
    assert away.asked == 2


async def test_what_was_seen_last_stays_while_the_database_is_away(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    away = Away()
    away.answer.set()
    survey = survey_of(away, nursery)
    await survey.look()
    away.error = Unavailable("it is away")
    await survey.look()
    await survey.look()
    assert (away.asked, survey.revision, survey.sizes) == (3, 7, {"bytes": 1})
