from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, delete, event, select, update

from db.database import Database, opened
from db.options import Options
from db.queries import ledger, projects, pruning, repair, tokens
from db.records import Reservation, SettledRequest, Token
from db.schema import requests, usage_hourly
from db.schema import tokens as token_table
from llm_proxy.identifiers import new_id, request_id
from tests.databases.scratch import Scratch
from tests.db.queries.factories import NOON, a_project, a_settled_request, a_token


@pytest.fixture
def database(migrated_database: Scratch) -> Iterator[Database]:
    with opened(migrated_database.target, Options()) as database:
        yield database
        assert database.connections.in_use == 0


@pytest.fixture
def token(database: Database) -> Token:
    """A token whose counts agree: five settled requests in three buckets, a void one, and one in flight."""
    project = a_project()
    token = a_token(project.id)
    rows = [
        settled(token, model="a", input_tokens=10, usage_details={"web_searches": 3}),
        settled(token, model="a", input_tokens=20, outcome="upstream_error", usage_details={"web_searches": 4}),
        settled(token, model="b", usage_details={"input_audio_tokens": 5}),
        settled(token, model="a", admitted_at=NOON + timedelta(hours=1)),
        settled(token, model="a", admitted_at=NOON + timedelta(hours=1, minutes=59)),
        settled(token, model="a", outcome="void"),
    ]

    def fill(connection: Connection) -> None:
        projects.create(connection, project)
        tokens.create(connection, token)
        moved = [row.reservation for row in rows]
        flying = Reservation(request_id(), new_id(), token.id, project.id, "openai", "POST", "/", NOON)
        ledger.reserve(connection, [*moved, flying])
        ledger.settle(connection, rows)
        ledger.roll_up(connection, rows)
        ledger.add_to_counters(connection, {token.id: 6}, NOON)

    database.write_now(fill)
    assert database.read_now(ledger.verify) == []
    return token


def settled(token: Token, **fields: Any) -> SettledRequest:
    return a_settled_request(token, **fields)


def sums(database: Database) -> tuple[list[Any], int]:
    """The hourly sums and the counter."""

    def read(connection: Connection) -> tuple[list[Any], int]:
        sums = connection.execute(select(usage_hourly).order_by(usage_hourly.c.hour, usage_hourly.c.model)).all()
        return list(sums), connection.scalars(select(token_table.c.request_count)).one()

    return database.read_now(read)


@pytest.mark.parametrize("counter", [0, 5, 7, 1000])
def test_a_wrong_counter_is_set_right(database: Database, token: Token, counter: int) -> None:
    before = sums(database)
    database.write_now(lambda connection: connection.execute(update(token_table).values(request_count=counter)))
    assert len(database.read_now(ledger.verify)) == 1

    database.write_now(repair.repair, token.id)

    assert database.read_now(ledger.verify) == []
    assert sums(database) == before


def test_lost_and_lowered_sums_are_written_anew(database: Database, token: Token) -> None:
    before = sums(database)

    def lose(connection: Connection) -> None:
        connection.execute(delete(usage_hourly).where(usage_hourly.c.model == "b"))
        connection.execute(
            update(usage_hourly).where(usage_hourly.c.requests == 2).values(requests=1, input_tokens=0, errors=0)
        )

    database.write_now(lose)
    assert len(database.read_now(ledger.verify)) == 1

    database.write_now(repair.repair, token.id)

    assert database.read_now(ledger.verify) == []
    assert sums(database) == before


@pytest.mark.parametrize("hours", [0, 5], ids=["beside requests", "alone"])
def test_lost_sums_of_late_usage_are_written_anew(database: Database, token: Token, hours: int) -> None:
    admitted_at = NOON + timedelta(hours=hours)
    late = settled(
        token, kind="late", origin_id="x", duration_us=None, model="c", input_tokens=7, admitted_at=admitted_at
    )

    def book(connection: Connection) -> None:
        ledger.add_late(connection, [late])
        ledger.roll_up(connection, [late])

    database.write_now(book)
    before = sums(database)
    lost = usage_hourly.c.model == "c"
    database.write_now(lambda connection: connection.execute(delete(usage_hourly).where(lost)))
    assert sums(database) != before

    database.write_now(repair.repair, token.id)

    assert sums(database) == before


def test_requests_are_summed_up_while_they_are_read(
    database: Database, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many of them would otherwise be summed up in a transaction that is idle, which servers end."""
    streamed, added = [], []

    def note(connection: Connection, cursor: object, statement: str, values: object, context: Any, many: bool) -> None:
        if "FROM requests" in statement:
            streamed.append(context.execution_options.get("yield_per"))

    def roll_up(connection: Connection, rows: Iterable[SettledRequest]) -> None:
        added.append(rows)
        ledger.roll_up(connection, rows)

    database.write_now(lambda connection: connection.execute(update(usage_hourly).values(input_tokens=7)).close())
    monkeypatch.setattr(repair, "roll_up", roll_up)
    event.listen(Engine, "before_cursor_execute", note)
    try:
        database.write_now(repair.repair, token.id)
    finally:
        event.remove(Engine, "before_cursor_execute", note)

    assert streamed == [1000] * (1 + len(added))
    assert added
    assert all(isinstance(rows, Iterator) for rows in added)


def test_sums_of_rows_that_are_gone_are_believed(database: Database, token: Token) -> None:
    before = sums(database)
    # All rows of one hour and model, and one of two of another.
    gone = (requests.c.model == "b") | (requests.c.admitted_at == NOON + timedelta(hours=1))
    database.write_now(lambda connection: connection.execute(delete(requests).where(gone)))

    database.write_now(repair.repair, token.id)

    assert sums(database) == before


def test_details_of_pruned_rows_are_kept(database: Database, token: Token) -> None:
    done, _ = database.write_now(pruning.prune, NOON + timedelta(minutes=1), 1)
    assert done.rows == 1
    mine = (usage_hourly.c.model == "a", usage_hourly.c.pruned == 1)
    database.write_now(lambda connection: connection.execute(update(usage_hourly).where(*mine).values(input_tokens=0)))

    database.write_now(repair.repair, token.id)

    found = select(usage_hourly.c.input_tokens, usage_hourly.c.web_searches).where(*mine)
    assert database.read_now(lambda connection: connection.execute(found).all()) == [(20, 7)]


def test_a_ledger_that_adds_up_is_not_changed(database: Database, token: Token) -> None:
    before = sums(database)

    database.write_now(repair.repair, token.id)
    database.write_now(repair.repair, new_id())

    assert sums(database) == before


def test_other_tokens_are_left_alone(database: Database, token: Token) -> None:
    other = a_token(token.project_id, request_count=9)
    database.write_now(tokens.create, other)

    database.write_now(repair.repair, token.id)

    (difference,) = database.read_now(ledger.verify)
    assert (difference.token_id, difference.counter) == (other.id, 9)
