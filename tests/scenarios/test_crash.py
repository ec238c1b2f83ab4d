"""A crash leaves rows marked unknown, never a hole: whatever the provider has seen is in the books."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import h11
import pytest
import trio
from attrs import define, field
from sqlalchemy import select

from benchmarks.processes import Upstream
from db.database import opened
from db.options import Options
from db.schema import requests
from db.target import Target
from tests.databases.kinds import Kind
from tests.harness import client
from tests.harness.deployment import UPSTREAM_KEY, Deployment, provider_settings
from tests.harness.server import running_server
from tests.scenarios import books

if TYPE_CHECKING:
    from tests.harness.server import Server

KILLS = 20
CLIENTS = 16
#: Workers count as dead after four of these.
SETTINGS = {"LEDGER_HEARTBEAT": "250ms"}


@define
class Load:
    """Clients that ask for one thing after another, each at a path of its own, until they are stopped."""

    secret: str
    numbers: Iterator[int] = field(factory=itertools.count)
    answered: int = 0

    async def run(self, url: str) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                nursery.start_soon(self._client, url)

    async def _client(self, url: str) -> None:
        headers = [("Authorization", f"Bearer {self.secret}")]
        with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            async with client.connect(url) as connection:
                while True:
                    await connection.request("GET", f"/v1/models/m-{next(self.numbers)}", headers)
                    await connection.response()
                    self.answered += 1


async def kill_under_load(servers: Sequence[Server], load: Load, seconds: float) -> None:
    async with trio.open_nursery() as nursery:
        for server in servers:
            nursery.start_soon(load.run, server.url)
        await trio.sleep(seconds)
        for server in servers:
            server.kill()
        nursery.cancel_scope.cancel()


@pytest.fixture
def logging_upstream(tmp_path: Path) -> Iterator[tuple[Upstream, Path]]:
    log = tmp_path / "upstream.log"
    with Upstream.start("--key", UPSTREAM_KEY, "--log", str(log)) as upstream:
        yield upstream, log


def test_every_request_that_the_provider_saw_is_in_the_books(
    logging_upstream: tuple[Upstream, Path], migrated_env: dict[str, str], migrated_target: Target, database_kind: Kind
) -> None:
    upstream, log = logging_upstream
    settings = provider_settings(upstream) | SETTINGS
    moments = random.Random(14)
    with running_server(migrated_env, settings) as server:
        load = Load(Deployment(server, upstream).new_secret())
    at_once = 1 if database_kind is Kind.SQLITE else 4
    for _ in range(KILLS // at_once):
        with ExitStack() as stack:
            started = [stack.enter_context(running_server(migrated_env, settings, ready=False)) for _ in range(at_once)]
            for server in started:
                server.wait_ready()
            trio.run(kill_under_load, started, load, moments.uniform(0.05, 0.4))

    seen = {json.loads(line)["target"] for line in log.read_text().splitlines()}
    assert len(seen) > KILLS * 3, "too little load to prove anything"
    with running_server(migrated_env, settings) as server:
        deadline = time.monotonic() + 10
        while books.outcomes(migrated_target)["in_flight"] and time.monotonic() < deadline:
            time.sleep(0.1)
        assert server.stop() == 0, server.output

    found = books.outcomes(migrated_target)
    assert "in_flight" not in found
    with opened(migrated_target, Options()) as database:
        written = set(database.read_now(lambda connection: list(connection.scalars(select(requests.c.path)))))
    assert seen <= written
    books.verify(migrated_env)
