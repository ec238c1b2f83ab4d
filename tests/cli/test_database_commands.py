from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Executable, delete, select, update

from db import Connection
from db.database import Database, opened
from db.dsn import Target
from db.options import Options
from db.queries import ledger, limits, projects, tokens
from db.records import Limit
from db.schema import limit_counters, requests, usage_daily, usage_hourly
from tests.cli.conftest import Run
from tests.databases.kinds import Kind, on
from tests.databases.scratch import Scratch
from tests.db.pasts import write_past
from tests.db.queries.factories import NOON, a_project, a_settled_request, a_token

PROJECT = a_project()
TOKEN = a_token(PROJECT.id)


@pytest.fixture
def unbalanced(migrated_database: Scratch) -> Scratch:
    """A database in which a token's counter says 7, and no request says anything."""

    def fill(connection: Connection) -> None:
        projects.create(connection, PROJECT)
        tokens.create(connection, TOKEN)
        ledger.add_to_counters(connection, {TOKEN.id: 7}, NOON)

    with opened(migrated_database.target, Options()) as database:
        database.write_now(fill)
    return migrated_database


def test_verify_of_a_correct_ledger_exits_0(run: Run, migrated_env: dict[str, str]) -> None:
    result = run("ledger", "verify", env=migrated_env)

    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "The ledger is correct: for every token, counter = settled + in flight = hourly sums + in flight.\n"
        "Tokens and cost: hourly sums = request records, daily sums = hourly sums.\n"
    )
    assert run("ledger", "verify", "--json", env=migrated_env).stdout == "[]\n"


def test_verify_of_a_wrong_ledger_exits_1(run: Run, unbalanced: Scratch) -> None:
    result = run("ledger", "verify", env=unbalanced.env)

    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "TOKEN                                 COUNTER  SETTLED  HOURLY SUMS  IN FLIGHT",
        f"{TOKEN.id}        7        0            0          0",
    ]

    result = run("ledger", "verify", "--json", env=unbalanced.env)
    assert result.exit_code == 1
    assert json.loads(result.stdout) == [
        {"token_id": TOKEN.id, "counter": 7, "settled": 0, "rolled_up": 0, "in_flight": 0}
    ]


def test_repair_corrects_counters_and_sums(run: Run, unbalanced: Scratch) -> None:
    result = run("ledger", "verify", "--repair", env=unbalanced.env)

    assert (result.exit_code, result.stderr) == (0, "Tokens repaired: 1 of 1\n")
    assert result.stdout.startswith("The ledger is correct: ")
    assert run("ledger", "verify", "--repair", env=unbalanced.env).stderr == "Tokens repaired: 0 of 0\n"


def test_a_wrong_counter_of_a_limit_is_shown_and_repaired(run: Run, migrated_database: Scratch) -> None:
    """Nothing was used of the limit, and its counter says 7."""
    usual: dict[str, Any] = {"models": None, "policy": "settled", "wait_ms": 0, "warn_at": None}
    limit = Limit(
        TOKEN.id, "proxy", "", "cost", "total", 9, **usual, allow_unpriced=False, created_at=NOON, updated_at=NOON
    )
    key = limits.counter_id(limit.id, None)

    def fill(connection: Connection) -> None:
        limits.create(connection, limit)
        limits.open_counter(connection, key, 2)
        connection.execute(update(limit_counters).values(used=7))

    with opened(migrated_database.target, Options()) as database:
        database.write_now(fill)
    env = migrated_database.env
    result = run("ledger", "verify", env=env)
    assert result.exit_code == 1
    (row,) = [line for line in result.stdout.splitlines() if line.startswith(limit.id)]
    assert row.split() == [limit.id, "total", "used", "2", "7"]
    assert json.loads(run("ledger", "verify", "--json", env=env).stdout) == [
        {"limit_id": limit.id, "window": None, "figure": "used", "expected": 2, "found": 7}
    ]
    result = run("ledger", "verify", "--repair", env=env)
    assert result.exit_code == 0
    assert "Counters of limits repaired: 1 of 1\n" in result.stderr
    assert run("ledger", "verify", env=env).exit_code == 0


def test_sums_that_are_wrong_are_shown_and_repaired(run: Run, migrated_database: Scratch) -> None:
    with opened(migrated_database.target, Options()) as database:
        write_past(database, 20)
        database.write_now(_break_sums)

    result = run("ledger", "verify", env=migrated_database.env)
    assert (result.exit_code, result.stderr) == (1, "")
    hours, days = (block.splitlines() for block in result.stdout.split("\n\n"))
    assert hours[0].split() == ["TOKEN", "HOUR", "SUM", "EXPECTED", "FOUND"]
    wrong = hours[1].split()
    assert wrong[1:3] == ["2027-01-15T12:00Z", "cost_nanousd"]
    assert int(wrong[4]) == int(wrong[3]) + 5
    assert days[0].split() == ["DAY", "SCOPE", "SERIES", "SUM", "EXPECTED", "FOUND"]
    whole = [line.split() for line in days[1:] if line.split()[1] == "-"]
    assert {line[3] for line in whole} == {"requests", "cost_nanousd"}
    found = json.loads(run("ledger", "verify", "--json", env=migrated_database.env).stdout)
    assert len(found) == len(hours) + len(days) - 2
    assert found[0].keys() == {"token_id", "hour", "sum", "expected", "found"}
    assert found[-1].keys() == {"day", "scope", "series", "sum", "expected", "found"}

    result = run("ledger", "verify", "--repair", env=migrated_database.env)
    assert (result.exit_code, result.stderr) == (0, "Tokens repaired: 1 of 1\nDays repaired: 1 of 1\n")
    assert run("ledger", "verify", env=migrated_database.env).exit_code == 0


def _execute(connection: Connection, statement: Executable) -> None:
    connection.execute(statement)


def _break_sums(connection: Connection) -> None:
    priced = select(usage_hourly.c.token_id, usage_hourly.c.model).where(usage_hourly.c.cost_nanousd > 0).limit(1)
    token_id, series = connection.execute(priced).one()
    mine = (usage_hourly.c.token_id == token_id, usage_hourly.c.model == series)
    connection.execute(update(usage_hourly).where(*mine).values(cost_nanousd=usage_hourly.c.cost_nanousd + 5))
    connection.execute(update(usage_daily).where(usage_daily.c.scope == "").values(requests=7))


def test_hours_with_pruned_rows_are_said_to_be_unproven(run: Run, migrated_database: Scratch) -> None:
    with opened(migrated_database.target, Options()) as database:
        write_past(database, 20)
        database.write_now(
            lambda connection: connection.execute(delete(requests).where(requests.c.kind == "late")).close()
        )
        database.write_now(lambda connection: connection.execute(update(usage_hourly).values(pruned_late=1)).close())
    result = run("ledger", "verify", env=migrated_database.env)
    assert result.exit_code == 0
    assert result.stderr.startswith("Not proven: tokens and cost of 4 hours of tokens, because ")


def test_a_long_ledger_gets_its_time(run: Run, migrated_env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def note(target: Target, options: Options, **more: Any) -> AbstractContextManager[Database]:
        seen.append(options.statement_timeout)
        return opened(target, options, **more)

    monkeypatch.setattr("llm_proxy.cli.database.opened", note)
    for command in (("ledger", "verify"), ("db", "check")):
        assert run(*command, env=migrated_env | {"DATABASE_STATEMENT_TIMEOUT": "7s"}).exit_code == 0
    assert seen == [3600.0, 7.0]


def test_repair_shows_what_it_cannot_correct(run: Run, unbalanced: Scratch) -> None:
    with opened(unbalanced.target, Options()) as database:
        database.write_now(ledger.roll_up, [a_settled_request(TOKEN)])

    result = run("ledger", "verify", "--repair", env=unbalanced.env)

    assert (result.exit_code, result.stderr) == (1, "Tokens repaired: 0 of 1\n")
    assert result.stdout.splitlines()[1] == f"{TOKEN.id}        1        0            1          0"


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
    run("migrate", "down", "--yes", env=database_env)

    result = run("db", "check", env=database_env)

    assert result.exit_code == 1
    assert "1 revision behind" in result.stdout
    assert result.stderr == "problem: the schema is not at head; run 'llm-proxy migrate up', or start a server\n"


@pytest.mark.parametrize("command", [("ledger", "verify"), ("db", "check")])
def test_commands_that_only_read_create_no_file(run: Run, folder: Path, command: tuple[str, str]) -> None:
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
    assert "and others have " in result.stdout


@on("postgres", "mysql", "mariadb")
def test_a_user_with_a_limit_of_its_own(run: Run, migrated_database: Scratch) -> None:
    scratch = migrated_database
    user = f"few_{scratch.name[-12:]}"
    head, _, tail = scratch.url.partition("@")
    scheme = "postgres://" if head.startswith("postgres") else ""
    env = scratch.env | {"DATABASE_URL": f"{scheme}{user}:@{tail}"}
    if scratch.kind is Kind.POSTGRES:
        make = [f"CREATE ROLE {user} LOGIN CONNECTION LIMIT 5", f"GRANT SELECT ON alembic_version TO {user}"]
        drop = [f"DROP OWNED BY {user}", f"DROP ROLE {user}"]
    else:
        make = [f"CREATE USER {user} WITH MAX_USER_CONNECTIONS 5", f"GRANT SELECT ON `{scratch.name}`.* TO {user}"]
        drop = [f"DROP USER {user}"]
    execute(scratch, make)
    try:
        result = run("db", "check", env=env)
        assert result.stderr == (
            "problem: one server alone may open 10 connections, more than the 5 that the database allows this "
            "user; lower DATABASE_POOL_SIZE or WORKERS\n"
        )
        assert ", 5 of this user, and others have " in result.stdout
        assert run("db", "check", env=env | {"DATABASE_POOL_SIZE": "5"}).exit_code == 0
    finally:
        execute(scratch, drop)


def execute(scratch: Scratch, statements: Sequence[str]) -> None:
    with opened(scratch.target, Options()) as database:
        for statement in statements:
            database.write_now(lambda connection, sql: connection.exec_driver_sql(sql).close(), statement)
