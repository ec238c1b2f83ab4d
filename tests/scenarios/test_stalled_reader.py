"""A client that stops reading holds nothing beyond CLIENT_WRITE_TIMEOUT, and a shutdown not beyond SHUTDOWN_GRACE.

The deadline runs from the last byte that the client's machine took. When it has passed, the connection to the client is
reset, that to the upstream is closed, and the request is settled as `client_closed`. By default it is 30 seconds; here
it is one. Who reads slowly, or waits for a provider that thinks, is not stalled.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from benchmarks.processes import Upstream
from tests.databases.kinds import Kind
from tests.databases.scratch import Databases
from tests.harness import client
from tests.harness.deployment import Deployment, chat_headers
from tests.scenarios import aftermath, ledger_checks
from tests.scenarios.gateway import open_gateway

DEADLINE = 1.0
#: What a busy machine may add to a deadline, in seconds.
LENIENCE = 2.0
STALLED = 5
#: A stream of four seconds at least, and far more than the buffers between the proxy and a client that takes little.
PIECES = 2000
BODY = bytes(1500) * PIECES
PACED = [("x-scripted-echo", "1"), ("x-scripted-chunks", str(PIECES)), ("x-scripted-gap", "0.002")]


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, str]:
    return {"CLIENT_WRITE_TIMEOUT": f"{DEADLINE:g}s"}


@asynccontextmanager
async def stalled_reader(deployment: Deployment, secret: str) -> AsyncIterator[client.Connection]:
    """A client that has read the head of a long stream, and reads no more."""
    async with client.connect(deployment.server.url, receive_buffer=4096) as connection:
        await connection.request("POST", "/v1/chat/completions", chat_headers(secret, *PACED), BODY)
        assert (await connection.head("POST")).status == 200
        yield connection


async def test_a_stalled_reader_is_reset_after_client_write_timeout(gateway: Deployment) -> None:
    token = gateway.new_token(gateway.project()["id"])
    before = aftermath.holdings(gateway.server, gateway.upstream)
    received: list[int] = []

    async def stall() -> None:
        async with stalled_reader(gateway, token["token"]) as connection:
            stalled.append(time.time())
            await over.wait()
            # What was on its way is still there, and behind it no end of the stream but a reset.
            answer = await connection.receive_all()
            received.append(len(answer))
            assert not answer.endswith(b"0\r\n\r\n")

    stalled: list[float] = []
    over = trio.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(STALLED):
            nursery.start_soon(stall)
        await trio.to_thread.run_sync(lambda: gateway.upstream.wait(in_flight=STALLED))
        # They are in nobody's way meanwhile.
        assert (await gateway.chat(gateway.new_secret(gateway.project()["id"]))).status == 200
        await trio.to_thread.run_sync(lambda: gateway.upstream.wait(closed_early=STALLED))
        await trio.to_thread.run_sync(aftermath.assert_nothing_left, gateway.server, gateway.upstream, before, LENIENCE)
        over.set()
    closed = sorted(entry["closed_early_at"] for entry in gateway.upstream.requests() if entry["closed_early_at"])
    assert min(closed) - min(stalled) >= DEADLINE * 0.9
    assert max(closed) - max(stalled) <= DEADLINE + LENIENCE
    assert max(received) < len(BODY) / 4
    rows = aftermath.settled(gateway.server, token["id"], STALLED)
    assert aftermath.outcomes(rows) == {("client_closed", 200): STALLED}
    assert aftermath.counter(gateway.server, token["id"]) == STALLED


async def piece(connection: client.Connection, limit: int) -> bytes:
    """Read on; the end must not come."""
    data = await connection.receive(limit)
    assert data, "the response was cut off"
    return data


async def test_a_slow_reader_is_not_reset(gateway: Deployment) -> None:
    token = gateway.new_token(gateway.project()["id"])
    body = bytes(256 * 1024)
    headers = chat_headers(token["token"], ("x-scripted-echo", "1"))
    async with client.connect(gateway.server.url, receive_buffer=16384) as connection:
        await connection.request("POST", "/v1/chat/completions", headers, body)
        started = time.monotonic()
        received = bytearray()
        while time.monotonic() < started + 3 * DEADLINE:
            received += await piece(connection, 8192)
            await trio.sleep(DEADLINE / 4)
        assert len(received) < len(body), "it was not slow"
        while len(received) < len(body):
            received += await piece(connection, 65536)
    (row,) = aftermath.settled(gateway.server, token["id"], 1)
    assert (row["outcome"], row["response_bytes"]) == ("ok", len(body))


async def test_a_pausing_provider_does_not_count_as_a_stalled_reader(gateway: Deployment) -> None:
    token = gateway.new_token(gateway.project()["id"])
    pausing = (("x-scripted-chunks", "1"), ("x-scripted-gap", str(1.4 * DEADLINE)))
    answer = await gateway.chat(token["token"], ("x-scripted-delay", str(1.4 * DEADLINE)), *pausing)
    assert (answer.status, answer.complete) == (200, True)


@pytest.mark.parametrize(
    ("grace", "deadline", "outcome"),
    [(1.0, 30.0, "proxy_error"), (20.0, DEADLINE, "client_closed")],
    ids=["beyond-the-grace", "within-the-grace"],
)
async def test_a_stalled_reader_does_not_delay_the_shutdown(
    databases: Databases, upstream: Upstream, tmp_path: Path, grace: float, deadline: float, outcome: str
) -> None:
    """The server ends when the grace is over, or before, when it has given up the last stalled reader."""
    settings: dict[str, Any] = {"SHUTDOWN_GRACE": f"{grace:g}s", "CLIENT_WRITE_TIMEOUT": f"{deadline:g}s"}
    with databases.migrated(Kind.SQLITE) as scratch:
        with open_gateway(scratch, upstream, tmp_path, settings) as deployment:
            secret = deployment.new_secret(deployment.project()["id"])
            async with stalled_reader(deployment, secret), stalled_reader(deployment, secret):
                started = time.monotonic()
                assert await deployment.server.stopped() == 0, deployment.server.output
                took = time.monotonic() - started
        assert took <= min(grace, deadline) + LENIENCE
        assert ledger_checks.outcomes(scratch.target) == {outcome: 2}
        ledger_checks.verify(scratch.env)
    assert upstream.wait(in_flight=0)["closed_early"] == 2
