"""Behind PgBouncer in transaction mode, where sessions are shared and what is set in one may reach another client."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest
import trio
from attrs import evolve
from sqlalchemy import BigInteger, Column, Integer, MetaData, Table, delete, insert, select

from db import Connection, migrate
from db.database import Database, opened
from db.dialects import add_to_counter
from db.dsn import Target
from db.errors import Unavailable
from db.options import Options
from db.types import Id
from tests.databases.kinds import on

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


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def bouncer(shared_target: Target, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """The module's database through a PgBouncer that has three connections for everybody."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("no pgbouncer here: install the package pgbouncer")
    folder, port = tmp_path_factory.mktemp("pgbouncer"), free_port()
    configuration = folder / "pgbouncer.ini"
    users = folder / "users.txt"
    users.write_text(f'"{shared_target.user}" "{shared_target.password}"\n')
    configuration.write_text(
        f"""
        [databases]
        * = host={shared_target.host} port={shared_target.port}
        [pgbouncer]
        listen_addr = 127.0.0.1
        listen_port = {port}
        unix_socket_dir =
        auth_type = trust
        auth_file = {users}
        pool_mode = transaction
        default_pool_size = 3
        max_client_conn = 50
        """.replace("        ", "")
    )
    for place in (folder, configuration, users, *folder.parents[:2]):
        place.chmod(0o755)
    process = subprocess.Popen(
        [program, "-q", str(configuration)],
        user="nobody" if os.geteuid() == 0 else None,  # it refuses to run as root
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        target = evolve(shared_target, host="127.0.0.1", port=port)
        wait_for(process, target)
        yield target
    finally:
        process.terminate()
        process.communicate(timeout=10)


def wait_for(process: subprocess.Popen[bytes], target: Target) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1].decode()
        try:
            with opened(target, Options(connect_timeout=5)) as database:
                database.read_now(lambda _: None)
        except Unavailable:
            time.sleep(0.05)
        else:
            return
    pytest.fail("pgbouncer does not answer")


@pytest.fixture
def database(bouncer: Target) -> Iterator[Database]:
    with opened(bouncer, Options(pool_size=8)) as database:
        yield database
        assert database.checked_out == 0


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


def test_a_server_that_cannot_be_reached_behind_it(bouncer: Target) -> None:
    with opened(evolve(bouncer, database="no_such_database"), Options()) as nowhere, pytest.raises(Unavailable):
        nowhere.read_now(lambda _: None)
