"""SIGTERM under streaming load: not ready first, streams end normally, the ledger is complete, exit 0."""

from __future__ import annotations

import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import h11
import trio

from db.dsn.target import Target
from tests.databases.kinds import Kind, on
from tests.databases.scratch import Databases
from tests.harness import client
from tests.harness.deployment import Deployment, chat_body, chat_headers
from tests.scenarios import ledger_checks

if TYPE_CHECKING:
    from tests.harness.server import StartServer

STREAMS = 12


async def start(start_server: StartServer, env: dict[str, str], **settings: str) -> Any:
    server = await trio.to_thread.run_sync(partial(start_server, env, settings, ready=False))
    await server.ready()
    return server


async def test_streams_end_normally_within_the_grace(
    start_server: StartServer, upstream: Any, migrated_env: dict[str, str], migrated_target: Target
) -> None:
    server = await start(start_server, migrated_env, SHUTDOWN_GRACE="20s")
    deployment = Deployment(server, upstream)
    secret: str = await trio.to_thread.run_sync(deployment.new_secret)
    streams: list[client.Response] = []

    async def stream() -> None:
        paced = (("x-scripted-chunks", "25"), ("x-scripted-gap", "0.1"))
        streams.append(await deployment.chat(secret, *paced, stream=True))

    async with client.connect(server.url) as opened, trio.open_nursery() as nursery:
        for _ in range(STREAMS):
            nursery.start_soon(stream)
        await trio.sleep(1)
        server.terminate()
        with trio.fail_after(2):
            while True:
                ready = await trio.to_thread.run_sync(server.call, "GET", "/ready")
                if ready.status == 503:
                    break
        assert ready.content["failing"] == ["draining"]
        assert not streams, "the streams had ended before there was anything to see"
        # What comes meanwhile is served, as the last request of its connection.
        late = await deployment.chat(secret)
        assert (late.status, late.complete, late.header("Connection")) == (200, True, "close")
        await opened.request("POST", "/v1/chat/completions", chat_headers(secret), chat_body())
        answer = await opened.response("POST")
        assert (answer.status, answer.complete, answer.header("Connection")) == (200, True, "close")
    assert [(stream.status, stream.complete) for stream in streams] == [(200, True)] * STREAMS
    assert await server.ended() == 0, server.output
    assert ledger_checks.outcomes(migrated_target) == {"ok": STREAMS + 2}
    ledger_checks.verify(migrated_env)


async def test_requests_longer_than_the_grace_are_cut_off_and_settled(
    start_server: StartServer, upstream: Any, migrated_env: dict[str, str], migrated_target: Target
) -> None:
    server = await start(start_server, migrated_env, SHUTDOWN_GRACE="1s")
    deployment = Deployment(server, upstream)
    secret: str = await trio.to_thread.run_sync(deployment.new_secret)
    cut: list[bool] = []

    async def stream() -> None:
        async with client.connect(server.url) as connection:
            paced = (("x-scripted-chunks", "1000"), ("x-scripted-gap", "0.1"))
            await connection.request(
                "POST", "/v1/chat/completions", chat_headers(secret, *paced), chat_body(stream=True)
            )
            try:
                response = await connection.response()
            except (h11.RemoteProtocolError, trio.BrokenResourceError, OSError):
                cut.append(True)
            else:
                cut.append(not response.complete)

    async with trio.open_nursery() as nursery:
        for _ in range(STREAMS):
            nursery.start_soon(stream)
        await trio.sleep(1)
        with trio.fail_after(8):
            assert await server.stopped() == 0, server.output
    assert cut == [True] * STREAMS, "a stream that was cut off must not look complete"
    found = ledger_checks.outcomes(migrated_target)
    assert sum(found.values()) == STREAMS
    assert "in_flight" not in found
    assert "unknown" not in found
    ledger_checks.verify(migrated_env)


def test_an_idle_server_stops_at_once(start_server: StartServer, migrated_env: dict[str, str]) -> None:
    server = start_server(migrated_env)
    server.terminate()
    assert server.wait(timeout=5) == 0, server.output


@on("sqlite")
def test_repeated_sigterm_ends_the_server(start_server: StartServer, migrated_env: dict[str, str]) -> None:
    server = start_server(migrated_env)
    while server.process.running:
        server.terminate()
        time.sleep(0.001)
    assert server.wait() == 0, server.output


@on("sqlite")
async def test_shutdown_delay_keeps_serving_while_not_ready(
    start_server: StartServer, upstream: Any, migrated_env: dict[str, str]
) -> None:
    server = await start(start_server, migrated_env, SHUTDOWN_DELAY="1000s")
    deployment = Deployment(server, upstream)
    secret: str = await trio.to_thread.run_sync(deployment.new_secret)
    server.process.signal(signal.SIGINT)
    with trio.fail_after(30):
        while True:
            answer = await trio.to_thread.run_sync(server.call, "GET", "/ready")
            if answer.status == 503:
                break
    assert answer.content == {"status": "not ready", "failing": ["draining"]}
    assert (await deployment.chat(secret)).status == 200
    server.process.signal(signal.SIGINT)
    assert await server.ended(60) == 0, server.output


@on("postgres", "mysql", "mariadb")
def test_a_server_ends_although_its_database_is_away(
    start_server: StartServer, databases: Databases, database_kind: Kind
) -> None:
    with databases.empty(database_kind) as scratch:
        server = start_server(scratch.env)
    assert server.stop() == 0, server.output
    assert "Traceback" not in server.output
    assert "the database does not know that this worker has ended" in server.output
