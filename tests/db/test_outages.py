"""What happens when a server goes away at the worst time."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import trio
from attrs import evolve
from sqlalchemy import Column, Integer, MetaData, Table, delete, func, insert, select

from db import Connection
from db.database import Database, opened
from db.dialects.bulk import BulkInsert
from db.dsn import Target
from db.errors import CommitUnknown, Unavailable
from db.options import Options
from tests.databases.kinds import SERVERS, Kind, on
from tests.databases.scratch import Databases
from tests.db.relay import Loss, Relay, relay_to

METADATA = MetaData()
ROWS = Table("rows_of_test", METADATA, Column("id", Integer, primary_key=True))
SUICIDE = {"postgres": "SELECT pg_terminate_backend(pg_backend_pid())", "mysql": "KILL CONNECTION_ID()"}
COUNTING = "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 1000) "
SLOW = COUNTING + "SELECT COUNT(*) FROM n a, n b, n c WHERE a.i + b.i * c.i > 7"
PATIENT = {
    Kind.POSTGRES: "SET LOCAL statement_timeout = 0",
    Kind.MYSQL: "SET innodb_lock_wait_timeout = 50, max_execution_time = 0",
    Kind.MARIADB: "SET innodb_lock_wait_timeout = 50, max_statement_time = 0",
}

pytestmark = on(*SERVERS)


def add(connection: Connection, number: int) -> None:
    connection.execute(insert(ROWS), [{"id": number}])


_insert = BulkInsert(insert(ROWS), ["id"])


def add_in_bulk(connection: Connection, number: int) -> None:
    _insert(connection, [{"id": number}])


def delete_one(connection: Connection) -> int:
    return connection.execute(delete(ROWS).where(ROWS.c.id == 1)).rowcount


def count(connection: Connection) -> int:
    return connection.execute(select(func.count()).select_from(ROWS)).scalar_one()


@pytest.fixture(autouse=True)
def table(database: Database) -> None:
    database.write_now(METADATA.create_all)
    database.write_now(lambda connection: connection.execute(delete(ROWS)).close())


@pytest.fixture
def relay(shared_target: Target) -> Iterator[Relay]:
    with relay_to(shared_target.host, shared_target.port) as relay:
        yield relay


@pytest.fixture
def through(relay: Relay, shared_target: Target) -> Iterator[Database]:
    """The module's database, through the relay."""
    with opened(evolve(shared_target, host="127.0.0.1", port=relay.port), Options(pool_size=2)) as database:
        database.write_now(count)
        yield database
        assert database.connections.in_use == 0


def end_sessions(databases: Databases, kind: Kind, target: Target) -> int:
    return databases.server(kind).admin.end_sessions(target.database)


async def test_idle_connections_that_were_ended_are_not_noticed(
    databases: Databases, database_kind: Kind, database: Database
) -> None:
    gate = threading.Barrier(2)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(database.write, lambda _: gate.wait(10))
    assert database.connections.idle == 2
    assert end_sessions(databases, database_kind, database.target) == 2
    await database.write(add, 1)
    assert await database.read(count) == 1
    assert database.statistics.retries["disconnected"] == 1
    assert set(database.statistics.failures.values()) == {0}


def test_a_session_that_was_silent_for_longer_than_the_server_allows_goes_unnoticed(
    databases: Databases, database_kind: Kind, shared_target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`idle_session_timeout` of PostgreSQL, `wait_timeout` of the others."""
    admin = databases.server(database_kind).admin
    monkeypatch.setattr("db.dialects.mysql.connection._IDLE_TIMEOUT", 1)
    with opened(shared_target, Options(pool_size=1)) as database:
        if database_kind is Kind.POSTGRES:
            database.write_now(_set_idle_timeout)
        admin.end_sessions(shared_target.database)
        database.write_now(add, 1)
        deadline = time.monotonic() + 30
        while admin.sessions(shared_target.database):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert database.connections.idle == 1
        database.write_now(add, 2)
        assert database.read_now(count) == 2


def _set_idle_timeout(connection: Connection) -> None:
    name = connection.exec_driver_sql("SELECT current_database()").scalar_one()
    connection.exec_driver_sql(f'ALTER DATABASE "{name}" SET idle_session_timeout = 500')


@pytest.mark.parametrize("add_next", [add, add_in_bulk])
async def test_a_session_ended_in_the_middle_is_taken_up_once_then_unavailable(
    database: Database, add_next: Callable[[Connection, int], None]
) -> None:
    calls = []

    def add_and_die(connection: Connection) -> None:
        calls.append(1)
        add(connection, 1)
        connection.exec_driver_sql(SUICIDE[database.target.driver])
        add_next(connection, 2)

    with pytest.raises(Unavailable, match="connection was lost"):
        await database.write(add_and_die)
    assert len(calls) == 2
    assert (database.statistics.retries["disconnected"], database.statistics.failures["disconnected"]) == (1, 1)
    assert database.connections.in_use == 0
    assert await database.read(count) == 0
    await database.write(add, 1)


async def test_a_session_ended_once_goes_unnoticed(database: Database) -> None:
    calls = []

    def add_and_die_once(connection: Connection) -> None:
        calls.append(1)
        add(connection, 1)
        if len(calls) == 1:
            connection.exec_driver_sql(SUICIDE[database.target.driver])

    await database.write(add_and_die_once)
    assert await database.read(count) == 1


async def test_frozen_sessions_are_looked_for_while_others_write_any_character(database: Database) -> None:
    """MySQL's information schema cannot hold every character of their statements."""

    def add_slowly(connection: Connection) -> None:
        add(connection, 1)
        sleep = "pg_sleep" if database.target.driver == "postgres" else "SLEEP"
        connection.exec_driver_sql(f"SELECT {sleep}(1), '🙂'").close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(database.write, add_slowly)
        with trio.move_on_after(0.8):
            while True:
                assert await database.end_frozen() is None
                await trio.sleep(0.2)  # MySQL answers with the same for 0.1 s


@pytest.mark.parametrize(("loss", "rows"), [(Loss.REQUEST, 0), (Loss.ANSWER, 1)])
async def test_a_commit_that_is_lost_is_of_unknown_fate(
    through: Database, relay: Relay, database: Database, loss: Loss, rows: int
) -> None:
    def add_and_lose(connection: Connection) -> None:
        add(connection, 1)
        relay.loss = loss

    with pytest.raises(CommitUnknown, match="fate is unknown"):
        await through.write(add_and_lose)
    assert (through.statistics.failures["commit_unknown"], sum(through.statistics.failures.values())) == (1, 1)
    assert through.connections.in_use == 0
    # A writer that waits for the other transaction's row sees the end of it.
    assert await database.write(delete_one) == rows
    await through.write(add, 2)


@pytest.mark.parametrize("loss", [Loss.REQUEST, Loss.ANSWER])
async def test_a_read_that_is_lost_is_read_again(through: Database, relay: Relay, loss: Loss) -> None:
    calls: list[int] = []

    def count_and_lose(connection: Connection) -> int:
        if not calls:
            relay.loss = loss
        calls.append(1)
        return count(connection)

    assert await through.read(count_and_lose) == 0
    assert len(calls) == 2


async def test_a_server_that_does_not_answer(
    database_kind: Kind, shared_target: Target, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One deadline goes by, not one per attempt."""
    for module in ("postgresql", "mysql"):
        monkeypatch.setattr(f"db.dialects.{module}.SOCKET_GRACE", 0.1)
    calls = []
    with opened(shared_target, Options(pool_size=1, statement_timeout=0.4)) as impatient:
        impatient.read_now(count)

        def wait_for_a_lock(connection: Connection) -> None:
            calls.append(1)
            connection.exec_driver_sql(PATIENT[database_kind])
            connection.execute(select(ROWS).where(ROWS.c.id == 1).with_for_update()).all()

        def hold(connection: Connection) -> None:
            connection.execute(select(ROWS).where(ROWS.c.id == 1).with_for_update()).all()
            with pytest.raises(Unavailable, match="no answer within the deadline"):
                impatient.write_now(wait_for_a_lock)

        await database.write(add, 1)
        await database.write(hold)
        assert len(calls) == 1
        assert impatient.connections.in_use == 0
        assert impatient.read_now(count) == 1


async def test_a_slow_statement_is_ended_by_the_server(shared_target: Target) -> None:
    with opened(shared_target, Options(statement_timeout=0.2)) as impatient:
        impatient.write_now(add, 1)
        with pytest.raises(Unavailable, match="DATABASE_STATEMENT_TIMEOUT"):
            impatient.read_now(lambda connection: connection.exec_driver_sql(SLOW).all())
        assert impatient.read_now(count) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"port": 1}, "connection refused"),
        ({"host": "no-such-host.invalid"}, "host name cannot be resolved"),
        ({"host": "", "port": 0, "unix_socket": "/nonexistent/socket"}, "no socket at that path"),
        ({"database": "no_such_database"}, "no such database"),
    ],
)
def test_why_it_cannot_be_reached(shared_target: Target, change: dict[str, object], words: str) -> None:
    with (
        opened(evolve(shared_target, **change), Options(connect_timeout=5)) as database,  # type: ignore[arg-type]  # of several kinds
        pytest.raises(Unavailable) as caught,
    ):
        database.read_now(count)
    assert words in str(caught.value)
    assert str(database.target) in str(caught.value)
    assert database.connections.in_use == 0


def test_something_else_that_listens_there(shared_target: Target) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        target = evolve(shared_target, host="127.0.0.1", port=listener.getsockname()[1])
        with opened(target, Options(connect_timeout=0.2)) as database, pytest.raises(Unavailable, match="no answer"):
            database.read_now(count)
