from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from db import Connection
from db.database import opened
from db.options import Options
from db.queries import ledger, projects, tokens
from db.records import Project, Token
from tests.cli.conftest import Run
from tests.databases.scratch import Scratch

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TOKEN = "22222222-2222-4222-8222-222222222222"


@pytest.fixture
def unbalanced(migrated_database: Scratch) -> Scratch:
    """A database in which a token's counter says 7, and no request says anything."""

    def fill(connection: Connection) -> None:
        project = Project("1" * 36, "p", "openai", "plain:k", "", active=True, created_at=NOW, updated_at=NOW)
        projects.create(connection, project)
        token = Token(
            id=TOKEN,
            project_id=project.id,
            digest=bytes(32),
            last4="abcd",
            name="",
            active=True,
            expires_at=None,
            max_requests=None,
            request_count=0,
            created_at=NOW,
            updated_at=NOW,
            revoked_at=None,
            last_used_at=None,
        )
        tokens.create(connection, token)
        ledger.add_to_counters(connection, {TOKEN: 7}, NOW)

    with opened(migrated_database.target, Options()) as database:
        database.write_now(fill)
    return migrated_database


def test_books_that_balance(run: Run, migrated_env: dict[str, str]) -> None:
    result = run("ledger", "verify", env=migrated_env)

    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "The books balance: for every token, counter = settled + in flight = hourly sums + in flight.\n"
    )
    assert run("ledger", "verify", "--json", env=migrated_env).stdout == "[]\n"


def test_books_that_do_not(run: Run, unbalanced: Scratch) -> None:
    result = run("ledger", "verify", env=unbalanced.env)

    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "TOKEN                                 COUNTER  SETTLED  HOURLY SUMS  IN FLIGHT",
        f"{TOKEN}        7        0            0          0",
    ]

    result = run("ledger", "verify", "--json", env=unbalanced.env)
    assert result.exit_code == 1
    assert json.loads(result.stdout) == [
        {"token_id": TOKEN, "counter": 7, "settled": 0, "rolled_up": 0, "in_flight": 0}
    ]


def test_a_check_says_what_the_database_is(run: Run, migrated_database: Scratch) -> None:
    result = run("db", "check", env=migrated_database.env)

    assert (result.exit_code, result.stderr) == (0, "")
    shown = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert shown["schema"].endswith("(at head)")
    assert shown["pool"].startswith("10 connections per worker, 1 worker")
    assert "database" in shown
    assert "version" in shown
    assert "clock" in shown

    facts = json.loads(run("db", "check", "--json", env=migrated_database.env).stdout)
    assert facts["revision"] == facts["head"]
    assert abs(facts["clock_skew_seconds"]) < 1
    assert (facts["max_connections"] is None) == (migrated_database.env["DB_DRIVER"] == "sqlite")
    assert facts["complaints"] == []


def test_a_check_complains_about_an_old_schema(run: Run, database_env: dict[str, str]) -> None:
    run("migrate", "up", env=database_env)
    run("migrate", "down", env=database_env)

    result = run("db", "check", env=database_env)

    assert result.exit_code == 1
    assert "1 revision behind" in result.stdout
    assert result.stderr == "problem: the schema is not at head; run 'llm-proxy migrate up', or start a server\n"


@pytest.mark.parametrize("command", [("ledger", "verify"), ("db", "check")])
def test_what_only_looks_makes_no_file(run: Run, folder: Path, command: tuple[str, str]) -> None:
    result = run(*command, "--db", "none.db")

    assert result.stderr == "error: there is no SQLite file none.db; 'llm-proxy migrate up' makes it\n"
    assert result.exit_code == 1
    assert list(folder.iterdir()) == []


def test_a_pool_that_does_not_fit_is_a_complaint(run: Run, migrated_database: Scratch) -> None:
    env = migrated_database.env
    if env["DB_DRIVER"] == "sqlite":
        assert run("db", "check", env=env | {"DATABASE_POOL_SIZE": "1000"}).exit_code == 0
        return

    result = run("db", "check", env=env | {"DATABASE_POOL_SIZE": "1000", "WORKERS": "2"})

    assert result.exit_code == 1
    assert result.stderr.startswith("problem: one server alone may open 2000 connections, more than the ")
