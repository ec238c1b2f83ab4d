from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import insert

from db import Connection, copy
from db.database import opened
from db.dialects.sqlite.file import prepare
from db.dsn import parse
from db.options import Options
from db.queries import ledger
from db.schema import workers
from tests.cli.conftest import Run
from tests.databases.kinds import SERVERS, on
from tests.databases.scratch import Scratch
from tests.db.pasts import write_past
from tests.db.queries.factories import NOON


@pytest.fixture
def live(run: Run, folder: Path) -> Path:
    """A SQLite file with a past, in the current folder."""
    assert run("migrate", "up", "--db", "live.db").exit_code == 0
    with opened(parse("sqlite", None, "live.db"), Options()) as database:
        write_past(database, requests=50)
    return folder / "live.db"


def test_a_backup_is_whole_private_and_one_file(run: Run, live: Path, folder: Path) -> None:
    result = run("db", "backup", "copy.db", "--db", "live.db")

    assert result.exit_code == 0, result.stderr
    assert [line.split() for line in result.stdout.splitlines()][2:] == [["file", "intact"], ["ledger", "correct"]]
    assert {path.name for path in folder.iterdir() if path.name.startswith("copy")} == {"copy.db"}
    assert oct((folder / "copy.db").stat().st_mode)[-3:] == "600"
    old, new = (parse("sqlite", None, name) for name in ("live.db", "copy.db"))
    with opened(old, Options()) as source, opened(new, Options()) as copied:
        assert all(copy.digest_of(source, table) == copy.digest_of(copied, table) for table in copy.TABLES)


def test_a_backup_beside_a_writer_is_a_state_that_was(run: Run, live: Path) -> None:
    """Each transaction writes two rows: a copy that was made between the two of them would have an odd number."""
    stop = threading.Event()

    def two_rows(connection: Connection, number: int) -> None:
        for place in (0, 1):
            connection.execute(
                insert(workers).values(
                    id=f"{number}-{place}", hostname="h", pid=1, version="0", started_at=NOON, seen_at=NOON
                )
            )

    with opened(parse("sqlite", None, "live.db"), Options()) as database:

        def write() -> None:
            number = 0
            while not stop.is_set():
                database.write_now(two_rows, number)
                number += 1

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for name in ("1.db", "2.db", "3.db"):
                assert run("db", "backup", name, "--db", "live.db").exit_code == 0
        finally:
            stop.set()
            writer.join()
        for name in ("1.db", "2.db", "3.db"):
            with opened(parse("sqlite", None, name), Options(), exclusive=False) as copied:
                assert len(copied.read_now(ledger.list_workers)) % 2 == 0


def test_nothing_is_overwritten_unasked(run: Run, live: Path, folder: Path) -> None:
    (folder / "copy.db").write_text("mine")
    result = run("db", "backup", "copy.db", "--db", "live.db")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: copy.db exists; choose another name, or --force to replace it\n"
    assert (folder / "copy.db").read_text() == "mine"
    assert run("db", "backup", "copy.db", "--db", "live.db", "--force").exit_code == 0
    assert (folder / "copy.db").read_bytes().startswith(b"SQLite format 3")


@pytest.mark.parametrize("to", ["live.db", "link/live.db"])
def test_the_database_itself_is_not_replaced(run: Run, live: Path, folder: Path, to: str) -> None:
    (folder / "link").symlink_to(folder)
    before = live.stat().st_ino
    result = run("db", "backup", to, "--db", "live.db", "--force")
    assert result.exit_code == 1
    assert result.stderr == f"error: {to} is the database that is to be copied; choose another name\n"
    assert live.stat().st_ino == before


def test_a_copy_that_a_server_uses_is_not_replaced(run: Run, live: Path, folder: Path) -> None:
    assert run("db", "backup", "copy.db", "--db", "live.db").exit_code == 0
    before = (folder / "copy.db").stat().st_ino
    lock = prepare(Path("copy.db"))
    result = run("db", "backup", "copy.db", "--db", "live.db", "--force")
    assert result.exit_code == 1
    assert "is using copy.db; one process per SQLite file" in result.stderr
    assert (folder / "copy.db").stat().st_ino == before
    lock.release()
    assert run("db", "backup", "copy.db", "--db", "live.db", "--force").exit_code == 0


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_a_log_of_an_earlier_copy_is_not_applied_to_the_new_one(run: Run, live: Path, folder: Path, mode: str) -> None:
    assert run("db", "backup", "copy.db", "--db", "live.db").exit_code == 0
    suffix = "-wal" if mode == "WAL" else "-journal"
    with closing(sqlite3.connect("copy.db", isolation_level=None)) as shell:
        shell.execute(f"PRAGMA journal_mode = {mode}")
        shell.execute("BEGIN IMMEDIATE")
        shell.execute("UPDATE tokens SET name = 'other'")
        if mode == "WAL":
            shell.execute("COMMIT")
        before = (folder / "copy.db").stat().st_ino
        result = run("db", "backup", "copy.db", "--db", "live.db", "--force")
    assert (result.exit_code, result.stderr) == (
        1,
        f"error: copy.db{suffix} belongs to an earlier copy.db, which is open or was not closed; choose another name\n",
    )
    assert (folder / "copy.db").stat().st_ino == before
    assert run("db", "backup", "copy.db", "--db", "live.db", "--force").exit_code == 0


def test_the_key_file_is_pointed_out(run: Run, live: Path, folder: Path) -> None:
    (folder / "live.db.key").write_text("k")
    result = run("db", "backup", "copy.db", "--db", "live.db", "--json")
    assert json.loads(result.stdout)["key_file"] == "live.db.key"
    assert "live.db.key: keep a copy of that file too" in result.stderr


def test_a_damaged_file_is_not_passed_off_as_a_backup(run: Run, live: Path, folder: Path) -> None:
    with sqlite3.connect(live) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    content = bytearray(live.read_bytes())
    content[4096 * 3 : 4096 * 6] = bytes(4096 * 3)
    live.write_bytes(content)
    result = run("db", "backup", "copy.db", "--db", "live.db")
    assert result.exit_code in (1, 2)
    assert "damaged" in result.stderr
    assert not any(path.name.startswith("copy.db") for path in folder.iterdir())


def test_a_place_that_cannot_be_written(run: Run, live: Path, folder: Path) -> None:
    (folder / "file").touch()
    result = run("db", "backup", "file/copy.db", "--db", "live.db")
    assert result.exit_code == 2
    assert result.stderr == "error: the backup file/copy.db cannot be written: File exists\n"


def test_a_folder_that_is_missing_is_made_for_its_owner_alone(run: Run, live: Path, folder: Path) -> None:
    result = run("db", "backup", "backups/copy.db", "--db", "live.db")
    assert result.exit_code == 0, result.stderr
    assert oct((folder / "backups").stat().st_mode)[-3:] == "700"


@on(*SERVERS)
def test_servers_have_tools_of_their_own(run: Run, migrated_database: Scratch) -> None:
    result = run("db", "backup", "copy.db", env=migrated_database.env)
    assert result.exit_code == 2
    assert ("pg_dump" if migrated_database.kind.driver == "postgres" else "mysqldump") in result.stderr
    assert result.stderr.endswith(" DATABASE\n")


def test_there_must_be_something_to_back_up(run: Run, folder: Path) -> None:
    result = run("db", "backup", "copy.db", "--db", "live.db")
    assert (result.exit_code, result.stderr) == (1, "error: there is no SQLite file live.db\n")
