"""Several processes that find a database behind."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from db import Connection, migrate
from db.database import Database, opened
from db.dsn import Target
from db.errors import Contention, FileInUse
from db.options import Options
from tests.databases.kinds import SERVERS, Kind, on
from tests.databases.scratch import Databases
from tests.db.schemas import differences


@on(*SERVERS)
def test_whoever_waits_too_long_for_the_lock_is_told(fresh: Database, database_target: Target) -> None:
    """The deadline for the lock is not that of a statement."""
    with opened(database_target, Options(statement_timeout=0.3)) as hasty:
        began = time.monotonic()
        with fresh.migrating(5), pytest.raises(Contention, match="another process is migrating"):
            migrate.up(hasty, deadline=1)
        assert time.monotonic() - began > 0.9
        assert len(migrate.up(hasty, deadline=1)) == len(migrate.revisions())


@on(*SERVERS)
def test_a_reader_whom_a_migration_overtakes_looks_again(fresh: Database, database_target: Target) -> None:
    """MariaDB refuses to read a table that is younger than the reader's view; others show the old state or the new."""
    overtaken: list[tuple[migrate.Revision, ...]] = []

    def look(connection: Connection) -> migrate.Status:
        if not overtaken:
            connection.exec_driver_sql("SELECT 1").scalar_one()
            overtaken.append(migrate.upgrade(database_target))
        return migrate.status(connection)

    assert fresh.read_now(look).current in {None, migrate.revisions()[-1].id}
    assert migrate.up(fresh) == ()


PROGRAM = """
import sys
from db import dsn, migrate
from db.database import opened
from db.errors import FileInUse
from db.options import Options
target = dsn.parse(*sys.argv[1:])
sys.stdin.readline()
try:
    with opened(target, Options()) as database:
        print(len(migrate.up(database)), database.read_now(migrate.is_at_head))
except FileInUse:
    print("in use")
"""


def test_eight_processes_migrate_at_once(databases: Databases, database_kind: Kind) -> None:
    with databases.empty(database_kind) as scratch:
        command = [sys.executable, "-c", PROGRAM, scratch.kind.driver, scratch.url, scratch.path]
        processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(8)
        ]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        said = sorted(process.communicate(timeout=60)[0].strip() for process in processes)
        assert [process.returncode for process in processes] == [0] * 8
        done = f"{len(migrate.revisions())} True"
        assert said.count(done) == 1
        others = {"0 True"} if database_kind is not Kind.SQLITE else {"0 True", "in use"}
        assert set(said) - {done} <= others
        with opened(scratch.target, Options()) as database:
            assert database.read_now(differences) == []


@on("sqlite")
def test_a_live_server_keeps_others_from_migrating(fresh: Database, database_target: Target) -> None:
    with pytest.raises(FileInUse, match="one process per SQLite file"):
        migrate.upgrade(database_target)
    migrate.up(fresh)
