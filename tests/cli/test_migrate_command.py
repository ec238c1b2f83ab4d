from __future__ import annotations

import json
from pathlib import Path

import pytest

from db import migrate
from tests.cli.conftest import Run

HEAD = migrate.revisions()[-1].id
TITLES = [f"{revision.id} {revision.title}" for revision in migrate.revisions()]


def test_all_the_way_up_and_down(run: Run, database_env: dict[str, str]) -> None:
    env = database_env

    assert run("migrate", "version", env=env).stdout == "base\n"
    assert run("migrate", "status", env=env).exit_code == 1

    up = run("migrate", "up", env=env)
    assert (up.exit_code, up.stderr) == (0, "")
    assert up.stdout.splitlines() == [f"applied {title}" for title in TITLES]

    assert run("migrate", "version", env=env).stdout == f"{HEAD}\n"
    assert run("migrate", "status", env=env).exit_code == 0
    assert run("migrate", "plan", env=env).stdout == ""
    assert run("migrate", "up", env=env).stdout == f"Nothing to do: the schema is at head ({HEAD}).\n"

    assert run("migrate", "down", env=env).stdout == f"undone {TITLES[-1]}\n"
    assert run("migrate", "down", "--to", "base", env=env).stdout.splitlines() == [
        f"undone {title}" for title in reversed(TITLES[:-1])
    ]
    assert run("migrate", "version", env=env).stdout == "base\n"


def test_the_plan_is_the_sql_of_the_way_up(run: Run, database_env: dict[str, str]) -> None:
    plan = run("migrate", "plan", env=database_env)

    assert plan.exit_code == 0
    assert "CREATE TABLE projects" in plan.stdout
    assert f"'{HEAD}'" in plan.stdout
    assert run("migrate", "version", env=database_env).stdout == "base\n"


def test_looking_makes_no_file(run: Run, folder: Path) -> None:
    for command in ("status", "version", "plan"):
        run("migrate", command, "--db", "new/proxy.db")

    assert list(folder.iterdir()) == []


def test_status_for_people_and_programs(run: Run) -> None:
    run("migrate", "up", "--db", "proxy.db")
    run("migrate", "down", "--db", "proxy.db")

    lines = run("migrate", "status", "--db", "proxy.db").stdout.splitlines()
    assert lines[0] == "REVISION  STATE    TITLE"
    assert lines[1].startswith("0001      applied  ")
    assert lines[-1].startswith(f"{HEAD}      pending  ")

    status = json.loads(run("migrate", "status", "--db", "proxy.db", "--json").stdout)
    assert status["current"] == migrate.revisions()[-2].id
    assert status["head"] == HEAD
    assert [revision["id"] for revision in status["pending"]] == [HEAD]
    assert status["at_head"] is False


def test_an_unknown_revision_is_refused(run: Run) -> None:
    run("migrate", "up", "--db", "proxy.db")

    result = run("migrate", "down", "--to", "9999", "--db", "proxy.db")

    assert result.exit_code == 1
    assert result.stderr.startswith("error: there is no revision 9999 to go back to; choose one of base, 0001")


def test_nobody_there_is_exit_code_2(run: Run) -> None:
    env = {"DB_DRIVER": "postgres", "DATABASE_URL": "postgres://user:canary@127.0.0.1:9/x?sslmode=disable"}

    result = run("migrate", "status", env=env)

    assert result.exit_code == 2
    assert result.stderr.startswith("error: PostgreSQL at 127.0.0.1:9, database x: ")
    assert result.stderr.count("\n") == 1
    assert "canary" not in result.stderr


@pytest.mark.parametrize("command", ["up", "down", "status", "version", "plan"])
def test_wrong_settings_stop_every_command(run: Run, command: str) -> None:
    result = run("migrate", command, env={"DATABASE_POOL_SIZE": "0", "DATABASE_PATH": "proxy.db"})

    assert result.stderr == "error: DATABASE_POOL_SIZE='0': allowed: a whole number from 1 to 1000\n"
    assert result.exit_code == 2
