"""A crash leaves rows marked unknown, never a missing row: every request that the provider saw is in the ledger."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from sqlalchemy import select

from benchmarks.processes import Upstream, family
from db.database import opened
from db.dsn.target import Target
from db.options import Options
from db.schema import requests
from tests.databases.kinds import Kind
from tests.harness.deployment import UPSTREAM_KEY, Deployment, provider_settings
from tests.harness.server import running_server
from tests.scenarios import ledger_checks
from tests.scenarios.load import SERVED, Load

if TYPE_CHECKING:
    from tests.harness.server import Server

KILLS = 20
#: Workers count as dead after four of these.
SETTINGS = {"LEDGER_HEARTBEAT": "250ms"}


async def kill_all(servers: Sequence[Server], load: Load, seconds: float) -> None:
    """Kill whole servers, as it must be on SQLite, where there is one process."""
    async with trio.open_nursery() as nursery:
        for server in servers:
            nursery.start_soon(load.keep_on, server.url)
        await trio.sleep(seconds)
        for server in servers:
            server.kill()
        nursery.cancel_scope.cancel()


def killed_oldest(server: Server) -> bool:
    """Kill the oldest of at least two workers, so that all have their turn.

    One that never lives long is replaced later and later. False if there are fewer, or it has just ended.
    """
    workers = family(server.pid)[1:]
    if len(workers) < 2:
        return False
    try:
        os.kill(min(workers), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


async def kill_workers(server: Server, load: Load, source: random.Random) -> None:
    """Kill one worker after the other; the supervisor replaces them while the rest serve on."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load.keep_on, server.url)
        await trio.sleep(0.3)
        for _ in range(KILLS):
            with trio.fail_after(20):
                killed = killed_oldest(server)
                while not killed:
                    await trio.sleep(0.05)
                    killed = killed_oldest(server)
            await trio.sleep(source.uniform(0.05, 0.4))
        nursery.cancel_scope.cancel()


@pytest.fixture
def logging_upstream(tmp_path: Path) -> Iterator[tuple[Upstream, Path]]:
    log = tmp_path / "upstream.log"
    with Upstream.start("--key", UPSTREAM_KEY, "--log", str(log)) as upstream:
        yield upstream, log


def test_every_request_that_the_provider_saw_is_in_the_ledger_after_kill(
    logging_upstream: tuple[Upstream, Path], migrated_env: dict[str, str], migrated_target: Target, database_kind: Kind
) -> None:
    upstream, log = logging_upstream
    settings = provider_settings(upstream) | SETTINGS
    source = random.Random(14)
    with running_server(migrated_env, settings) as server:
        load = Load(Deployment(server, upstream).new_secret())
    if database_kind is Kind.SQLITE:
        for _ in range(KILLS):
            with running_server(migrated_env, settings) as server:
                trio.run(kill_all, [server], load, source.uniform(0.05, 0.4))
    else:
        with running_server(migrated_env, settings, "--workers", "4") as server:
            trio.run(kill_workers, server, load, source)
            server.kill()

    seen = {json.loads(line)["target"] for line in log.read_text().splitlines()}
    # The provider knows none of these models; whatever else came was not its answer.
    assert load.statuses.keys() == {SERVED}, load.statuses
    assert len(seen) > KILLS * 3, "too little load to prove anything"
    with running_server(migrated_env, settings) as server:
        deadline = time.monotonic() + 10
        while ledger_checks.outcomes(migrated_target)["in_flight"] and time.monotonic() < deadline:
            time.sleep(0.1)
        assert server.stop() == 0, server.output

    found = ledger_checks.outcomes(migrated_target)
    assert "in_flight" not in found
    with opened(migrated_target, Options()) as database:
        written = set(database.read_now(lambda connection: list(connection.scalars(select(requests.c.path)))))
    assert seen <= written
    ledger_checks.verify(migrated_env)
