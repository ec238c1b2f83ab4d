"""Servers and sessions that only allow reading, as they are met after a failover."""

from __future__ import annotations

from collections.abc import Iterator

import pg8000.native
import pytest
from sqlalchemy import Column, Integer, MetaData, Table, func, insert, select

from db import Connection
from db.database import Database, opened
from db.dsn import parse
from db.errors import Unavailable
from db.options import Options
from tests.databases.admin import Address
from tests.databases.kinds import SERVERS, on
from tests.databases.programs import Instance
from tests.databases.servers import wait_until_answers

METADATA = MetaData()
ROWS = Table("rows_of_test", METADATA, Column("id", Integer, primary_key=True))
#: What makes a session read from now on, whatever transactions ask for nothing else.
TURN = {
    "postgres": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "mysql": "SET SESSION TRANSACTION READ ONLY",
}


def add(connection: Connection, number: int) -> None:
    connection.execute(insert(ROWS), [{"id": number}])


def count(connection: Connection) -> int:
    return connection.execute(select(func.count()).select_from(ROWS)).scalar_one()


@pytest.fixture
def rows(database: Database) -> Iterator[Database]:
    database.write_now(METADATA.create_all)
    yield database
    database.write_now(METADATA.drop_all)


@on(*SERVERS)
async def test_a_session_that_has_become_a_reader_is_left_for_a_fresh_one(rows: Database) -> None:
    def turn(connection: Connection) -> None:
        connection.exec_driver_sql(TURN[rows.target.driver])

    calls = []

    def add_and_note(connection: Connection) -> None:
        calls.append(1)
        add(connection, 1)

    await rows.write(turn)
    await rows.write(add_and_note)
    assert len(calls) == 2
    assert rows.statistics.retries["read_only"] == 1
    assert await rows.read(count) == 1


@on("mysql")
async def test_a_database_that_was_made_read_only(rows: Database) -> None:
    def switch(connection: Connection, value: int) -> None:
        connection.exec_driver_sql(f"ALTER DATABASE `{rows.target.database}` READ ONLY = {value}")

    await rows.write(switch, 1)
    try:
        with pytest.raises(Unavailable, match="only allows reading: it is a replica"):
            await rows.write(add, 1)
        assert await rows.read(count) == 0
    finally:
        await rows.write(switch, 0)
    await rows.write(add, 1)


@on("postgres")
async def test_a_server_that_became_a_standby_and_a_primary_again(database_instance: Instance) -> None:
    """The pool is not restarted, like that of a running proxy."""
    instance = database_instance
    with opened(parse("postgres", instance.url, None), Options(pool_size=2)) as database:
        await database.write(METADATA.create_all)
        await database.write(add, 1)

        instance.stop()
        instance.place("standby.signal", b"")
        instance.start()
        wait_until_answers(instance.kind, instance, lambda: instance.log)
        assert await database.read(count) == 1
        for _ in range(2):
            with pytest.raises(Unavailable, match="only allows reading: it is a replica"):
                await database.write(add, 2)
        assert database.connections.in_use == 0

        with pg8000.native.Connection(
            database="postgres", **Address.parse(instance.url, 5432).postgres_arguments()
        ) as session:
            assert session.run("SELECT pg_promote()") == [[True]]
        await database.write(add, 2)
        assert await database.read(count) == 2
