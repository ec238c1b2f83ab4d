"""The database goes away under load and comes back: refused in time, nothing lost, nobody restarts anything.

The proxy reaches its database over a wire. Cutting and closing the wire is what a stopped server looks like (its
connections reset, new ones refused); freezing it is what a hanging one looks like.
"""
# ruff: noqa: ASYNC110 (what is waited for happens in other processes)

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from db.target import Target
from tests.databases.kinds import Kind, on
from tests.harness import client
from tests.harness.deployment import Deployment
from tests.harness.wire import Wire, wire_to
from tests.scenarios import books

if TYPE_CHECKING:
    from benchmarks.processes import Upstream
    from tests.harness.server import StartServer

#: Seconds in which a request must have its answer while the database is away, and in which the proxy must be back.
PROMPT = 2.0
#: How long the database stays away.
AWAY = 4.0


@asynccontextmanager
async def cut_off_able(env: dict[str, str]) -> AsyncIterator[tuple[dict[str, str], Wire]]:
    """The same database, reached over a wire."""
    address = re.search(r"(?<=[@(])([\w.]+):(\d+)", env["DATABASE_URL"])
    assert address is not None
    async with wire_to(address[1], int(address[2])) as wire:
        url = env["DATABASE_URL"].replace(address[0], f"{wire.host}:{wire.port}", 1)
        yield {**env, "DATABASE_URL": url}, wire


async def assert_refused(deployment: Deployment, secret: str) -> None:
    started = trio.current_time()
    answer = await deployment.chat(secret)
    took = trio.current_time() - started
    assert (answer.status, answer.json()["error"]["code"]) == (503, "database_unavailable")
    assert int(answer.header("Retry-After") or 0) >= 1
    assert took < PROMPT


@pytest.mark.parametrize("fault", ["stopped", "hanging"])
@on("postgres", "mysql", "mariadb")
async def test_the_database_goes_and_comes_back(
    start_server: StartServer,
    upstream: Upstream,
    migrated_env: dict[str, str],
    migrated_target: Target,
    database_kind: Kind,
    fault: str,
) -> None:
    async with cut_off_able(migrated_env) as (env, wire):
        start = partial(start_server, env, {"DATABASE_STATEMENT_TIMEOUT": "2s"}, ready=False)
        server = await trio.to_thread.run_sync(start)
        await server.ready()
        deployment = Deployment(server, upstream)
        secret: str = await trio.to_thread.run_sync(deployment.new_secret)
        assert (await deployment.chat(secret)).status == 200

        streams: list[client.Response] = []
        async with trio.open_nursery() as nursery:

            async def stream() -> None:
                paced = (("x-scripted-chunks", "20"), ("x-scripted-gap", "0.1"))
                streams.append(await deployment.chat(secret, *paced, stream=True))

            for _ in range(3):
                nursery.start_soon(stream)
            await trio.sleep(0.5)
            if fault == "stopped":
                wire.refuse()
                wire.cut()
            else:
                wire.freeze()
            away = trio.current_time()
            while trio.current_time() < away + AWAY:
                await assert_refused(deployment, secret)
                await trio.sleep(0.1)
        # What was running when the database went has come to its end all the same.
        assert [(stream.status, stream.complete) for stream in streams] == [(200, True)] * 3
        live = await trio.to_thread.run_sync(server.call, "GET", "/live")
        ready = await trio.to_thread.run_sync(server.call, "GET", "/ready")
        assert (live.status, ready.status) == (200, 503)
        assert "database" in ready.content["failing"]

        if fault == "stopped":
            await wire.accept()
        else:
            wire.thaw()
        back = trio.current_time()
        served: client.Response | None = None
        while served is None or served.status != 200:
            assert trio.current_time() < back + PROMPT, f"not back after {PROMPT} s"
            served = await deployment.chat(secret)
            await trio.sleep(0.05)

        answered = 1 + len(streams) + 1
        with trio.fail_after(5):
            while (await settled(migrated_target))["ok"] < answered:
                await trio.sleep(0.05)
        assert await server.stopped() == 0, server.output
    found = books.outcomes(migrated_target)
    # What was admitted while the answer was lost on the wire has been given back.
    assert found.keys() <= {"ok", "void"}
    assert found["ok"] == answered
    books.verify(migrated_env)
    assert "Traceback" not in server.output


async def settled(target: Target) -> Any:
    return await trio.to_thread.run_sync(books.outcomes, target)
