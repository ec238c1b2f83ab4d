from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from attrs import asdict
from click.testing import Result
from sqlalchemy import delete, insert

from db import Connection, migrate
from db.database import opened
from db.dialects.statements import clock
from db.migrate import Loss, losses
from db.options import Options
from db.records import Worker
from db.schema import workers
from tests.cli.conftest import Run
from tests.databases.kinds import SERVERS, on
from tests.databases.scratch import Scratch
from tests.db.pasts import write_past

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

    assert run("migrate", "down", "--yes", env=env).stdout == f"undone {TITLES[-1]}\n"
    assert run("migrate", "down", "--to", "base", "--yes", env=env).stdout.splitlines() == [
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
    run("migrate", "down", "--yes", "--db", "proxy.db")

    lines = run("migrate", "status", "--db", "proxy.db").stdout.splitlines()
    assert lines[0] == "REVISION  STATE    TITLE"
    assert lines[1].startswith("0001      applied  ")
    assert lines[-1].startswith(f"{HEAD}      pending  ")

    status = json.loads(run("migrate", "status", "--db", "proxy.db", "--json").stdout)
    assert status["current"] == migrate.revisions()[-2].id
    assert status["head"] == HEAD
    assert [revision["id"] for revision in status["pending"]] == [HEAD]
    assert status["at_head"] is False


def tables_of(scratch: Scratch) -> dict[str, int]:
    """How many rows each table has that is still there."""
    with opened(scratch.target, Options(), exclusive=False) as database:
        return {loss.table: loss.rows for loss in losses(database, "base") or ()}


def test_down_lists_what_it_deletes_and_takes_a_yes(
    run: Run, migrated_database: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(migrated_database.target, Options()) as database:
        write_past(database, requests=20)
    before = tables_of(migrated_database)
    assert before["requests"] == 20

    def down(answer: str = "", *options: str) -> Result:
        return run("migrate", "down", "--to", "0004", *options, env=migrated_database.env, input=answer)

    question = f"Delete this from {migrated_database.target}?"
    silent = down()
    assert (silent.exit_code, silent.stdout) == (2, "")
    *listed, last = silent.stderr.splitlines()
    sums = before["usage_hourly"]
    assert listed[0].split() == ["TO", "BE", "DELETED", "ROWS"]
    assert sorted(line.split() for line in listed[1:]) == [
        ["audit", "3"],
        ["credentials", "2"],
        ["in_flight.limits", "3"],
        ["label_values", "2"],
        ["limit_counters", "1"],
        ["limits", "1"],
        ["project_credentials", "2"],
        ["projects.allow_request_labels", str(before["projects"])],
        ["projects.allow_unknown_objects", str(before["projects"])],
        ["projects.models", str(before["projects"])],
        ["projects.stream_usage", str(before["projects"])],
        ["provider_objects", "3"],
        ["refusals", "2"],
        ["requests", "20"],
        ["tokens.labels", str(before["tokens"])],
        ["tokens.limited", str(before["tokens"])],
        ["tokens.models", str(before["tokens"])],
        ["usage_daily", str(before["usage_daily"])],
        ["usage_days", "2"],
        ["usage_hourly", str(sums)],
    ]
    assert last == f"error: this needs confirmation ({question}); run it with --yes"

    monkeypatch.setattr("llm_proxy.cli.options.sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    refused = down("n\n")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.endswith("\nNothing was changed.\n")
    assert question in refused.stderr
    assert tables_of(migrated_database) == before, "nothing was deleted"

    assert down("y\n").exit_code == 0
    assert set(tables_of(migrated_database)) == {"projects", "tokens", "workers", "in_flight"}
    assert down("", "--yes").stdout == "Nothing to do: no revision was applied after that one.\n"


def test_down_that_deletes_no_rows_names_the_revisions(run: Run, migrated_database: Scratch) -> None:
    # From here, the revision before deletes no rows.
    run("migrate", "down", "--to", "0014", "--yes", env=migrated_database.env)
    latest = next(revision for revision in migrate.revisions() if revision.id == "0014")
    silent = run("migrate", "down", env=migrated_database.env)
    question = f"Undo revision {latest.id} ({latest.title}) in {migrated_database.target}? No rows are deleted."
    assert silent.stderr == f"error: this needs confirmation ({question}); run it with --yes\n"


def test_down_counts_the_rows_that_lose_a_column(run: Run, migrated_database: Scratch) -> None:
    with opened(migrated_database.target, Options()) as database:
        write_past(database, requests=20)
        found = losses(database, "0006")
    rows = tables_of(migrated_database)
    assert found is not None
    assert Loss("usage_hourly", "pruned", rows["usage_hourly"]) in found
    assert Loss("requests", "provider_request_id", rows["requests"]) in found
    assert all(loss.column is not None for loss in found if loss.table in ("projects", "requests", "usage_hourly"))


@on(*SERVERS)
def test_down_is_refused_beside_a_live_server(run: Run, migrated_database: Scratch) -> None:
    """On SQLite the lock of the file refuses it, of which a test of the server command knows."""

    def seen(connection: Connection, seconds_ago: float) -> None:
        now = clock(connection)
        worker = Worker("w", "host-1", 4711, "0", now, now - timedelta(seconds=seconds_ago))
        connection.execute(delete(workers))
        connection.execute(insert(workers).values(asdict(worker)))

    def down(to: str, *options: str) -> Result:
        return run("migrate", "down", "--to", to, "--yes", *options, env=migrated_database.env)

    with opened(migrated_database.target, Options()) as database:
        database.write_now(seen, 1.0)
        refused = down("0003")
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert refused.stderr == (
            f"error: {migrated_database.target} is in use by host-1 (pid 4711); stop the servers first (one that was "
            "killed counts as live for 20 s), or continue while they run with --allow-live\n"
        )
        assert "requests" in tables_of(migrated_database)
        # One revision is enough here, because a server needs seconds for all of them.
        assert down(migrate.revisions()[-2].id, "--allow-live").exit_code == 0

        assert run("migrate", "up", env=migrated_database.env).exit_code == 0
        database.write_now(seen, 3600.0)
        assert down("0003").exit_code == 0
    assert down("base").exit_code == 0


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
