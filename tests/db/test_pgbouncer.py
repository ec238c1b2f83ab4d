"""Behind PgBouncer in transaction mode, where sessions are shared and what is set in one may reach another client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio
from attrs import evolve
from sqlalchemy import BigInteger, Column, Integer, MetaData, Table, delete, insert, select

from db import Connection, migrate
from db.database import Database, opened
from db.dialects.statements import add_to_counter
from db.dsn import Target
from db.errors import Contention, Unavailable
from db.options import Options
from db.types import Id
from tests.databases.fixtures import lacking
from tests.databases.kinds import on
from tests.databases.pgbouncer import ADVICE, find_pgbouncer, pgbouncer

METADATA = MetaData()
COUNTERS = Table(
    "counters_of_test",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("counter", BigInteger),
    Column("n", Integer),
)
SLOW = "SELECT pg_sleep(10)"

pytestmark = on("postgres")


@pytest.fixture(scope="module")
def bouncer(shared_target: Target) -> Iterator[Target]:
    """The module's database through a PgBouncer that has three connections for everybody."""
    program = find_pgbouncer()
    if program is None:
        lacking(ADVICE)
    with pgbouncer(program, shared_target, sessions=3) as target:
        yield target


@pytest.fixture
def database(bouncer: Target) -> Iterator[Database]:
    with opened(bouncer, Options(pool_size=8)) as database:
        yield database
        assert database.connections.in_use == 0


async def test_many_clients_on_few_sessions(database: Database) -> None:
    names = [f"id-{number}" for number in range(4)]

    def begin(connection: Connection) -> None:
        METADATA.create_all(connection)
        connection.execute(delete(COUNTERS))
        connection.execute(insert(COUNTERS), [{"id": name, "counter": 0, "n": n} for n, name in enumerate(names)])

    def add(connection: Connection, name: str) -> None:
        connection.execute(select(COUNTERS).where(COUNTERS.c.id == name).with_for_update()).all()
        add_to_counter(connection, COUNTERS.c.counter, {name: 1})

    def number_of(connection: Connection, name: str) -> int:
        number: int = connection.execute(select(COUNTERS.c.n).where(COUNTERS.c.id == name)).scalar_one()
        return number

    async def look(number: int) -> None:
        for _ in range(10):
            assert await database.read(number_of, names[number]) == number

    await database.write(begin)
    async with trio.open_nursery() as nursery:
        for number, name in enumerate(names):
            nursery.start_soon(look, number)
            for _ in range(10):
                nursery.start_soon(database.write, add, name)
    counters = await database.read(lambda connection: connection.scalars(select(COUNTERS.c.counter)).all())
    assert counters == [10] * 4


def test_each_transaction_brings_its_own_deadline(bouncer: Target) -> None:
    def deadline(connection: Connection) -> str:
        return str(connection.exec_driver_sql("SHOW statement_timeout").scalar_one())

    with opened(bouncer, Options(statement_timeout=0.2)) as hasty, opened(bouncer, Options()) as calm:
        for _ in range(3):
            assert hasty.read_now(deadline) == "200ms"
            assert calm.write_now(deadline) == "10s"
        with pytest.raises(Unavailable, match="DATABASE_STATEMENT_TIMEOUT"):
            hasty.write_now(lambda connection: connection.exec_driver_sql(SLOW).close())


def test_migrations_run_through_it(database: Database) -> None:
    assert migrate.up(database) == migrate.revisions()
    assert database.read_now(migrate.is_at_head)


def test_the_lock_of_migrations_holds_through_it(bouncer: Target) -> None:
    """The lock of a session would not: two clients may have one session by turns."""
    with opened(bouncer, Options()) as one, opened(bouncer, Options()) as other:
        with (
            one.migrating(10),
            pytest.raises(Contention, match="is migrating it, and was not done within"),
            other.migrating(0.2),
        ):
            pytest.fail("both hold it")
        with other.migrating(10):
            pass


def test_a_server_that_cannot_be_reached_behind_it(bouncer: Target) -> None:
    with opened(evolve(bouncer, database="no_such_database"), Options()) as nowhere, pytest.raises(Unavailable):
        nowhere.read_now(lambda _: None)
