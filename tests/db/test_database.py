from __future__ import annotations

import threading
from datetime import timedelta

import pytest
import trio
from sqlalchemy import Column, ForeignKey, Integer, MetaData, String, Table, delete, func, insert, select, text, update

from db import Connection
from db.database import Database, open_database, opened
from db.dsn import Target
from db.errors import BrokenReference, Contention, DatabaseError, Duplicate, Refused, SchemaMismatch, Unavailable
from db.options import Options
from db.statistics import Connections
from tests.databases.kinds import SERVERS, on

METADATA = MetaData()
ROWS = Table("rows_of_test", METADATA, Column("id", Integer, primary_key=True), Column("word", String(20)))
CHILDREN = Table(
    "children_of_test", METADATA, Column("id", Integer, primary_key=True), Column("row", ForeignKey(ROWS.c.id))
)


class Boom(Exception):
    pass


def add(connection: Connection, number: int, word: str = "") -> int:
    connection.execute(insert(ROWS), [{"id": number, "word": word}])
    return number


def count(connection: Connection) -> int:
    return connection.execute(select(func.count()).select_from(ROWS)).scalar_one()


def add_and_fail(connection: Connection) -> None:
    add(connection, 1)
    raise Boom


def clear(connection: Connection) -> None:
    connection.execute(delete(ROWS))


def select_for_update(connection: Connection, number: int) -> None:
    connection.execute(select(ROWS).where(ROWS.c.id == number).with_for_update()).all()


@pytest.fixture(autouse=True)
def tables(database: Database) -> None:
    database.write_now(METADATA.create_all)
    database.write_now(clear)


async def test_a_write_is_committed_and_its_result_returned(database: Database) -> None:
    assert await database.write(add, 7) == 7
    assert await database.read(count) == 1
    assert database.write_now(add, 8) == 8
    assert database.read_now(count) == 2


async def test_an_exception_rolls_back_and_comes_through(database: Database) -> None:
    with pytest.raises(Boom):
        await database.write(add_and_fail)
    assert await database.read(count) == 0
    assert database.connections.in_use == 0


async def test_a_function_that_reads_cannot_write(database: Database) -> None:
    with pytest.raises(Refused, match="only reads tried to write"):
        await database.read(add, 1)
    assert await database.read(count) == 0
    assert await database.write(add, 1) == 1


async def test_a_read_sees_one_state_throughout(database: Database) -> None:
    def count_twice(connection: Connection) -> tuple[int, int]:
        before = count(connection)
        database.write_now(add, 1)
        return before, count(connection)

    assert await database.read(count_twice) == (0, 0)
    assert await database.read(count) == 1


async def test_a_write_reads_what_others_have_committed_meanwhile(database: Database) -> None:
    """Under REPEATABLE READ a counter would be decided on by an old figure."""
    if database.target.driver == "sqlite":
        return  # nobody else writes meanwhile

    def count_twice(connection: Connection) -> tuple[int, int]:
        before = count(connection)
        database.write_now(add, 1)
        return before, count(connection)

    assert await database.write(count_twice) == (0, 1)


def twice(connection: Connection) -> None:
    add(connection, 1)
    add(connection, 1)


def orphan(connection: Connection) -> None:
    connection.execute(insert(CHILDREN), [{"id": 1, "row": 99}])


def missing_table(connection: Connection) -> None:
    connection.execute(text("SELECT secretcolumn FROM secrettable"))


def missing_column(connection: Connection) -> None:
    connection.execute(text("SELECT secretcolumn FROM rows_of_test"))


def nonsense(connection: Connection) -> None:
    connection.execute(text("SELECTT secretcolumn"))


@pytest.mark.parametrize(
    ("fn", "error"),
    [
        (twice, Duplicate),
        (orphan, BrokenReference),
        (missing_table, SchemaMismatch),
        (missing_column, SchemaMismatch),
        (nonsense, Refused),
    ],
)
async def test_errors_have_our_own_words(database: Database, fn: object, error: type[DatabaseError]) -> None:
    assert callable(fn)
    with pytest.raises(error) as caught:
        await database.write(fn)
    message = str(caught.value)
    assert type(caught.value) is error
    assert message.startswith(str(database.target))
    assert "secret" not in message
    assert "\n" not in message
    assert await database.read(count) == 0
    assert database.connections.in_use == 0


async def test_values_are_hidden_from_tracebacks(database: Database) -> None:
    await database.write(add, 1, "s3cret")
    with pytest.raises(Duplicate) as caught:
        await database.write(add, 1, "s3cret")
    assert "s3cret" not in f"{caught.value.__cause__}"


async def test_a_connection_is_in_use_for_the_time_of_a_transaction(database: Database) -> None:
    assert await database.write(lambda _: database.connections.in_use) == 1
    assert await database.read(lambda _: database.connections.in_use) == 1
    assert database.connections.in_use == 0


async def test_cancelling_a_wait_for_a_connection_runs_nothing(database: Database) -> None:
    started, release = threading.Event(), threading.Event()
    ran: list[Connection] = []

    def hold(_: Connection) -> None:
        started.set()
        release.wait()

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(database.write, hold)
        await trio.to_thread.run_sync(started.wait)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0.02) as scope:
            await database.write(ran.append)
        release.set()
    assert scope.cancelled_caught
    assert ran == []


async def test_a_function_that_has_started_runs_to_its_end(database: Database) -> None:
    started, release = threading.Event(), threading.Event()

    def add_slowly(connection: Connection) -> int:
        started.set()
        release.wait()
        return add(connection, 5)

    async def cancel(scope: trio.CancelScope) -> None:
        await trio.to_thread.run_sync(started.wait)
        scope.cancel()
        release.set()

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel, scope)
            assert await database.write(add_slowly) == 5
    assert await database.read(count) == 1


async def test_slow_readers_leave_a_connection_to_writers(database: Database) -> None:
    started, release = threading.Semaphore(0), threading.Event()

    def hold(_: Connection) -> None:
        started.release()
        release.wait()

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(database.read, hold)
        for _ in range(3):
            await trio.to_thread.run_sync(started.acquire)
        give_up = threading.Timer(5, release.set)  # lets go of everything should the write have to wait
        give_up.start()
        await database.write(add, 1)
        waited = release.is_set()
        give_up.cancel()
        release.set()
    assert not waited


@on(*SERVERS)
async def test_no_more_connections_than_the_pool_is_large(database: Database) -> None:
    seen: list[int] = []
    waiting: list[int] = []
    gate = threading.Barrier(4)

    def note(_: Connection) -> None:
        gate.wait(10)
        seen.append(database.connections.in_use)
        waiting.append(database.connections.waiting)
        gate.wait(10)

    async with trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(database.write, note)
    assert set(seen) == {4}
    assert set(waiting) == {8, 4, 0}
    assert database.connections == Connections(in_use=0, idle=2, limit=4, waiting=0)


@on(*SERVERS)
def test_a_connection_is_replaced_at_the_end_of_its_life(shared_target: Target) -> None:
    session = "pg_backend_pid()" if shared_target.driver == "postgres" else "CONNECTION_ID()"

    def who(connection: Connection) -> int:
        return int(connection.exec_driver_sql(f"SELECT {session}").scalar_one())

    with opened(shared_target, Options(max_lifetime=3600)) as database:
        assert len({database.read_now(who) for _ in range(3)}) == 1
    with opened(shared_target, Options(max_lifetime=1e-6)) as database:
        assert len({database.read_now(who) for _ in range(3)}) == 3


@on(*SERVERS)
async def test_a_deadlock_is_run_again_until_both_are_through(database: Database) -> None:
    for number in (1, 2):
        await database.write(add, number)
    gate = threading.Barrier(2)
    calls: list[tuple[int, int]] = []

    def swap(connection: Connection, first: int, second: int) -> None:
        again = (first, second) in calls
        calls.append((first, second))
        for number in (first, second):
            connection.execute(update(ROWS).where(ROWS.c.id == number).values(word=f"{first}{second}"))
            if number == first and not again:
                gate.wait(10)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(database.write, swap, 1, 2)
        nursery.start_soon(database.write, swap, 2, 1)
    assert len(calls) == 3
    assert database.statistics.retries == {"contention": 1, "disconnected": 0, "read_only": 0}
    words = await database.read(lambda connection: connection.scalars(select(ROWS.c.word)).all())
    assert set(words) in ({"12"}, {"21"})


@on(*SERVERS)
async def test_a_lock_that_never_comes_free_is_contention_in_the_end(database: Database) -> None:
    await database.write(add, 1)
    calls = []

    def take_at_once(connection: Connection) -> None:
        calls.append(1)
        connection.execute(select(ROWS).with_for_update(nowait=True))

    def hold(connection: Connection) -> None:
        select_for_update(connection, 1)
        with pytest.raises(Contention, match="another transaction holds a row"):
            database.write_now(take_at_once)

    await database.write(hold)
    assert len(calls) == 5
    assert (database.statistics.retries["contention"], database.statistics.failures["contention"]) == (4, 1)
    await database.write(take_at_once)


@on(*SERVERS)
async def test_a_lock_that_was_waited_for_in_vain_is_not_waited_for_again(
    database: Database, shared_target: Target
) -> None:
    """Each wait lasts as long as a statement may; five in a row would last five times as long."""
    calls = []

    def take(connection: Connection) -> None:
        calls.append(1)
        connection.execute(update(ROWS).where(ROWS.c.id == 1).values(word="taken"))

    async with open_database(shared_target, Options(statement_timeout=1.0)) as impatient:
        await database.write(add, 1)

        def hold(connection: Connection) -> None:
            select_for_update(connection, 1)
            with pytest.raises((Contention, Unavailable)):
                impatient.write_now(take)

        await database.write(hold)
    assert len(calls) == 1


def test_what_the_server_says_about_itself(database: Database) -> None:
    facts = database.read_now(database.describe)
    product, _, number = facts.version.partition(" ")
    assert product in ("SQLite", "PostgreSQL", "MySQL", "MariaDB")
    assert number[0].isdigit()
    assert abs(facts.clock_skew) < timedelta(seconds=5)
    assert (facts.max_connections is None) == (product == "SQLite")


@on("sqlite")
def test_a_database_in_memory_is_one_connection(database: Database) -> None:
    with opened(Target("sqlite"), Options()) as memory:
        memory.write_now(METADATA.create_all)
        memory.write_now(add, 1)
        assert memory.read_now(count) == 1
        assert memory.connections == Connections(in_use=0, idle=1, limit=1, waiting=0)
        assert memory.read_now(memory.sizes).keys() == {"bytes", "pages", "free_pages"}
