"""Many servers start at once on an empty database: one history, everybody ready, or told why not."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from sqlalchemy import text

from db import migrate
from db.database import opened
from db.dsn.target import Target
from db.options import Options
from tests.databases.kinds import Kind, on
from tests.db import crashes
from tests.harness.deployment import provider_settings
from tests.harness.server import running_server

if TYPE_CHECKING:
    from benchmarks.processes import Upstream
    from tests.harness.server import Server

SERVERS = 8
#: Eight interpreters start at once on whatever machine this is.
PATIENCE = 180.0


def start_all(stack: ExitStack, env: dict[str, str], upstream: Upstream) -> list[Server]:
    settings = provider_settings(upstream)
    first = stack.enter_context(running_server(env, settings, ready=False, program=("llm_proxy", "server")))
    return [first] + [stack.enter_context(running_server(env, settings, ready=False)) for _ in range(SERVERS - 1)]


def test_eight_servers_start_at_once_on_an_empty_database(
    upstream: Upstream, database_env: dict[str, str], database_target: Target, database_kind: Kind
) -> None:
    with ExitStack() as stack:
        servers = start_all(stack, database_env, upstream)
        if database_kind is Kind.SQLITE:
            refused = await_all_but_one(servers)
            for server in refused:
                assert server.process.wait() == 1
                (line,) = [line for line in server.output.splitlines() if line.startswith("error:")]
                assert "one process per SQLite file" in line
                assert "PostgreSQL or MySQL" in line
            servers = [server for server in servers if server not in refused]
        for server in servers:
            server.wait_ready(PATIENCE)
        for server in servers:
            assert server.stop() == 0, server.output
            assert "Traceback" not in server.output
    with opened(database_target, Options()) as database:
        status = database.read_now(migrate.status)
        versions = database.read_now(
            lambda connection: list(connection.scalars(text("SELECT version_num FROM alembic_version")))
        )
    assert status.at_head
    assert versions == [status.head]


def await_all_but_one(servers: list[Server]) -> list[Server]:
    deadline = time.monotonic() + PATIENCE
    while len(ended := [server for server in servers if not server.process.running]) < SERVERS - 1:
        assert time.monotonic() < deadline, "more than one server is running on one SQLite file"
        time.sleep(0.05)
    return ended


@on("postgres", "mysql", "mariadb")
def test_servers_wait_for_a_stuck_migration_and_log_it(
    upstream: Upstream, database_env: dict[str, str], database_target: Target
) -> None:
    """One is frozen in the middle of its migration: the hasty one gives up, the patient one continues after its end."""
    settings = provider_settings(upstream)
    with (
        crashes.frozen(database_target, 4) as stuck,
        running_server(database_env, settings | {"MIGRATION_LOCK_TIMEOUT": "2s"}, ready=False) as hasty,
        running_server(database_env, settings | {"WORKERS": "2"}, ready=False) as patient,
    ):
        assert hasty.wait(PATIENCE) == 1
        (line,) = [line for line in hasty.output.splitlines() if line.startswith("error:")]
        assert "is migrating it, and was not done within MIGRATION_LOCK_TIMEOUT (2 s); try again, or, if it" in line
        assert any("is migrating it; waiting for that, for" in event["event"] for event in hasty.events)
        patient.wait_said("is migrating it; waiting for that, for ", PATIENCE)
        stuck.kill()
        patient.wait_ready(PATIENCE)
        assert patient.stop() == 0, patient.output
    with opened(database_target, Options()) as database:
        assert database.read_now(migrate.is_at_head)
