"""Whole servers behind PgBouncer in transaction mode: they migrate, admit and settle with fewer sessions than pools."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from db import migrate
from db.database import opened
from db.dsn.target import Target
from db.options import Options
from tests.databases.admin import with_endpoint
from tests.databases.fixtures import lacking
from tests.databases.kinds import on
from tests.databases.pgbouncer import ADVICE, find_pgbouncer, pgbouncer
from tests.harness.deployment import Deployment
from tests.scenarios import ledger_checks

if TYPE_CHECKING:
    from benchmarks.processes import Upstream
    from tests.harness.server import StartServer

#: Two interpreters start at once on whatever machine this is.
PATIENCE = 120.0
LIMIT = 30


@on("postgres")
async def test_two_servers_behind_pgbouncer_share_a_limit(
    start_server: StartServer, upstream: Upstream, database_env: dict[str, str], database_target: Target
) -> None:
    program = find_pgbouncer()
    if program is None:
        lacking(ADVICE)
    with pgbouncer(program, database_target, sessions=4) as bounced:
        env = database_env | {"DATABASE_URL": with_endpoint(database_env["DATABASE_URL"], "127.0.0.1", bounced.port)}
        servers = [start_server(env, ready=False) for _ in range(2)]
        for server in servers:
            await server.ready(PATIENCE)
        one, other = (Deployment(server, upstream) for server in servers)
        secret: str = await trio.to_thread.run_sync(lambda: one.new_secret(max_requests=LIMIT))

        statuses: list[int] = []

        async def chat(deployment: Deployment) -> None:
            statuses.append((await deployment.chat(secret)).status)

        async with trio.open_nursery() as nursery:
            for deployment in (one, other):
                for _ in range(24):
                    nursery.start_soon(chat, deployment)
        assert sorted(statuses) == [200] * LIMIT + [429] * (48 - LIMIT)
        for server in servers:
            assert await server.stopped() == 0, server.output
            assert "Traceback" not in server.output
    with opened(database_target, Options()) as database:
        assert database.read_now(migrate.is_at_head)
    assert ledger_checks.differences(database_target) == []
    assert ledger_checks.outcomes(database_target) == {"ok": LIMIT}
