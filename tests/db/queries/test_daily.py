from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest
from msgspec.structs import replace
from sqlalchemy import Connection, func, select, update

from db.database import Database, opened
from db.options import Options
from db.queries import daily, ledger, projects, repair, tokens, usage
from db.queries.usage import Group, Report, UnpricedModel
from db.records import TOKENS, SettledRequest, Token
from db.schema import requests, usage_daily, usage_days, usage_hourly
from tests.databases.scratch import Scratch
from tests.db.queries.factories import a_project, a_settled_request, a_token

DAY = timedelta(days=1)
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
#: A day whose sums are late to change.
LATE = TODAY - 4 * DAY + timedelta(hours=5)

GROUPS = (
    *((), ("model",), ("project",), ("day",), ("month",), ("provider", "requested_model"), ("project", "model", "day")),
    *(("label.team",), ("label.team", "day"), ("label.team", "label.env"), ("project", "label.env"), ("hour",)),
    ("token",),
)


@pytest.fixture
def database(migrated_database: Scratch) -> Iterator[Database]:
    with opened(migrated_database.target, Options()) as database:
        yield database
        assert database.connections.in_use == 0


@pytest.fixture
def owners(database: Database) -> list[Token]:
    """Three tokens of two projects, with requests on twelve days, the last of them today."""
    made = [a_project() for _ in range(2)]
    found = [a_token(made[0].id), a_token(made[0].id), a_token(made[1].id)]

    def fill(connection: Connection) -> None:
        for project in made:
            projects.create(connection, project)
        for token in found:
            tokens.create(connection, token)
        ledger.roll_up(
            connection,
            [
                row(token, TODAY - day * DAY + hour * timedelta(hours=1), number)
                for token in found
                for day in range(12)
                for hour in (0, 7, 23)
                for number in range(2)
            ],
        )

    database.write_now(fill)
    return found


def row(token: Token, at: datetime, number: int = 0) -> SettledRequest:
    labels = [{"team": "search", "env": "prod"}, {"team": "ads"}, None][at.day % 3]
    # Servers of the release before name no requested model.
    asked = None if at.day % 5 == 0 else "gpt"
    return a_settled_request(
        token,
        admitted_at=at,
        settled_at=at,
        model="ab"[number],
        requested_model=asked,
        summed_labels=None if asked is None else labels,
        cost_nanousd=None if asked is None else 10**9 + number,
        usage_details={"web_searches": number + 1},
        outcome="rejected" if at.hour == 7 else "ok",
        duration_us=number * 1_000_000,
    )


def report(database: Database, **fields: Any) -> list[Group]:
    asked = Report(TODAY - 30 * DAY, TODAY + DAY, **fields)
    found: list[Group] = []
    following: usage.Key | None = None
    for _ in range(10):
        groups, following = database.read_now(usage.page, asked, 500, following)
        found += groups
        if following is None:
            return found
    raise AssertionError("the pages do not end")


def sum_up(database: Database) -> int:
    """Sum up all days that have ended; say how many."""
    days = days_to_sum_up(database)
    for day, marked_at in days:
        totals: dict[tuple[Any, ...], dict[str, Any]] = {}
        last = ""
        while ids := database.read_now(daily.project_ids, last, 1):
            daily.merge(totals, database.write_now(daily.sum_up, day, ids))
            last = ids[-1]
        database.write_now(daily.finish, day, marked_at, totals.values())
    return len(days)


def counted(database: Database, table: Any) -> int:
    return database.read_now(
        lambda connection: connection.execute(select(func.count()).select_from(table)).scalar_one()
    )


def test_reports_of_daily_sums_are_those_of_hourly_sums(database: Database, owners: list[Token]) -> None:
    filters: list[dict[str, Any]] = [
        *({}, {"project_id": owners[0].project_id}, {"model": "b"}, {"provider": "openai"}),
        *({"labels": {"team": "ads"}}, {"labels": {"env": "prod", "team": "search"}}),
        {"labels": {"team": "ads"}, "project_id": owners[2].project_id},
    ]
    asked = [{"group_by": groups} | narrow for groups in GROUPS for narrow in filters]
    before = [report(database, **fields) for fields in asked]
    assert sum_up(database) >= 10
    assert [report(database, **fields) for fields in asked] == before
    assert sum(group.sums["requests"] for group in before[0]) == 12 * 18
    # They are read: without the hourly sums of days before yesterday, nothing is different but tokens and hours.
    old = usage_hourly.delete().where(usage_hourly.c.hour < TODAY - DAY)
    database.write_now(lambda connection: connection.execute(old).close())
    assert report(database, group_by=("project", "model", "day")) == before[6 * len(filters)]
    assert report(database, group_by=("label.team",)) == before[7 * len(filters)]
    assert report(database, group_by=("hour",)) != before[11 * len(filters)]


def test_a_day_is_summed_up_a_while_after_its_end_and_its_mark(database: Database, owners: list[Token]) -> None:
    marked = database.write_now(daily.mark)
    days = database.read_now(lambda connection: list(connection.scalars(select(usage_days.c.day))))
    assert len(days) == marked
    assert min(days) == TODAY - 11 * DAY
    assert max(days) <= TODAY - DAY
    assert database.read_now(daily.waiting) == []
    assert database.write_now(daily.mark) == 0


def test_a_late_change_is_in_the_sums_of_its_day(database: Database, owners: list[Token]) -> None:
    days = sum_up(database)
    before = report(database, group_by=("day",))
    late = row(owners[0], LATE)
    database.write_now(lambda connection: ledger.roll_up(connection, [late]))
    changed = report(database, group_by=("day",))
    assert sum(group.sums["requests"] for group in changed) == sum(group.sums["requests"] for group in before) + 1
    assert sum_up(database) == 1
    assert report(database, group_by=("day",)) == changed
    assert sum_up(database) == 0
    assert counted(database, usage_days) == days
    # Sums of today change all the time, and have no mark.
    database.write_now(lambda connection: ledger.roll_up(connection, [row(owners[0], datetime.now(UTC))]))
    assert counted(database, usage_days) == days


def test_a_day_that_changes_while_it_is_summed_up_is_not_written(database: Database, owners: list[Token]) -> None:
    database.write_now(daily.mark)
    (marked_at,) = {*database.read_now(lambda connection: list(connection.scalars(select(usage_days.c.marked_at))))}
    day = LATE.replace(hour=0)
    totals: dict[tuple[Any, ...], dict[str, Any]] = {}
    ids = database.read_now(daily.project_ids, "", 10)
    daily.merge(totals, database.write_now(daily.sum_up, day, ids))
    database.write_now(lambda connection: ledger.roll_up(connection, [row(owners[0], LATE)]))
    with pytest.raises(daily.DayChanged):
        database.write_now(daily.finish, day, marked_at, totals.values())
    assert database.read_now(daily.written, TODAY - 30 * DAY, TODAY) == set()


def test_a_repair_is_in_the_sums_of_its_day(database: Database, owners: list[Token]) -> None:
    settled = [row(owners[0], LATE), row(owners[0], LATE)]
    database.write_now(
        lambda connection: connection.execute(requests.insert(), [one.by_column() for one in settled]).close()
    )
    database.write_now(lambda connection: ledger.roll_up(connection, settled[:1]))
    sum_up(database)
    mine = (usage_hourly.c.token_id == owners[0].id, usage_hourly.c.hour == LATE)
    database.write_now(
        lambda connection: connection.execute(update(usage_hourly).where(*mine).values(requests=1)).close()
    )
    database.write_now(repair.repair, owners[0].id)
    assert counted(database, usage_daily) > 0
    assert [day for day, _ in days_to_sum_up(database)] == [LATE.replace(hour=0)]


def days_to_sum_up(database: Database) -> list[tuple[datetime, datetime]]:
    database.write_now(daily.mark)
    long_ago = update(usage_days).values(marked_at=TODAY - 20 * DAY).where(~usage_days.c.written)
    database.write_now(lambda connection: connection.execute(long_ago).close())
    return database.read_now(daily.waiting)


def test_models_without_a_cost_are_those_of_daily_sums_and_hours(
    database: Database, owners: list[Token], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage_of = {"requested_model": "asked", "cached_tokens": 2, "cache_write_tokens": 1, "reasoning_tokens": 3}
    days = (LATE, TODAY + timedelta(hours=1))
    rows = [a_settled_request(owners[0], **usage_of, model="free", admitted_at=day) for day in days]
    rows.append(a_settled_request(owners[0], **usage_of, model="old", admitted_at=TODAY - 40 * DAY))
    database.write_now(lambda connection: ledger.roll_up(connection, rows))
    sum_up(database)
    expected = UnpricedModel(
        provider="openai",
        model="free",
        requested_model="asked",
        requests=2,
        unpriced=2,
        input_tokens=6,
        output_tokens=8,
        cached_tokens=4,
        cache_write_tokens=2,
        cache_write_1h_tokens=0,
        reasoning_tokens=6,
        details=None,
    )
    until = TODAY + timedelta(hours=2)
    assert database.read_now(usage.unpriced_models, TODAY - 30 * DAY, until) == ([expected], until)
    # There are too many hourly sums since the last day that is summed up.
    more = [row(owners[0], TODAY + timedelta(hours=1)) for _ in range(101)]
    database.write_now(
        lambda connection: ledger.roll_up(
            connection,
            [replace(one, result=replace(one.result, model=f"model {number}")) for number, one in enumerate(more)],
        )
    )
    monkeypatch.setattr(usage, "MAX_ROWS", 100)
    summed = attrs.evolve(
        expected, **{name: getattr(expected, name) // 2 for name in ("requests", "unpriced", *TOKENS)}
    )
    last = max(database.read_now(daily.written, TODAY - 30 * DAY, TODAY)) + DAY
    assert database.read_now(usage.unpriced_models, TODAY - 30 * DAY, until) == ([summed], last)
    monkeypatch.setattr(usage, "MAX_ROWS", 3)
    with pytest.raises(usage.TooManyRows):
        database.read_now(usage.unpriced_models, TODAY - 30 * DAY, until)
