from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio
from attrs import frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    BigInteger,
    BindParameter,
    Boolean,
    Column,
    Index,
    Integer,
    MetaData,
    Table,
    bindparam,
    delete,
    func,
    insert,
    select,
)

from db import Connection
from db.database import Database
from db.dialects.bulk import BulkInsert, DeleteByKeys, SelectByKeys
from db.dialects.statements import (
    add_to_counter,
    by_index,
    by_key,
    clock,
    for_update,
    newest_first,
    upsert_add,
    without_sorting,
)
from db.errors import DatabaseError, Duplicate
from db.types import Digest, Id, Name, Timestamp
from tests.databases.kinds import SERVERS, on
from tests.databases.sent import sent_from_now_on, trips_from_now_on

METADATA = MetaData()
COUNTERS = Table(
    "counters_of_test",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("counter", BigInteger, nullable=False),
    Column("used_at", Timestamp),
)
SUMS = Table(
    "sums_of_test",
    METADATA,
    Column("hour", Timestamp, primary_key=True),
    Column("model", Name, primary_key=True),
    Column("note", Name),
    Column("hits", BigInteger, nullable=False),
    Column("misses", BigInteger, nullable=False),
)
THINGS = Table(
    "things_of_test",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("digest", Digest),
    Column("active", Boolean),
    Column("time", Timestamp),
    Column("name", Name),
)
EVENTS = Table(
    "events_of_test",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("owner", Id, nullable=False),
    Index("ix_events_of_test_owner_id", "owner", "id"),
)
NOW = datetime(2026, 7, 1, 12, 0, 0, 1, tzinfo=UTC)
HOUR = NOW.replace(microsecond=0)

ADD = upsert_add(SUMS, keys=("hour", "model"), sums=("hits", "misses"))


@frozen
class Thing:
    number: int
    digest: bytes | None
    active: bool | None
    time: datetime | None
    name: str | None


NAMES = ("number", "digest", "active", "time", "name")
KEYS: BindParameter[Any] = bindparam("keys", expanding=True)
insert_things = BulkInsert(insert(THINGS), NAMES)
by_digest = SelectByKeys(
    select(*(THINGS.c[name] for name in NAMES)).where(THINGS.c.digest.in_(KEYS)).order_by(THINGS.c.number),
    Digest(),
    Thing,
)
delete_things = DeleteByKeys(THINGS.c.number)


@pytest.fixture(autouse=True)
def tables(database: Database) -> None:
    database.write_now(METADATA.create_all)
    database.write_now(clear)


def clear(connection: Connection) -> None:
    for table in METADATA.sorted_tables:
        connection.execute(delete(table))


def statements_of(database: Database, fn: Callable[..., Any], *args: object) -> int:
    """How many statements a write sends, a statement for many rows counting once."""
    sent: list[str] = []

    def run(connection: Connection) -> None:
        nonlocal sent
        sent = sent_from_now_on(connection)
        fn(connection, *args)

    database.write_now(run)
    return len(sent)


def sums(connection: Connection) -> list[tuple[str, str | None, int, int]]:
    rows = connection.execute(select(SUMS.c.model, SUMS.c.note, SUMS.c.hits, SUMS.c.misses).order_by(SUMS.c.model))
    return [tuple(row) for row in rows]


def counters(connection: Connection) -> dict[str, tuple[int, datetime | None]]:
    rows = connection.execute(select(COUNTERS.c.id, COUNTERS.c.counter, COUNTERS.c.used_at))
    return {row.id: (row.counter, row.used_at) for row in rows}


def make_counters(connection: Connection, ids: list[str]) -> None:
    connection.execute(insert(COUNTERS), [{"id": name, "counter": 10} for name in ids])


def hit(model: str, hits: int = 1, misses: int = 0, note: str | None = None) -> dict[str, object]:
    return {"hour": HOUR, "model": model, "note": note, "hits": hits, "misses": misses}


def test_upsert_adds_where_the_row_is_there(database: Database) -> None:
    add = BulkInsert(ADD, [column.name for column in SUMS.columns])
    assert statements_of(database, add, [hit("a", 1, 2, "first"), hit("b", 5)]) == 1
    assert statements_of(database, add, [hit("a", 10, 20, "second"), hit("c", 7), hit("é", -1)]) == 1
    assert database.read_now(sums) == [("a", "first", 11, 22), ("b", None, 5, 0), ("c", None, 7, 0), ("é", None, -1, 0)]


def test_upsert_is_a_statement_like_others(database: Database) -> None:
    for _ in range(2):
        database.write_now(lambda connection: connection.execute(ADD, [hit("a"), hit("A")]).close())
        database.write_now(lambda connection: connection.execute(ADD, hit("a")).close())
    assert database.read_now(sums) == [("A", None, 2, 0), ("a", None, 4, 0)]


def test_counters_of_many_rows_in_one_statement(database: Database) -> None:
    ids = [f"id-{number:04}" for number in range(300)]
    amounts = {name: number % 7 - 3 for number, name in enumerate(ids[:-1])} | {"nobody": 5}
    database.write_now(make_counters, ids)
    assert statements_of(database, add_to_counter, COUNTERS.c.counter, amounts, {COUNTERS.c.used_at: NOW}) == 1
    expected = {name: (10 + number % 7 - 3, NOW) for number, name in enumerate(ids[:-1])} | {ids[-1]: (10, None)}
    assert database.read_now(counters) == expected


def test_counters_without_amounts_send_nothing(database: Database) -> None:
    database.write_now(make_counters, ["a", "b"])
    assert statements_of(database, add_to_counter, COUNTERS.c.counter, {}) == 0
    assert statements_of(database, add_to_counter, COUNTERS.c.counter, {"a": 2**40}) == 1
    assert database.read_now(counters) == {"a": (10 + 2**40, None), "b": (10, None)}


@on(*SERVERS)
async def test_counters_add_up_among_many_writers(database: Database) -> None:
    ids = [f"id-{number}" for number in range(5)]
    await database.write(make_counters, ids)

    def lock_and_add(connection: Connection) -> None:
        query = select(COUNTERS).where(COUNTERS.c.id.in_(ids)).order_by(COUNTERS.c.id)
        connection.execute(for_update(query)).all()
        add_to_counter(connection, COUNTERS.c.counter, dict.fromkeys(reversed(ids), 1))

    async with trio.open_nursery() as nursery:
        for _ in range(24):
            nursery.start_soon(database.write, lock_and_add)
    assert await database.read(counters) == dict.fromkeys(ids, (34, None))


def things(count: int) -> list[Thing]:
    return [
        Thing(number, bytes([number % 256]) * 32, bool(number % 2), NOW + timedelta(seconds=number), f"%s {number} é")
        for number in range(count)
    ]


def test_many_rows_go_in_and_come_out_in_one_statement_each(database: Database) -> None:
    made = [*things(20), Thing(99, None, None, None, None)]
    assert statements_of(database, insert_things, made) == 1
    found = database.read_now(by_digest, [thing.digest for thing in made[3:7]])
    assert found == made[3:7]
    assert statements_of(database, delete_things, [0, 1, 2, 77]) == 1
    assert database.write_now(delete_things, [3, 4, 77]) == 2
    assert database.read_now(by_digest, [made[3].digest, made[5].digest]) == [made[5]]


def test_mappings_are_rows_too(database: Database) -> None:
    rows = [{"number": 1, "digest": bytes(32), "active": True, "time": NOW, "name": "x", "more": 1}]
    database.write_now(insert_things, rows)
    assert database.read_now(by_digest, [bytes(32)]) == [Thing(1, bytes(32), True, NOW, "x")]  # noqa: FBT003 - a record


@pytest.fixture
def trips(database: Database, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The round trips to a server from now on, once the schema is there and the ledger's writer has a connection."""
    write(database, clear)
    return trips_from_now_on(monkeypatch)


def write(database: Database, fn: Callable[..., Any], *args: object) -> Any:
    """Write as the ledger does."""
    return trio.run(database.write_unless_locked, fn, *args)


def test_nothing_to_do_sends_nothing(database: Database) -> None:
    assert statements_of(database, insert_things, []) == 0
    assert statements_of(database, by_digest, []) == 0
    assert statements_of(database, delete_things, []) == 0


def test_more_rows_than_one_round_trip_takes(database: Database) -> None:
    database.write_now(insert_things, things(1203))
    counted = select(func.count()).select_from(THINGS)
    assert database.read_now(lambda connection: connection.execute(counted).scalar_one()) == 1203


def test_what_does_not_fit_stops_all_rows(database: Database) -> None:
    made = things(3)
    with pytest.raises(ValueError, match="32 bytes"):
        database.write_now(insert_things, [*made, Thing(9, b"short", None, None, None)])
    assert database.read_now(by_digest, [thing.digest for thing in made]) == []


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40), max_size=8))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_text_is_never_taken_for_sql(database: Database, texts: list[str]) -> None:
    made = [Thing(number, bytes(32), None, None, name) for number, name in enumerate(texts)]
    database.write_now(clear)
    database.write_now(insert_things, made)
    assert database.read_now(by_digest, [bytes(32)]) == made


def lock(connection: Connection, skip_locked: bool) -> list[str]:
    query = for_update(select(COUNTERS.c.id).order_by(COUNTERS.c.id), skip_locked=skip_locked)
    return list(connection.scalars(query))


@on(*SERVERS)
def test_rows_that_others_have_locked_are_left_out(database: Database) -> None:
    database.write_now(make_counters, ["a", "b", "c"])

    def hold(connection: Connection) -> list[str]:
        connection.execute(for_update(select(COUNTERS).where(COUNTERS.c.id == "b"))).all()
        return database.write_now(lock, True)  # noqa: FBT003 - skip_locked

    assert database.write_now(hold) == ["a", "c"]


def test_rows_that_nobody_has_locked_are_all_there(database: Database) -> None:
    database.write_now(make_counters, ["a", "b", "c"])
    for skip_locked in (False, True):
        assert database.write_now(lock, skip_locked) == ["a", "b", "c"]


@on(*SERVERS)
async def test_a_lock_is_held_until_the_end_of_the_transaction(database: Database) -> None:
    await database.write(make_counters, ["a"])
    order: list[str] = []
    locked = threading.Event()

    def first(connection: Connection) -> None:
        lock(connection, False)  # noqa: FBT003 - skip_locked
        locked.set()
        time.sleep(0.05)
        order.append("first")

    def second(connection: Connection) -> None:
        locked.wait(10)
        lock(connection, False)  # noqa: FBT003 - skip_locked
        order.append("second")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(database.write, second)
        nursery.start_soon(database.write, first)
    assert order == ["first", "second"]


def test_the_clock_goes_on_within_a_transaction(database: Database) -> None:
    def look_twice(connection: Connection) -> tuple[datetime, datetime]:
        return clock(connection), clock(connection)

    before, after = database.read_now(look_twice)
    assert before < after
    assert before.tzinfo is UTC
    assert abs(before - datetime.now(UTC)) < timedelta(seconds=5)


@on(*SERVERS)
def test_a_transaction_begins_with_its_first_statement(database: Database, trips: list[str]) -> None:
    write(database, insert_things, things(1))
    trips.clear()
    assert write(database, delete_things, [0]) == 1
    assert [trip.split()[0].upper() for trip in trips] == ["DELETE", "COMMIT"]


@on(*SERVERS)
def test_what_nobody_waits_for_goes_with_the_next_statement(database: Database, trips: list[str]) -> None:
    made = things(4)

    def work(connection: Connection) -> tuple[int, list[Thing]]:
        insert_things(connection, made[:2])
        insert_things(connection, made[2:])
        # Only its own rows are counted.
        deleted = delete_things(connection, [0])
        add_to_counter(connection, COUNTERS.c.counter, {"a": 3})
        return deleted, by_digest(connection, [made[1].digest])

    write(database, work)
    write(database, clear)
    trips.clear()
    assert write(database, work) == (1, [made[1]])
    assert [trip.split()[0].upper() for trip in trips] == ["DELETE", "SELECT", "COMMIT"]
    trips.clear()
    write(database, insert_things, things(9)[8:])
    assert [trip.upper() for trip in trips] == ["COMMIT"]


@on("mysql", "mariadb")
def test_only_the_writer_of_the_ledger_sends_several_statements_at_once(database: Database) -> None:
    def two(connection: Connection) -> None:
        connection.exec_driver_sql("SELECT 1; SELECT 2")

    write(database, insert_things, things(1))
    for run in (database.read_now, database.write_now):
        with pytest.raises(DatabaseError):
            run(two)
    write(database, two)


@on("mysql", "mariadb")
def test_a_proxy_that_takes_one_statement_at_a_time_gets_them_so(
    database: Database, trips: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    database.write_now(clear)
    monkeypatch.setattr("db.dialects.mysql.connection._SEVERAL_STATEMENTS", 9)
    trips.clear()
    for number in range(2):
        write(database, insert_things, things(number + 1)[number:])
    assert [trip.split()[0] for trip in trips] == ["command", "SET", "INSERT", "COMMIT", "INSERT", "COMMIT"]


@on("mysql", "mariadb")
def test_a_long_statement_is_not_left_for_the_next_one(database: Database, trips: list[str]) -> None:
    rows = [Thing(number, None, None, None, "x" * 250) for number in range(3000)]
    write(database, insert_things, rows)
    assert [trip.split()[0] for trip in trips] == ["INSERT", "COMMIT"]


@on(*SERVERS)
def test_what_is_deferred_and_fails_is_an_error_of_its_transaction(database: Database, trips: list[str]) -> None:
    made = things(3)
    write(database, insert_things, made[:1])
    for then in (lambda _: None, lambda connection: by_digest(connection, [made[1].digest])):

        def work(connection: Connection, then: Callable[[Connection], Any] = then) -> None:
            insert_things(connection, made[1:2])
            insert_things(connection, made[:1])
            insert_things(connection, made[2:])
            then(connection)

        with pytest.raises(Duplicate):
            write(database, work)
        assert trips[-1].upper() == "ROLLBACK"
        assert write(database, by_digest, [thing.digest for thing in made]) == made[:1]
    write(database, insert_things, made[1:])
    assert database.connections.idle == 1


@on(*SERVERS)
def test_what_is_deferred_and_rolled_back_is_not_sent(database: Database, trips: list[str]) -> None:
    def fail(connection: Connection) -> None:
        insert_things(connection, things(1))
        raise ValueError("no")

    trips.clear()
    with pytest.raises(ValueError, match="no"):
        write(database, fail)
    assert [trip for trip in trips if trip != "ROLLBACK"] == []
    write(database, insert_things, things(1))


@on("postgres")
def test_a_statement_is_skipped_if_its_transaction_cannot_begin(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialect: Any = database._backend.write.dialect
    for wrong in ("BEGIN ISOLATION LEVEL NONE", f"{dialect._begin}; SET LOCAL lock_timeout = -5"):
        with monkeypatch.context() as patch:
            patch.setattr(dialect, "_begin", wrong)
            with pytest.raises(DatabaseError):
                database.write_now(insert_things, [Thing(1, None, None, None, None)])
    assert database.read_now(lambda connection: connection.scalar(select(func.count()).select_from(THINGS))) == 0


@on("postgres")
@pytest.mark.parametrize("owners", [["busy"], ["busy", "rare"]])
def test_postgresql_reads_by_the_named_index_if_most_rows_are_wanted(database: Database, owners: list[str]) -> None:
    rows = [{"id": f"{number:03d}", "owner": "busy" if number % 10 else "rare"} for number in range(1000)]

    def plans(connection: Connection) -> list[str]:
        connection.execute(insert(EVENTS), rows)
        connection.exec_driver_sql("ANALYZE events_of_test")
        event, all_rows = EVENTS.c, select(EVENTS)
        found = []
        with without_sorting(connection):
            for statement in (
                by_index(connection, all_rows.where(event.id >= "100"), (event.owner, event.id), owners),
                newest_first(connection, all_rows, event.id, ("100", "900"), (event.owner, owners[0])),
                by_key(connection, all_rows.where(event.id >= "100"), event.id),
            ):
                query = statement.limit(900).compile(connection, compile_kwargs={"literal_binds": True})
                found.append("\n".join(connection.exec_driver_sql(f"EXPLAIN {query}").scalars()))
        found.append(connection.exec_driver_sql("SHOW enable_sort").scalar_one())
        return found

    of_some, newest, in_range, sorting = database.write_now(plans)
    for plan, index in (
        (of_some, "ix_events_of_test_owner_id"),
        (newest, "ix_events_of_test_owner_id"),
        (in_range, "events_of_test_pkey"),
    ):
        assert f"using {index}" in plan
        assert "Filter" not in plan
    assert sorting == "on"
