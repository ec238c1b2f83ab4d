"""A client leaves, at any moment and in any way: the upstream notices it within 100 ms, and nothing is left behind.

The time is taken between two processes that may share a busy processor, so it is the median of several departures that
must keep the bound. Every single one must be settled once, with the outcome of docs/adr/0002.
"""
# ruff: noqa: ASYNC110 (what is waited for happens in other processes)

from __future__ import annotations

import re
import socket
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from benchmarks.processes import Upstream
from db.dsn.target import Target
from tests.databases.kinds import Kind, on
from tests.databases.scratch import Databases
from tests.harness import client
from tests.harness.deployment import UPSTREAM_KEY, Deployment, chat_body, chat_headers
from tests.harness.server import Server, running_server
from tests.harness.wire import wire_to
from tests.scenarios import aftermath, ledger_checks
from tests.scenarios.gateway import figure

if TYPE_CHECKING:
    from tests.harness.server import StartServer

#: Seconds from the departure of a client to the closing of the upstream connection, as the median of TIMES.
BOUND = 0.1
TIMES = 5
CHAT = "/v1/chat/completions"


async def close(connection: client.Connection) -> None:
    """FIN: what closing a connection sends, as long as everything was read.

    A client that only ends its own side sends the same. It is still there, and gets its answer (docs/adr/0021).
    """
    await connection.close()


async def reset(connection: client.Connection) -> None:
    """RST: what closing a connection sends with something unread, and what is left of a killed process."""
    connection.reset()


WAYS = pytest.mark.parametrize("leave", [close, reset], ids=["fin", "rst"])
Leave = Callable[[client.Connection], Awaitable[None]]


# How far a request has come when its client leaves.


async def before_the_first_byte(connection: client.Connection, secret: str) -> None:
    await connection.request("POST", CHAT, chat_headers(secret, ("x-scripted-delay", "60")), chat_body())


async def in_the_middle_of_a_stream(connection: client.Connection, secret: str) -> None:
    paced = (("x-scripted-chunks", "5000"), ("x-scripted-gap", "0.05"))
    await connection.request("POST", CHAT, chat_headers(secret, *paced), chat_body(stream=True))
    assert (await connection.head("POST")).status == 200
    assert await connection.receive()


async def with_another_request_behind(connection: client.Connection, secret: str) -> None:
    await before_the_first_byte(connection, secret)
    await connection.request("GET", "/v1/models/behind", chat_headers(secret))


async def with_many_others_behind(connection: client.Connection, secret: str) -> None:
    """As many as fit into the buffers: the server has to notice the end without reading up to it."""
    await before_the_first_byte(connection, secret)
    await connection.send(client.encode("GET", "/v1/models/behind", chat_headers(secret)) * 200)


ARRIVALS = [
    before_the_first_byte,
    in_the_middle_of_a_stream,
    with_another_request_behind,
    with_many_others_behind,
]


@on("sqlite")
@WAYS
@pytest.mark.parametrize("arrive", ARRIVALS)
async def test_disconnect_while_the_provider_works_closes_its_connection(
    deployment: Deployment, arrive: Callable[[client.Connection, str], Awaitable[None]], leave: Leave
) -> None:
    token = deployment.new_token(deployment.project()["id"])
    upstream = deployment.upstream
    before = ended(deployment)
    took: list[float] = []
    for number in range(1, TIMES + 1):
        async with client.connect(deployment.server.url) as connection:
            await arrive(connection, token["token"])
            upstream.wait(in_flight=1, requests=number)
            left = time.time()
            await leave(connection)
            upstream.wait(closed_early=number)
            took.append(upstream.requests()[-1]["closed_early_at"] - left)
    assert statistics.median(took) <= BOUND, took
    assert upstream.counts()["requests"] == TIMES, "what stood behind the request was sent"
    assert_settled(deployment, token, "client_closed", before)


@on("sqlite")
@WAYS
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_disconnect_in_an_upload_closes_the_upstream(deployment: Deployment, leave: Leave, framing: str) -> None:
    token = deployment.new_token(deployment.project()["id"])
    upstream = deployment.upstream
    before = ended(deployment)
    took: list[float] = []
    if framing == "length":
        headers, piece = [("Content-Length", "1000000")], bytes(200_000)
    else:
        headers, piece = [("Transfer-Encoding", "chunked")], b"30d40\r\n" + bytes(200_000) + b"\r\n"
    for number in range(1, TIMES + 1):
        async with client.connect(deployment.server.url) as connection:
            await connection.request("POST", CHAT, [*chat_headers(token["token"]), *headers])
            await connection.send(piece)
            await until(lambda: in_use(deployment) == 1)
            # The upstream counts requests that it has read; this one it never will.
            await trio.sleep(0.05)
            broken = partial(upstream.wait, broken=number)
            async with trio.open_nursery() as nursery:
                left = time.time()

                async def notice(broken: Callable[[], Any], left: float) -> None:
                    await trio.to_thread.run_sync(broken)
                    took.append(time.time() - left)

                nursery.start_soon(notice, broken, left)
                await leave(connection)
    assert statistics.median(took) <= BOUND, took
    assert upstream.counts()["requests"] == 0
    assert_settled(deployment, token, "client_closed", before)


# Providers that the scripted upstream cannot play.


@contextmanager
def deaf_provider(*, accepts: bool) -> Iterator[socket.socket]:
    """A listener that nobody attends to. Unless it `accepts`, its queue is full, and connecting to it hangs."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64 if accepts else 0))
        while not accepts:
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0.2)
            try:
                filler.connect(listener.getsockname())
            except TimeoutError:
                # A busy machine may just be slow, with nothing in the queue yet.
                if not LINUX_SOCKETS.exists() or sockets_to(listener, ESTABLISHED):
                    break
        yield listener


@asynccontextmanager
async def server_before(
    databases: Databases, listener: socket.socket, outcome: str
) -> AsyncIterator[tuple[Server, dict[str, Any]]]:
    """A server in front of such a provider, and a token of it. All its requests must end with this outcome."""
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with databases.migrated(Kind.SQLITE) as scratch:
        with running_server(scratch.env, {"OPENAI_API_URL": url}) as server:
            project = server.manage("POST", "/projects", {"name": "deaf", "api_key": UPSTREAM_KEY})
            token = server.manage("POST", "/tokens", {"project_id": project["id"]})
            yield server, token
            aftermath.settled(server, token["id"], TIMES)
            wait_until(lambda: nothing_held(server))
            # Where not a byte has left this machine, nothing is counted.
            assert aftermath.counter(server, token["id"]) == (0 if outcome == "void" else TIMES)
            assert await server.stopped() == 0, server.output
        assert ledger_checks.outcomes(scratch.target) == {outcome: TIMES}
        ledger_checks.verify(scratch.env)


def sockets_to(listener: socket.socket, state: str) -> int:
    """How many sockets of this machine have the listener as their peer, in one of the states of proc_net_tcp(5)."""
    return LINUX_SOCKETS.read_text().count(f" 0100007F:{listener.getsockname()[1]:04X} {state} ")


ESTABLISHED, SYN_SENT = "01", "02"
LINUX_SOCKETS = Path("/proc/net/tcp")
LINUX = pytest.mark.skipif(not LINUX_SOCKETS.exists(), reason="asks Linux about its sockets")


@LINUX
@WAYS
async def test_disconnect_while_connecting_is_void(databases: Databases, leave: Leave) -> None:
    with deaf_provider(accepts=False) as listener:
        others = sockets_to(listener, SYN_SENT)
        async with server_before(databases, listener, "void") as (server, token):
            took: list[float] = []
            for _ in range(TIMES):
                async with client.connect(server.url) as connection:
                    await connection.request("POST", CHAT, chat_headers(token["token"]), chat_body())
                    await until(lambda: sockets_to(listener, SYN_SENT) == others + 1)
                    left = time.time()
                    await leave(connection)
                    await until(lambda: sockets_to(listener, SYN_SENT) == others)
                    took.append(time.time() - left)
            assert statistics.median(took) <= BOUND, took


@LINUX
async def test_disconnect_in_an_upload_that_the_provider_does_not_read(databases: Databases) -> None:
    """The proxy cannot read on to see whether the client is there: it has no room left for what it would read.

    A FIN cannot tell it either, for that waits behind everything that the client's machine has still to send.
    """
    with deaf_provider(accepts=True) as listener:
        async with server_before(databases, listener, "client_closed") as (server, token):
            took: list[float] = []
            for _ in range(TIMES):
                async with client.connect(server.url) as connection:
                    headers = [*chat_headers(token["token"]), ("Content-Length", "90000000")]
                    await connection.request("POST", CHAT, headers)
                    await fill(connection)
                    assert sockets_to(listener, ESTABLISHED) == 1
                    left = time.time()
                    connection.reset()
                    await until(lambda: sockets_to(listener, ESTABLISHED) == 0)
                    took.append(time.time() - left)
            assert statistics.median(took) <= BOUND, took


async def fill(connection: client.Connection) -> None:
    """Send until nothing more is taken."""
    piece = bytes(256 * 1024)
    stuck = False
    while not stuck:
        with trio.move_on_after(0.3) as patience:
            await connection.stream.send_all(piece)
        stuck = patience.cancelled_caught


# Admission.


@asynccontextmanager
async def frozen_able(env: dict[str, str]) -> AsyncIterator[Any]:
    """The same database over a wire."""
    address = re.search(r"(?<=[@(])([\w.]+):(\d+)", env["DATABASE_URL"])
    assert address is not None
    async with wire_to(address[1], int(address[2])) as wire:
        url = env["DATABASE_URL"].replace(address[0], f"{wire.host}:{wire.port}", 1)
        yield {**env, "DATABASE_URL": url}, wire


def half_open(server: Server) -> bool:
    """Whether the server has a connection that its client has closed (CLOSE_WAIT)."""
    table = Path("/proc/net/tcp").read_text()
    return re.search(rf" 0100007F:{server.port:04X} [0-9A-F]{{8}}:[0-9A-F]{{4}} 08 ", table) is not None


@LINUX
@WAYS
@on("postgres", "mariadb")
async def test_disconnect_while_the_admission_waits_is_void_or_has_no_row(
    start_server: StartServer, upstream: Upstream, migrated_env: dict[str, str], migrated_target: Target, leave: Leave
) -> None:
    async with frozen_able(migrated_env) as (env, wire):
        # Nothing but requests shall come between: no heartbeat, and no settlement of the request before.
        start = partial(start_server, env, {"LEDGER_HEARTBEAT": "1h"}, ready=False)
        server = await trio.to_thread.run_sync(start)
        await server.ready()
        deployment = Deployment(server, upstream)
        token: dict[str, Any] = await trio.to_thread.run_sync(deployment.new_token)
        assert (await deployment.chat(token["token"])).status == 200
        await trio.to_thread.run_sync(aftermath.settled, server, token["id"], 1)
        await trio.to_thread.run_sync(wait_until, lambda: nothing_held(server))
        wire.freeze()
        took: list[float] = []
        # Often, for the table of connections is slow to read beside other tests.
        for _ in range(3 * TIMES):
            async with client.connect(server.url) as connection:
                await connection.request("POST", CHAT, chat_headers(token["token"]), chat_body())
                await trio.sleep(0.1)
                left = time.time()
                await leave(connection)
                if leave is close:
                    await until(lambda: not half_open(server))
                    took.append(time.time() - left)
        wire.thaw()
        assert statistics.median(took or [0]) <= BOUND, took
        await trio.to_thread.run_sync(wait_until, lambda: nothing_held(server))
        assert await trio.to_thread.run_sync(aftermath.counter, server, token["id"]) == 1
        assert await server.stopped() == 0, server.output
    assert upstream.counts()["requests"] == 1
    # The first was in the transaction that hung: its count is given back. The others left before theirs began.
    assert ledger_checks.outcomes(migrated_target) == {"ok": 1, "void": 1}
    ledger_checks.verify(migrated_env)


# What is left.


def ended(deployment: Deployment) -> float:
    """Requests that were settled so far, by the server's own count."""
    return figure(deployment, "llm_proxy_requests_total")


def in_use(deployment: Deployment) -> float:
    return figure(deployment, "llm_proxy_upstream_connections", state="in_use")


def nothing_held(server: Server) -> bool:
    """Whether no connection is in use, to a provider or to the database, and nothing waits."""
    text = str(server.call("GET", "/metrics").content)
    held = [
        r'llm_proxy_upstream_connections{state="in_use"}',
        r'llm_proxy_database_connections{state="in_use"}',
        "llm_proxy_database_waiting_requests",
        "llm_proxy_database_unsettled_requests",
    ]
    in_flight = sum(map(float, re.findall(r"^llm_proxy_upstream_in_flight_requests{.*} (\S+)$", text, re.MULTILINE)))
    return not in_flight and all(f"\n{name} 0.0\n" in text for name in held)


def assert_settled(deployment: Deployment, token: dict[str, Any], outcome: str, before: float) -> None:
    """TIMES requests of this token are settled with this outcome, each once, and nothing is left of them."""
    server = deployment.server
    rows = aftermath.settled(server, token["id"], TIMES)
    assert [row["outcome"] for row in rows] == [outcome] * TIMES
    assert aftermath.counter(server, token["id"]) == TIMES
    wait_until(lambda: nothing_held(server))
    assert ended(deployment) == before + TIMES


def wait_until(true: Callable[[], bool]) -> None:
    aftermath.wait_for(lambda: true() or None, 5.0, lambda: "it has not come to pass within 5 s")


async def until(true: Callable[[], bool]) -> None:
    """Look again and again, closely enough to measure by it."""
    with trio.fail_after(5):
        while not true():
            await trio.sleep(0.002)
