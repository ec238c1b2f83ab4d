"""DB_OUTAGE_POLICY=grace: recently used tokens are admitted in an outage, and the ledger has their requests afterwards.

Each request has its own path, so that what the provider has seen can be compared with the ledger.
"""
# ruff: noqa: ASYNC110 (the tests wait for other processes)

from __future__ import annotations

import itertools
import re
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from attrs import define, field
from sqlalchemy import select

from db import Connection
from db.database import opened
from db.dsn.target import Target
from db.options import Options
from db.records import UNKNOWN, SettledRequest
from db.schema import requests
from llm_proxy.ledger.outage.replay import decode
from tests.databases.kinds import on
from tests.harness.deployment import Deployment
from tests.harness.server import ServerFailed
from tests.harness.wire import Wire, wire_to
from tests.scenarios import ledger_checks
from tests.scenarios.aftermath import metric

if TYPE_CHECKING:
    from benchmarks.processes import Upstream
    from tests.harness.server import Server, StartServer

#: Maximum number of requests of one token per worker in these outages.
MOST = 5
SETTINGS = {
    "DB_OUTAGE_POLICY": "grace",
    "DB_OUTAGE_GRACE_REQUESTS": str(MOST),
    "DATABASE_STATEMENT_TIMEOUT": "2s",
    "LEDGER_HEARTBEAT": "250ms",
}
#: Seconds for everything that the tests wait for.
PATIENCE = 30.0


@define
class Caller:
    """A client whose requests each have their own path. The provider knows none of them, and answers 404."""

    secret: str
    numbers: Iterator[int] = field(factory=itertools.count)

    async def ask(self, server: Server) -> int:
        """Send one request; return its status."""
        path = f"/v1/models/m-{next(self.numbers)}"
        return (await server.request("GET", path, [("Authorization", f"Bearer {self.secret}")])).status

    async def ask_often(self, server: Server, times: int) -> Counter[int]:
        """Send requests one after the other; return how often each status came."""
        return Counter([await self.ask(server) for _ in range(times)])

    async def ask_until(self, server: Server, status: int) -> None:
        """Send requests until an answer has this status."""
        with trio.fail_after(PATIENCE):
            while await self.ask(server) != status:
                await trio.sleep(0.05)


async def known_caller(server: Server, upstream: Upstream) -> Caller:
    """A client that the server has seen before the outage."""
    caller = Caller(await trio.to_thread.run_sync(Deployment(server, upstream).new_secret))
    assert await caller.ask(server) == 404
    return caller


async def until(condition: Callable[[], bool]) -> None:
    """Check, in a thread, until the condition is true."""
    with trio.fail_after(PATIENCE):
        while not await trio.to_thread.run_sync(condition):
            await trio.sleep(0.02)


@asynccontextmanager
async def started(
    start_server: StartServer, env: dict[str, str], number: int = 1, **settings: str
) -> AsyncIterator[tuple[list[Server], Wire]]:
    """Servers that reach their database over one wire."""
    async with cut_off_able(env) as (reached, wire):
        servers: list[Server] = []
        for _ in range(number):
            start = partial(start_server, reached, SETTINGS | settings, ready=False)
            servers.append(await trio.to_thread.run_sync(start))
        for server in servers:
            await server.ready(PATIENCE)
        yield servers, wire
        for server in servers:
            if server.process.running:
                assert await server.stopped() == 0, server.output
                assert spools(server.folder / "data") == []


@asynccontextmanager
async def cut_off_able(env: dict[str, str]) -> AsyncIterator[tuple[dict[str, str], Wire]]:
    """The same database, reached over a wire."""
    address = re.search(r"(?<=[@(])([\w.]+):(\d+)", env["DATABASE_URL"])
    assert address is not None
    async with wire_to(address[1], int(address[2])) as wire:
        url = env["DATABASE_URL"].replace(address[0], f"{wire.host}:{wire.port}", 1)
        yield {**env, "DATABASE_URL": url}, wire


def cut_off(wire: Wire) -> None:
    wire.refuse()
    wire.cut()


def spools(folder: Path) -> list[Path]:
    return list(folder.glob("outage-*.spool.db"))


def spooled(path: Path) -> list[SettledRequest]:
    """Read the spool of a running server, as no other process than the tests does."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        records = [record for (record,) in connection.execute("SELECT record FROM spool ORDER BY id")]
    return [settlement.row for settlement in decode(records)[0]]


def replayed(server: Server) -> bool:
    """Whether a server's spool has nothing left for the database."""
    (spool,) = spools(server.folder / "data")
    return spooled(spool) == []


async def assert_balanced(env: dict[str, str], target: Target, upstream: Upstream) -> Counter[str]:
    """Assert that the ledger has each request that the provider has seen, once; return the outcomes."""

    def paths(connection: Connection) -> Counter[str]:
        return Counter(connection.scalars(select(requests.c.path).where(requests.c.outcome != "void")))

    def read() -> Counter[str]:
        with opened(target, Options(), exclusive=False) as database:
            return database.read_now(paths)

    await until(lambda: ledger_checks.outcomes(target)["in_flight"] == 0)
    found = await trio.to_thread.run_sync(ledger_checks.outcomes, target)
    seen = Counter(seen["target"] for seen in await trio.to_thread.run_sync(upstream.requests))
    assert await trio.to_thread.run_sync(read) == seen
    await trio.to_thread.run_sync(ledger_checks.verify, env)
    return found


@on("postgres", "mysql", "mariadb")
async def test_requests_are_admitted_in_an_outage_and_in_the_ledger_afterwards(
    start_server: StartServer,
    upstream: Upstream,
    migrated_env: dict[str, str],
    migrated_target: Target,
) -> None:
    async with started(start_server, migrated_env) as ((server,), wire):
        caller = await known_caller(server, upstream)
        cut_off(wire)
        assert await caller.ask_often(server, 8) == {404: MOST, 503: 3}
        ready = await trio.to_thread.run_sync(server.call, "GET", "/ready")
        assert (ready.status, ready.content["status"]) == (200, "grace")
        assert "database" in ready.content["failing"]
        assert await trio.to_thread.run_sync(metric, server, "llm_proxy_database_grace_admissions_total") == MOST
        assert await trio.to_thread.run_sync(metric, server, "llm_proxy_database_spooled_requests") == MOST
        (spool,) = spools(server.folder / "data")
        files = list(spool.parent.glob(f"{spool.name}*"))
        assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
        assert all(caller.secret.encode() not in file.read_bytes() for file in files)

        await wire.accept()
        await caller.ask_until(server, 404)
        await until(lambda: spooled(spool) == [])
        assert await trio.to_thread.run_sync(metric, server, "llm_proxy_database_spooled_requests") == 0
        ready = await trio.to_thread.run_sync(server.call, "GET", "/ready")
        assert (ready.status, ready.content["status"]) == (200, "ready")
        found = await assert_balanced(migrated_env, migrated_target, upstream)
        assert found["rejected"] == 1 + MOST + 1
    events = [str(event.get("event", "")).partition(":")[0] for event in server.events]
    found_events = [event for event in events if event.startswith("outage mode")]
    assert found_events == ["outage mode started", "outage mode ended"]
    assert "Traceback" not in server.output


@on("postgres", "mysql")
async def test_requests_are_admitted_when_the_database_hangs(
    start_server: StartServer, upstream: Upstream, migrated_env: dict[str, str], migrated_target: Target
) -> None:
    async with started(start_server, migrated_env) as ((server,), wire):
        caller = await known_caller(server, upstream)
        wire.freeze()
        # Requests in the transaction that hangs are refused: the database may have them.
        await caller.ask_until(server, 404)
        assert await caller.ask_often(server, 8) == {404: MOST - 1, 503: 8 - (MOST - 1)}
        wire.thaw()
        await caller.ask_until(server, 404)
        found = await assert_balanced(migrated_env, migrated_target, upstream)
        assert found["rejected"] == 1 + MOST + 1
    assert "Traceback" not in server.output


@on("postgres", "mysql", "mariadb")
async def test_a_server_killed_during_an_outage_loses_no_record(
    start_server: StartServer,
    upstream: Upstream,
    migrated_env: dict[str, str],
    migrated_target: Target,
    tmp_path: Path,
) -> None:
    async with started(start_server, migrated_env, DB_OUTAGE_SPOOL=str(tmp_path)) as ((server,), wire):
        caller = await known_caller(server, upstream)
        await until(lambda: ledger_checks.outcomes(migrated_target)["rejected"] == 1)
        cut_off(wire)
        assert await caller.ask_often(server, 3) == {404: 3}
        upstream.hold()
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(partial(_until_cut_off, caller, server))
            await until(lambda: upstream.counts()["in_flight"] == 2)
            (spool,) = spools(tmp_path)
            # The end of a request is on the disk soon after its answer.
            await until(lambda: sum(row.result != UNKNOWN for row in spooled(spool)) == 3)
            server.kill()
        upstream.release()
        await wire.accept()
        with spool.with_name(spool.name + "-wal").open("ab") as log:
            log.write(b"the beginning of a transaction")
        async with started(start_server, migrated_env, DB_OUTAGE_SPOOL=str(tmp_path)) as ((next_one,), _):
            await until(lambda: not spool.exists())
            assert await caller.ask(next_one) == 404
            found = await assert_balanced(migrated_env, migrated_target, upstream)
    assert found == {"rejected": 1 + 3 + 1, "unknown": 2}
    assert "the spool of a stopped worker was replayed" in next_one.output
    assert spools(tmp_path) == []


async def _until_cut_off(caller: Caller, server: Server) -> None:
    with pytest.raises((ConnectionError, trio.BrokenResourceError)):
        await caller.ask(server)


@on("postgres", "mysql")
async def test_maximum_overshoot_in_outage_mode_equals_the_documented_bound(
    start_server: StartServer,
    upstream: Upstream,
    migrated_env: dict[str, str],
    migrated_target: Target,
) -> None:
    workers, limit = 3, 10
    async with started(start_server, migrated_env, workers) as (servers, wire):
        make = partial(Deployment(servers[0], upstream).new_token, max_requests=limit)
        token = await trio.to_thread.run_sync(make)
        caller = Caller(token["token"])
        for server in servers:
            assert await caller.ask(server) == 404
        left = limit - workers
        cut_off(wire)
        statuses: list[Counter[int]] = []
        async with trio.open_nursery() as nursery:

            async def use_up(server: Server) -> None:
                statuses.append(await caller.ask_often(server, MOST + 3))

            for server in servers:
                nursery.start_soon(use_up, server)
        assert statuses == [{404: MOST, 503: 3}] * workers
        await wire.accept()
        # The bound is for workers that are back at the same time. The first one that is back admits what the counter
        # leaves without the requests of the others.
        for server in servers:
            await until(partial(replayed, server))
        for server in servers:
            await caller.ask_until(server, 429)
        await assert_balanced(migrated_env, migrated_target, upstream)
        found = await trio.to_thread.run_sync(servers[0].manage, "GET", f"/tokens/{token['id']}")
    assert found["request_count"] - limit == MOST * workers - left


@on("sqlite")
async def test_the_spool_of_a_killed_server_is_replayed_by_one_without_the_outage_mode(
    start_server: StartServer, upstream: Upstream, migrated_env: dict[str, str], migrated_target: Target
) -> None:
    path = Path(migrated_env["DATABASE_PATH"])
    server = start_server(migrated_env, SETTINGS)
    caller = await known_caller(server, upstream)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await caller.ask_until(server, 404)
        assert await caller.ask_often(server, MOST) == {404: MOST - 1, 503: 1}
        (spool,) = spools(path.parent)
        server.kill()
    next_one = start_server(migrated_env)
    await until(lambda: not spool.exists())
    assert await caller.ask(next_one) == 404
    # A request whose end was not spooled yet is open until the next sweep.
    await assert_balanced(migrated_env, migrated_target, upstream)
    assert await next_one.stopped() == 0, next_one.output


@on("sqlite")
def test_a_server_does_not_start_if_the_spool_cannot_be_created(
    start_server: StartServer, migrated_env: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    message = r"DB_OUTAGE_POLICY=grace: .*/outage-.*\.db cannot be created: Not a directory; set DB_OUTAGE_SPOOL to"
    with pytest.raises(ServerFailed, match=message) as failed:
        start_server(migrated_env, {**SETTINGS, "DB_OUTAGE_SPOOL": str(tmp_path / "file" / "spools")})
    assert "Traceback" not in str(failed.value)
