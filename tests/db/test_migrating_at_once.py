"""Several processes that find a database behind."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from db import Connection, migrate
from db.database import Database, opened
from db.dialects import postgresql
from db.dialects.mysql import connection as mysql_connection
from db.dsn import Target
from db.errors import Contention, FileInUse, Unavailable
from db.options import Options
from tests.databases.kinds import SERVERS, Kind, on
from tests.databases.scratch import upgrade
from tests.db import crashes
from tests.db.crashes import End
from tests.db.schemas import differences


@on(*SERVERS)
def test_waiting_too_long_for_the_migration_lock_fails(fresh: Database, database_target: Target) -> None:
    """The deadline for the lock is not that of a statement."""
    with opened(database_target, Options(statement_timeout=0.3, migration_lock_timeout=1)) as hasty:
        began = time.monotonic()
        with (
            fresh.migrating(5),
            pytest.raises(Contention, match=r"migrating it, and was not done within .* \(1 s\)"),
        ):
            migrate.up(hasty)
        assert time.monotonic() - began > 0.9
        assert len(migrate.up(hasty)) == len(migrate.revisions())


@on(*SERVERS)
def test_a_reader_overtaken_by_a_migration_is_retried(fresh: Database, database_target: Target) -> None:
    """MariaDB refuses to read a table that is younger than the reader's view; others show the old state or the new."""
    overtaken: list[tuple[migrate.Revision, ...]] = []

    def look(connection: Connection) -> migrate.Status:
        if not overtaken:
            connection.exec_driver_sql("SELECT 1").scalar_one()
            overtaken.append(upgrade(database_target))
        return migrate.status(connection)

    assert fresh.read_now(look).current in {None, migrate.revisions()[-1].id}
    assert migrate.up(fresh) == ()


def test_eight_processes_migrate_at_once(database_target: Target, database_kind: Kind) -> None:
    with ExitStack() as stack:
        line = crashes.context.Barrier(8)
        processes = [
            stack.enter_context(crashes.killed_at_the_end(crashes.start(crashes.race, database_target, line)))
            for _ in range(8)
        ]
        for process in processes:
            process.join(crashes.PATIENCE)
        done = Counter(process.exitcode for process in processes)
    assert done.pop(len(migrate.revisions())) == 1
    assert set(done) <= ({0} if database_kind is not Kind.SQLITE else {0, crashes.IN_USE})
    with opened(database_target, Options()) as database:
        assert database.read_now(differences) == []


@on(*SERVERS)
def test_a_waiting_migration_names_the_holder_and_continues_when_it_dies(
    fresh: Database, database_target: Target, database_kind: Kind
) -> None:
    """The holder stops in the middle of its work, as a frozen machine would, and is killed later."""
    heard: list[str] = []

    def end(said: str) -> None:
        heard.append(said)
        holder.kill()

    with crashes.frozen(database_target, 4) as holder:
        with pytest.raises(Contention) as told, opened(database_target, Options(migration_lock_timeout=1)) as hasty:
            migrate.up(hasty)
        message = str(told.value)
        began = time.monotonic()
        done = migrate.up(fresh, waiting=end)
        assert time.monotonic() - began < 30
    assert len(done) in {len(migrate.revisions()), len(migrate.revisions()) - 1}
    assert fresh.read_now(differences) == []
    assert heard[0].startswith(f"{database_target}: ")
    assert re.search(r"is migrating it; waiting for that, for \d+ s more at most", heard[0])
    name = f"llm-proxy on {socket.gethostname()}"[:40]
    for sentence in (message, heard[0]):
        # MariaDB's list of sessions has no names of programs.
        assert (name in sentence) is (database_kind is not Kind.MARIADB), sentence
        assert (f"pid {holder.pid}" in sentence) is (database_kind is not Kind.MARIADB), sentence
        assert re.search(r"\(connection \d+, from \S+, .*silent for \d+ s\)", sentence), sentence
    assert "MIGRATION_LOCK_TIMEOUT (1 s)" in message
    number = re.search(r"connection (\d+)", message)
    assert number is not None
    cure = f"SELECT pg_terminate_backend({number[1]})" if database_kind is Kind.POSTGRES else f"KILL {number[1]}"
    assert message.endswith(f"; try again, or, if it hangs, end it: {cure}")


def migrate_by_hand(database: Database, meanwhile: Callable[[], object]) -> None:
    """Hold the lock while something else runs, then define something."""
    with database.migrating(5) as connection:
        meanwhile()
        connection.exec_driver_sql("CREATE TABLE late (id INTEGER)")


@on(*SERVERS)
def test_statements_of_others_do_not_hide_the_holder(
    fresh: Database, database_target: Target, database_kind: Kind
) -> None:
    """MySQL's information schema cannot hold every character of them."""
    sleep = f"SELECT {'pg_sleep' if database_kind is Kind.POSTGRES else 'SLEEP'}(2), '🙂'"
    other = threading.Thread(
        target=fresh.read_now, args=(lambda connection: connection.exec_driver_sql(sleep).close(),)
    )

    def wait_for_it() -> None:
        other.start()
        with pytest.raises(Contention) as told, opened(database_target, Options(migration_lock_timeout=0.5)) as hasty:
            migrate.up(hasty)
        assert other.is_alive()
        assert re.search(r"\(connection \d+, from \S+, .*silent for \d+ s\)", str(told.value))

    with opened(database_target, Options()) as holder:
        migrate_by_hand(holder, wait_for_it)
    other.join()


@on(*SERVERS)
def test_the_cure_that_is_offered_works(fresh: Database, database_target: Target) -> None:
    def end_it() -> None:
        with pytest.raises(Contention) as told, opened(database_target, Options(migration_lock_timeout=0.1)) as hasty:
            migrate.up(hasty)
        with fresh._backend.write.connect() as other:
            other.exec_driver_sql(str(told.value).rpartition(": ")[2])
            other.rollback()

    with opened(database_target, Options()) as stuck:
        with pytest.raises(Unavailable, match="connection was lost"):
            migrate_by_hand(stuck, end_it)
        assert len(migrate.up(fresh)) == len(migrate.revisions())


@on(*SERVERS)
def test_a_holder_that_says_nothing_is_put_out_by_the_server(
    fresh: Database, database_target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "SILENCE", 1)
    monkeypatch.setattr(mysql_connection, "_IDLE_TIMEOUT", 1)
    done: list[int] = []

    def migrate_meanwhile() -> None:
        # Only the connection that is silent now has so little time: the other one may be slow on a busy machine.
        monkeypatch.undo()
        done.append(len(migrate.up(fresh)))

    with (
        opened(database_target, Options()) as silent,
        pytest.raises(Unavailable, match="connection was lost"),
    ):
        migrate_by_hand(silent, migrate_meanwhile)
    assert done == [len(migrate.revisions())]


@on(*SERVERS)
def test_five_replicas_of_which_one_dies_in_the_middle(database_target: Target, fresh: Database) -> None:
    with crashes.frozen(database_target, 6) as first, ExitStack() as stack:
        others = [
            stack.enter_context(
                crashes.killed_at_the_end(crashes.start(crashes.up_to, database_target, "head", End.KILL, 1_000))
            )
            for _ in range(4)
        ]
        first.kill()
        for process in [first, *others]:
            process.join(crashes.PATIENCE)
        assert [process.exitcode for process in [first, *others]] == [-9, 0, 0, 0, 0]
    assert fresh.read_now(migrate.is_at_head)
    assert fresh.read_now(differences) == []


@on("sqlite")
def test_a_live_server_keeps_others_from_migrating(fresh: Database, database_target: Target) -> None:
    with pytest.raises(FileInUse, match="one process per SQLite file"):
        upgrade(database_target)
    migrate.up(fresh)
