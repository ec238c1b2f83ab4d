from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Update, delete, event, insert, select, update

from db import Connection
from db.database import Database, opened
from db.options import Options
from db.queries import daily, ledger, projects, pruning, tokens
from db.queries.proof import PROVEN, Proof, WrongHour, prove, sum_up_again
from db.queries.repair import repair
from db.queries.rows import first_id
from db.records import DETAIL_SUMS, SettledRequest, Token
from db.schema import SUMS, requests, usage_daily, usage_days, usage_hourly
from db.schema import tokens as token_table
from tests.databases.kinds import on
from tests.databases.scratch import Scratch
from tests.db.queries.factories import a_project, a_settled_request, a_token

HOUR = timedelta(hours=1)
#: A day that has ended, and one before it.
DAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=3)
NIGHT = DAY + 23 * HOUR


@pytest.fixture
def database(migrated_database: Scratch) -> Iterator[Database]:
    with opened(migrated_database.target, Options()) as database:
        yield database
        assert database.connections.in_use == 0


@pytest.fixture
def token(database: Database) -> Token:
    """A token with requests of all kinds in two days, whose daily sums are written."""
    project = a_project()
    token = a_token(project.id)
    usage: dict[str, Any] = {name: place * 10 + 7 for place, name in enumerate(PROVEN)}
    usage["usage_details"] = {name: place + 1 for place, name in enumerate(DETAIL_SUMS)}
    rows = [
        a_request(token, DAY, **usage),
        a_request(token, DAY + timedelta(minutes=59, seconds=59), model="b", **usage),
        a_request(token, DAY + HOUR, model="b", labels={"team": "a"}, summed_labels={"team": "a"}, **usage),
        a_request(token, DAY + HOUR, outcome="void", requested_model=""),
        # Of the release before.
        a_request(token, DAY + HOUR, requested_model=None),
        a_request(token, NIGHT + 59 * timedelta(minutes=1), kind="late", origin_id="x", model="c", **usage),
        a_request(token, NIGHT + HOUR, outcome="rejected"),
    ]

    def fill(connection: Connection) -> None:
        projects.create(connection, project)
        tokens.create(connection, token)
        ledger.reserve(connection, [row.reservation for row in rows])
        ledger.settle(connection, rows)
        ledger.roll_up(connection, rows)
        ledger.add_to_counters(connection, {token.id: 5}, DAY)

    database.write_now(fill)
    sum_up(database)
    assert proof(database) == Proof([], [], [], 0, 0)
    return token


def a_request(token: Token, at: datetime, **fields: Any) -> SettledRequest:
    row_id = f"{first_id(at)}-7000-8000-{random.getrandbits(48):012x}"
    usual = {"id": row_id, "admitted_at": at, "settled_at": at, "requested_model": "gpt"}
    return a_settled_request(token, **usual | fields)


def sum_up(database: Database) -> None:
    database.write_now(daily.mark)
    change(database, update(usage_days).values(marked_at=DAY))
    for day, marked_at in database.read_now(daily.waiting):
        totals: dict[tuple[Any, ...], dict[str, Any]] = {}
        daily.merge(totals, database.write_now(daily.sum_up, day, database.read_now(daily.project_ids, "", 10)))
        database.write_now(daily.finish, day, marked_at, list(totals.values()))
    assert len(database.read_now(daily.written, DAY, DAY + timedelta(days=2))) == 2


def change(database: Database, statement: Any) -> None:
    def execute(connection: Connection) -> None:
        assert connection.execute(statement).rowcount

    database.write_now(execute)


def proof(database: Database) -> Proof:
    return database.read_now(prove)


def in_hour(hour: datetime, **values: Any) -> Update:
    return update(usage_hourly).where(usage_hourly.c.hour == hour).values(**values)


def test_a_token_that_is_not_there_is_found(database: Database, token: Token) -> None:
    change(database, delete(token_table).where(token_table.c.id == token.id))
    assert proof(database) == Proof([ledger.Imbalance(token.id, 0, 5, 5, 0)], [], [], 0, 0)


@pytest.mark.parametrize("more", [1, -1])
def test_a_wrong_hourly_sum_is_found_and_repaired(database: Database, token: Token, more: int) -> None:
    for place, name in enumerate(PROVEN):
        change(database, in_hour(NIGHT, **{name: usage_hourly.c[name] + more}))

        expected = place * 10 + 7
        found = proof(database)
        assert found.tokens == []
        assert found.hours == [WrongHour(token.id, NIGHT, name, expected, expected + more)]
        # Of the project, and of the whole proxy.
        assert [(one.day, one.sum, one.expected, one.found) for one in found.days] == [
            (DAY, name, expected + more, expected)
        ] * 2

        database.write_now(repair, token.id)
        assert proof(database) == Proof([], [], [], 0, 0)
        # The days of what was repaired are not compared before.
        sum_up(database)
        assert proof(database) == Proof([], [], [], 0, 0)


def test_sums_of_two_hours_that_differ_by_the_same_are_found(database: Database, token: Token) -> None:
    change(database, in_hour(NIGHT, cost_nanousd=usage_hourly.c.cost_nanousd - 5))
    change(database, in_hour(DAY, cost_nanousd=usage_hourly.c.cost_nanousd + 5))
    assert [one.hour for one in proof(database).hours] == [DAY, NIGHT]


def test_a_lost_row_of_usage_is_found_and_the_sums_are_kept(database: Database, token: Token) -> None:
    change(database, delete(requests).where(requests.c.admitted_at == DAY))
    found = proof(database)
    assert len(found.tokens) == 1
    assert {one.sum for one in found.hours} == {*PROVEN}
    database.write_now(repair, token.id)
    assert proof(database).hours == found.hours


@pytest.mark.parametrize("scope", ["project", "", "label.team"])
def test_wrong_daily_sums_are_found_and_made_again(database: Database, token: Token, scope: str) -> None:
    scope = token.project_id if scope == "project" else scope
    mine = (usage_daily.c.scope == scope, usage_daily.c.day == DAY)
    wrong = {name: usage_daily.c[name] + place for place, name in enumerate(SUMS, start=-5) if place}
    change(database, update(usage_daily).where(*mine).values(wrong))

    found = proof(database)
    assert (found.tokens, found.hours) == ([], [])
    assert {(one.day, one.scope, one.sum, one.found - one.expected) for one in found.days} == {
        (DAY, scope, name, place) for place, name in enumerate(SUMS, start=-5) if place
    }

    database.write_now(sum_up_again, {DAY})
    assert proof(database).days == []
    sum_up(database)
    assert proof(database).days == []


def test_days_that_the_release_before_has_summed_up_are_found_and_made_again(database: Database, token: Token) -> None:
    known = [column for column in usage_daily.c if column.name not in DETAIL_SUMS]

    def write_again(connection: Connection) -> None:
        rows = [dict(row) for row in connection.execute(select(*known)).mappings()]
        connection.execute(delete(usage_daily))
        connection.execute(insert(usage_daily), rows)

    database.write_now(write_again)
    found = proof(database)
    assert (found.tokens, found.hours) == ([], [])
    assert {(one.day, one.sum, one.found) for one in found.days} == {(DAY, name, 0) for name in DETAIL_SUMS}
    database.write_now(sum_up_again, {DAY})
    sum_up(database)
    assert proof(database) == Proof([], [], [], 0, 0)


@pytest.mark.parametrize("scope", ["project", "", "label.team"])
def test_missing_and_unknown_daily_sums_are_found(database: Database, token: Token, scope: str) -> None:
    scope = token.project_id if scope == "project" else scope
    mine = (usage_daily.c.scope == scope, usage_daily.c.day == DAY)
    moved = {"answered_model": "none"} if scope != token.project_id else {"series": "none"}
    one = proof_series(database, scope)
    change(database, update(usage_daily).where(*mine, usage_daily.c.series == one).values(**moved))
    assert {(one.scope, one.sum) for one in proof(database).days} >= {(scope, "requests"), (scope, "duration_50")}
    change(database, delete(usage_daily).where(*mine))
    found = [one for one in proof(database).days if one.sum == "requests"]
    assert sum(one.expected - one.found for one in found) == (1 if scope == "label.team" else 4)


def proof_series(database: Database, scope: str) -> str:
    def read(connection: Connection) -> str:
        mine = (usage_daily.c.scope == scope, usage_daily.c.day == DAY, usage_daily.c.requests == 1)
        return str(min(connection.scalars(usage_daily.select().with_only_columns(usage_daily.c.series).where(*mine))))

    return database.read_now(read)


def test_a_day_whose_sums_are_not_written_is_not_compared(database: Database, token: Token) -> None:
    change(database, update(usage_daily).values(requests=100))
    change(database, update(usage_days).values(written=False))
    assert proof(database).days == []


def test_hours_with_pruned_rows_are_counted_and_cannot_be_proven(database: Database, token: Token) -> None:
    done, _ = database.write_now(pruning.prune, NIGHT + HOUR, 100)
    assert done.rows == 6

    assert proof(database) == Proof([], [], [], 3, 5)
    # A later late row is in an hour of which rows were pruned.
    database.write_now(repair, token.id)
    assert proof(database) == Proof([], [], [], 3, 5)


def test_a_sum_that_is_less_than_the_rows_is_wrong_also_if_others_were_pruned(database: Database, token: Token) -> None:
    database.write_now(pruning.prune, NIGHT + HOUR, 1)
    assert proof(database) == Proof([], [], [], 1, 1)
    change(database, in_hour(DAY, cost_nanousd=usage_hourly.c.cost_nanousd * 2, input_tokens=0))
    (wrong,) = proof(database).hours
    assert (wrong.sum, wrong.expected, wrong.found) == ("input_tokens", 7, 0)
    database.write_now(repair, token.id)
    assert proof(database).hours == []


def test_late_usage_that_became_void_by_migrating_down_still_counts(database: Database, token: Token) -> None:
    late = requests.c.kind == "late"
    change(database, update(requests).where(late).values(outcome="void", requested_model=None, kind="request"))
    assert proof(database).differences == []


@on("mysql", "mariadb")
def test_hours_and_days_are_grouped_by_sorting(database: Database) -> None:
    def plans(connection: Connection) -> list[str]:
        asked: list[tuple[str, Any]] = []

        def record(_connection: Any, _cursor: Any, text: str, values: Any, *_: Any) -> None:
            if "UNION ALL" in text:
                asked.append((text, values))

        event.listen(connection, "before_cursor_execute", record)
        prove(connection)
        event.remove(connection, "before_cursor_execute", record)
        return [str(connection.exec_driver_sql(f"EXPLAIN {text}", values).all()).lower() for text, values in asked]

    of_hours, of_days = database.read_now(plans)
    assert "using temporary" not in of_hours + of_days
