from __future__ import annotations

import json
from pathlib import Path

import pytest

from db import copy
from db.database import opened
from db.dsn import parse
from db.options import Options
from tests.cli.conftest import Run
from tests.databases.scratch import Databases, Scratch
from tests.db.pasts import write_past
from tests.harness.files import write_secret


@pytest.fixture
def full(migrated_database: Scratch) -> Scratch:
    """A database with a past."""
    with opened(migrated_database.target, Options()) as database:
        write_past(database, requests=20)
    return migrated_database


def url_of(scratch: Scratch) -> str:
    return scratch.url or scratch.path


def test_a_copy_shows_both_sides(run: Run, full: Scratch, folder: Path) -> None:
    result = run("db", "copy", "--from", url_of(full), "--to", "new.db")

    assert result.exit_code == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["TABLE", "ROWS", "DIGEST", "TARGET", "ROWS", "TARGET", "DIGEST"]
    assert [line[0] for line in lines[1:]] == [table.name for table in copy.TABLES]
    assert all(line[1:3] == line[3:5] and line[5] == "equal" for line in lines[1:])
    assert "requests: 20 of 20 rows\n" in result.stderr
    assert run("ledger", "verify", "--db", "new.db").exit_code == 0


def test_the_urls_may_come_from_files(run: Run, full: Scratch, folder: Path) -> None:
    write_secret(folder / "from", url_of(full) + "\n")
    write_secret(folder / "to", "sqlite:new.db")
    result = run("db", "copy", "--from-file", "from", "--to-file", "to", "--json")

    assert result.exit_code == 0, result.stderr
    shown = {one["table"]: one for one in json.loads(result.stdout)}
    assert shown["requests"]["equal"] is True
    assert shown["requests"]["source"] == shown["requests"]["target"]
    assert len(shown["requests"]["source"]["digest"]) == 64


def test_a_target_with_rows_is_refused_unless_it_is_to_go_on(run: Run, full: Scratch, folder: Path) -> None:
    command = ("db", "copy", "--from", url_of(full), "--to", "new.db")
    assert run(*command).exit_code == 0
    result = run(*command)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: SQLite file new.db is not empty (requests 20, ")
    assert result.stderr.endswith("use an empty database, or --resume to continue a copy of the same source\n")
    assert run(*command, "--resume").exit_code == 0


def test_what_would_be_copied(run: Run, full: Scratch, folder: Path) -> None:
    result = run("db", "copy", "--from", url_of(full), "--to", "new.db", "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "SQLite file new.db" in result.stdout
    assert ["requests", "20"] in [line.split() for line in result.stdout.splitlines()]
    assert not (folder / "new.db").exists()
    result = run("db", "copy", "--from", url_of(full), "--to", "new.db", "--dry-run", "--json")
    assert json.loads(result.stdout)["rows"]["requests"] == 20


def test_a_live_server_keeps_a_copy_from_beginning(run: Run, full: Scratch, databases: Databases, folder: Path) -> None:
    """On SQLite the lock of the file says so, on servers the heartbeats, of which a test of their own knows."""
    if full.path:
        with opened(full.target, Options()):
            result = run("db", "copy", "--from", full.path, "--to", "new.db")
            assert result.exit_code == 1
            assert "another llm-proxy process" in result.stderr
            assert run("db", "copy", "--from", full.path, "--to", "new.db", "--dry-run").exit_code == 0
            assert run("db", "copy", "--from", full.path, "--to", "new.db", "--allow-live").exit_code == 0
        return
    beat(full)
    result = run("db", "copy", "--from", full.url, "--to", "new.db")
    assert result.exit_code == 1
    assert "is in use by " in result.stderr
    assert "--allow-live" in result.stderr
    assert run("db", "copy", "--from", full.url, "--to", "new.db", "--allow-live").exit_code == 0


def beat(scratch: Scratch) -> None:
    """Be a server for a moment."""
    from datetime import UTC, datetime  # noqa: PLC0415 - for the one row of this test

    from db.queries import ledger  # noqa: PLC0415 - for the one row of this test
    from db.records import Worker  # noqa: PLC0415 - for the one row of this test

    now = datetime.now(UTC)
    with opened(scratch.target, Options()) as database:
        database.write_now(ledger.beat, Worker("w", "host", 1, "0", now, now))


def test_a_difference_is_an_error(run: Run, full: Scratch, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = copy.digest_of

    def other(database: object, table: object) -> object:
        digest = real(database, table)  # type: ignore[arg-type]  # as copy passes it on
        if table is copy.TABLES[0]:
            digest.total += 1
        return digest

    monkeypatch.setattr(copy, "digest_of", other)
    result = run("db", "copy", "--from", url_of(full), "--to", "new.db")
    assert result.exit_code == 1
    assert "DIFFERENT" in result.stdout
    assert "problem: requests: they differ: run the same command with --resume" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "b.db"], "give either --from or --from-file"),
        (["--from", "a.db"], "give either --to or --to-file"),
        (["--from", "a.db", "--from-file", "x", "--to", "b.db"], "give either --from or --from-file"),
        (["--from", "a.db", "--to", "./a.db"], "--from and --to are the same database"),
        (
            ["--from", "postgres://u:p@h/d", "--to", "postgresql://v:q@h:5432/d"],
            "--from and --to are the same database",
        ),
        (
            ["--from", "a.db", "--to-file", "missing"],
            "--to-file missing: the file cannot be read: No such file or directory",
        ),
        (["--from", "x:hidden@tcp(h)", "--to", "b.db"], "--from names no database"),
        (["--from", "oracle://u:hidden@h/d", "--to", "b.db"], "--from must begin with postgres://"),
    ],
)
def test_wrong_usage_is_told(run: Run, arguments: list[str], said: str) -> None:
    result = run("db", "copy", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "hidden" not in result.stderr
    assert "DATABASE" not in result.stderr


def test_a_source_that_is_not_there(run: Run, folder: Path) -> None:
    result = run("db", "copy", "--from", "a.db", "--to", "b.db")
    assert (result.exit_code, result.stderr) == (1, "error: there is no SQLite file a.db\n")
    assert list(folder.iterdir()) == []


def test_a_source_that_is_behind(run: Run, folder: Path) -> None:
    with opened(parse("sqlite", None, "a.db"), Options()):
        pass
    result = run("db", "copy", "--from", "a.db", "--to", "b.db")
    assert result.exit_code == 1
    assert "run 'llm-proxy migrate up' on it" in result.stderr
