from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, delete, func, insert, select, update

from db.database import Database, opened
from db.options import Options
from db.queries import ledger, projects, pruning, repair, tokens
from db.queries.pruning import Pruned, prune
from db.records import Reservation, SettledRequest, Token, Worker
from db.schema import requests, usage_hourly
from llm_proxy.identifiers import new_id
from tests.databases.scratch import Scratch
from tests.db.queries.factories import a_project, a_settled_request, a_token

DAY = timedelta(days=1)
TODAY = datetime(2027, 1, 15, 12, 30, tzinfo=UTC)


@pytest.fixture
def database(migrated_database: Scratch) -> Iterator[Database]:
    with opened(migrated_database.target, Options()) as database:
        yield database
        assert database.connections.in_use == 0


def at(time: datetime, number: int) -> dict[str, Any]:
    """The id and the time of a request that was admitted then."""
    digits = f"{int(time.timestamp() * 1000):012x}"
    return {"id": f"{digits[:8]}-{digits[8:]}-7{number:03x}-8000-000000000000", "admitted_at": time}


@pytest.fixture
def token(database: Database) -> Token:
    """A token with four requests a day for ten days, one of them void, and one in flight; its counts agree."""
    project = a_project()
    token = a_token(project.id)
    rows = [
        a_settled_request(
            token,
            **at(TODAY - day * DAY + timedelta(minutes=number), number),
            model="ab"[number % 2],
            outcome="void" if number == 3 else "ok",
        )
        for day in range(10)
        for number in range(4)
    ]
    flying = Reservation(at(TODAY, 99)["id"], new_id(), token.id, project.id, "openai", "POST", "/", TODAY)

    def fill(connection: Connection) -> None:
        projects.create(connection, project)
        tokens.create(connection, token)
        ledger.reserve(connection, [flying])
        write(connection, rows)
        ledger.add_to_counters(connection, {token.id: 31}, TODAY)

    database.write_now(fill)
    assert database.read_now(ledger.verify) == []
    return token


def write(connection: Connection, rows: list[SettledRequest]) -> None:
    for row in rows:
        connection.execute(insert(requests).values(**row.by_column()))
    ledger.roll_up(connection, rows)


def left(database: Database) -> int:
    return database.read_now(
        lambda connection: connection.execute(select(func.count()).select_from(requests)).scalar_one()
    )


def sums(database: Database) -> list[tuple[Any, ...]]:
    """The hourly sums without what is told of pruning."""
    shown = [column for column in usage_hourly.c if column.name != "pruned"]
    ordered = select(*shown).order_by(*usage_hourly.primary_key.columns)
    return database.read_now(lambda connection: list(map(tuple, connection.execute(ordered))))


def prune_all(database: Database, before: datetime, limit: int = 7) -> Pruned:
    rows = kept = 0
    last: str | None = ""
    while last is not None:
        done, last = database.write_now(prune, before, limit, last)
        rows, kept = rows + done.rows, kept + done.kept
    return Pruned(rows, kept)


def test_old_rows_are_pruned_and_the_ledger_adds_up(database: Database, token: Token) -> None:
    before = sums(database)
    assert prune_all(database, TODAY - 5 * DAY) == Pruned(16, 0)
    assert left(database) == 24
    assert database.read_now(ledger.verify) == []
    assert sums(database) == before
    assert prune_all(database, TODAY - 5 * DAY) == Pruned(0, 0)
    assert prune_all(database, TODAY + DAY) == Pruned(24, 0)
    assert left(database) == 0
    assert database.read_now(ledger.verify) == []
    assert sums(database) == before


def test_a_row_of_exactly_that_age_is_kept(database: Database, token: Token) -> None:
    oldest = TODAY - 9 * DAY
    assert prune_all(database, oldest) == Pruned(0, 0)
    assert prune_all(database, oldest + timedelta(milliseconds=1)) == Pruned(1, 0)


def test_a_row_that_is_lost_otherwise_is_still_found(database: Database, token: Token) -> None:
    prune_all(database, TODAY - 5 * DAY)

    def lose(connection: Connection) -> None:
        one = connection.scalars(select(requests.c.id).where(requests.c.outcome == "ok").limit(1)).one()
        connection.execute(delete(requests).where(requests.c.id == one))

    database.write_now(lose)
    (difference,) = database.read_now(ledger.verify)
    assert (difference.counter, difference.settled, difference.rolled_up, difference.in_flight) == (31, 29, 30, 1)


def test_what_the_sums_do_not_know_of_stays(database: Database, token: Token) -> None:
    database.write_now(
        lambda connection: connection.execute(
            update(usage_hourly).where(usage_hourly.c.model == "b").values(requests=0)
        ).close()
    )
    assert prune_all(database, TODAY + DAY) == Pruned(30, 10)
    assert left(database) == 10
    database.write_now(repair.repair, token.id)
    assert database.read_now(ledger.verify) == []
    assert prune_all(database, TODAY + DAY) == Pruned(10, 0)
    assert database.read_now(ledger.verify) == []


def test_a_repair_does_not_forget_what_was_pruned(database: Database, token: Token) -> None:
    before = sums(database)
    # Of an hour with three requests that count, the first one goes.
    assert prune_all(database, TODAY - 9 * DAY + timedelta(seconds=1)) == Pruned(1, 0)
    database.write_now(repair.repair, token.id)
    assert sums(database) == before

    def spoil(connection: Connection) -> None:
        connection.execute(update(usage_hourly).values(requests=usage_hourly.c.pruned, input_tokens=100))

    database.write_now(spoil)
    assert len(database.read_now(ledger.verify)) == 1
    database.write_now(repair.repair, token.id)
    assert database.read_now(ledger.verify) == []
    mutated = {row[:3]: row for row in before}
    for row in sums(database):
        assert row[4] == mutated[row[:3]][4]
        assert row[6] >= mutated[row[:3]][6]


def test_the_first_live_worker_prunes(database: Database) -> None:
    first, second = sorted([new_id(), new_id()])
    beat(database, second)
    assert database.read_now(pruning.is_first, second, 20 * timedelta(seconds=1))
    beat(database, first)
    assert database.read_now(pruning.is_first, first, timedelta(seconds=20))
    assert not database.read_now(pruning.is_first, second, timedelta(seconds=20))
    assert not database.read_now(pruning.is_first, new_id(), timedelta(seconds=20))
    assert not database.read_now(pruning.is_first, first, timedelta(seconds=-1))


def beat(database: Database, worker_id: str) -> None:
    database.write_now(ledger.beat, Worker(worker_id, "host", 1, "0", TODAY, TODAY))
