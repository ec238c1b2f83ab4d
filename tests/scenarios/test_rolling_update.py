"""During an update the new version migrates while servers of the old one go on: nobody may notice.

On SQLite one process has the file, so that there the old server has stopped before.
"""
# ruff: noqa: ASYNC110 (what is waited for happens in other processes)

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import trio

from benchmarks.processes import Upstream
from db.dsn.target import Target
from tests.databases.kinds import SERVERS, on
from tests.db.next_release import HARMFUL, HARMLESS, migrate_as_next_release
from tests.harness.deployment import Deployment
from tests.harness.server import Server, StartServer
from tests.scenarios import ledger_checks

CLIENTS = 6


async def keep_asking(deployment: Deployment, secret: str, statuses: Counter[int]) -> None:
    while True:
        statuses[(await deployment.chat(secret)).status] += 1


async def update_under_load(deployment: Deployment, target: Target, folder: Path) -> Counter[int]:
    """Let clients send requests while the next version migrates; then wait for as many answers again."""
    secret = deployment.new_secret()
    statuses: Counter[int] = Counter()

    async def answered(number: int) -> None:
        with trio.fail_after(60):
            while statuses.total() < number:
                await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        for _ in range(CLIENTS):
            nursery.start_soon(keep_asking, deployment, secret, statuses)
        await answered(30)
        await trio.to_thread.run_sync(partial(migrate_as_next_release, target, folder, HARMLESS))
        assert await trio.to_thread.run_sync(deployment.server.is_ready)
        await answered(statuses.total() + 30)
        nursery.cancel_scope.cancel()
    return statuses


@on(*SERVERS)
def test_an_old_server_keeps_serving_while_the_next_version_migrates(
    upstream: Upstream,
    start_server: StartServer,
    migrated_target: Target,
    migrated_env: dict[str, str],
    tmp_path: Path,
) -> None:
    server = start_server(migrated_env)
    statuses = trio.run(update_under_load, Deployment(server, upstream), migrated_target, tmp_path / "next")
    assert statuses.keys() == {200}, statuses
    assert server.call("GET", "/ready").content == {"status": "ready", "failing": []}
    second = start_server(migrated_env)
    assert says_newer(second)
    for one in (server, second):
        assert one.stop() == 0
    assert "Traceback" not in server.output
    ledger_checks.verify(migrated_env)


def says_newer(server: Server) -> bool:
    return any("this one can work on it" in event.get("event", "") for event in server.events)


def test_an_old_server_starts_on_a_compatible_newer_schema(
    start_server: StartServer, migrated_target: Target, migrated_env: dict[str, str], tmp_path: Path
) -> None:
    migrate_as_next_release(migrated_target, tmp_path / "next", HARMLESS)
    server = start_server(migrated_env)
    assert says_newer(server)
    assert server.stop() == 0


@on("sqlite", "mysql")
def test_an_old_server_is_not_ready_on_an_incompatible_schema(
    start_server: StartServer, migrated_target: Target, migrated_env: dict[str, str], tmp_path: Path
) -> None:
    (upgrade, problem), *_ = HARMFUL.items()
    running = start_server(migrated_env) if migrated_target.driver != "sqlite" else None
    migrate_as_next_release(migrated_target, tmp_path / "next", upgrade)
    if running is not None:
        assert running.call("GET", "/ready").content == {"status": "not ready", "failing": ["schema"]}
        running.kill()
    refused = start_server(migrated_env, ready=False)
    assert refused.wait() == 1
    (line,) = [line for line in refused.output.splitlines() if line.startswith("error:")]
    assert f"this one cannot work on it: {problem}; use the newer version" in line
    refused.kill()
