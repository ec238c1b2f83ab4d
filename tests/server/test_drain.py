from __future__ import annotations

import socket

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from llm_proxy.server.asgi import Receive, Scope, Send
from tests.server.answers import Truncated, read_answers
from tests.server.applications import Echo, Hold, body, respond, start, with_lifespan
from tests.server.http1.framing_table import GET
from tests.server.running import Running, run_server

ENDLESS = b"x" * 65536


async def seconds_until_end(server: Running) -> float:
    began = trio.current_time()
    await server.ended.wait()
    return trio.current_time() - began


async def test_a_server_without_requests_ends_at_once(autojump_clock: MockClock) -> None:
    journal: list[str] = []
    async with run_server(with_lifespan(Echo(), journal)) as server, await server.connect() as idle:
        await idle.ask()
        async with await server.connect() as fresh:
            await wait_all_tasks_blocked()
            server.stop.set()
            assert await seconds_until_end(server) == 0
            await idle.read_to_end()
            assert await fresh.read_to_end() == b""
        with pytest.raises(OSError, match="all attempts to connect"):
            await server.connect()
    assert server.drains == 1
    assert journal == ["lifespan.startup", "lifespan.shutdown"]


async def test_a_request_on_its_way_to_an_idle_connection_is_answered() -> None:
    async with run_server(Echo()) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(GET)
            await wait_all_tasks_blocked()
            server.at_drain = lambda: client.sendall(GET)
            server.stop.set()
            await server.ended.wait()
            first, second = read_answers(client.recv(10_000))
            assert (first.closing, second.closing) == (False, True)
            assert client.recv(1) == b""


async def test_a_partly_sent_request_is_completed_and_answered(autojump_clock: MockClock) -> None:
    async with run_server(Echo()) as server, await server.connect() as client:
        await client.stream.send_all(GET[:-5])
        await wait_all_tasks_blocked()
        server.stop.set()
        await trio.sleep(5)
        assert not server.ended.is_set()
        await client.stream.send_all(GET[-5:])
        await client.read_to_end()
        assert read_answers(client.got)[0].closing
        assert await seconds_until_end(server) == 0


async def test_while_a_request_runs_other_requests_are_answered_and_their_connections_closed() -> None:
    hold = Hold()
    ready = True

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path") == "/ready":
            await respond(send, b"", status=200 if ready else 503)
        else:
            await hold(scope, receive, send)

    async with run_server(app) as server, await server.connect() as client, trio.open_nursery() as nursery:
        assert (await server.get("/ready")).status == 200
        nursery.start_soon(client.ask)
        await wait_all_tasks_blocked()
        server.stop.set()
        await wait_all_tasks_blocked()
        assert server.drains == 1
        ready = False
        for _ in range(3):
            answer = await server.get("/ready")
            assert (answer.status, answer.closing) == (503, True)
        assert not server.ended.is_set()
        hold.release.set()
        await server.ended.wait()
    (held,) = read_answers(client.got)
    assert (held.body, held.closing) == (b"released", True)


async def test_while_a_request_runs_a_new_connection_may_send_its_first_request() -> None:
    hold = Hold()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path") == "/first":
            await respond(send, b"served")
        else:
            await hold(scope, receive, send)

    async with run_server(app) as server, await server.connect() as client, trio.open_nursery() as nursery:
        nursery.start_soon(client.ask)
        async with await server.connect() as fresh, await server.connect() as silent:
            await wait_all_tasks_blocked()
            server.stop.set()
            await wait_all_tasks_blocked()
            answer = await fresh.ask("/first")
            assert (answer.body, answer.closing) == (b"served", True)
            hold.release.set()
            # Clients that have not sent anything by then are not awaited.
            await server.ended.wait()
            assert await silent.read_to_end() == b""


async def test_later_requests_finish_but_no_connection_is_accepted(autojump_clock: MockClock) -> None:
    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        await trio.sleep(float(scope["path"][1:]))
        await respond(send, b"done")

    async with run_server(app) as server, trio.open_nursery() as nursery:
        nursery.start_soon(server.get, "/5")
        await wait_all_tasks_blocked()
        server.stop.set()
        await trio.sleep(1)
        async with await server.connect() as late:
            nursery.start_soon(late.ask, "/10")
            await trio.sleep(5)
            with pytest.raises(OSError, match="all attempts to connect"):
                await server.connect()
            assert await seconds_until_end(server) == pytest.approx(5)
            assert read_answers(late.got)[0].body == b"done"


async def test_streams_are_complete_under_load(autojump_clock: MockClock) -> None:
    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        await send(start())
        for number in range(20):
            await send(body(b"data: %d\n\n" % number, more=True))
            await trio.sleep(0.5)
        await send(body())

    whole: list[bytes] = []
    async with run_server(app) as server, trio.open_nursery() as nursery:

        async def read(delay: float) -> None:
            await trio.sleep(delay)
            whole.append((await server.get()).body)

        for number in range(40):
            nursery.start_soon(read, number / 10)
        await trio.sleep(4.5)
        server.stop.set()
        assert await seconds_until_end(server) < 10
    assert whole == [b"".join(b"data: %d\n\n" % number for number in range(20))] * 40
    assert server.reports == []


async def test_a_response_with_keep_alive_is_still_the_last_one(autojump_clock: MockClock) -> None:
    """Its head was sent before the drain began, so the client expects the connection to stay open."""

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        await send(start())
        await send(body(b"begun", more=True))
        await trio.sleep(10)
        await send(body(b"ended"))

    async with run_server(app) as server, await server.connect() as client:
        await client.stream.send_all(GET)
        await wait_all_tasks_blocked()
        server.stop.set()
        assert await seconds_until_end(server) == pytest.approx(10)
        (answer,) = read_answers(await client.read_to_end())
        assert (answer.body, answer.closing) == (b"begunended", False)


@pytest.mark.parametrize("started", [False, True])
async def test_requests_that_run_longer_than_the_grace_are_cut(started: bool, autojump_clock: MockClock) -> None:
    journal: list[str] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        if started:
            await send(start())
            await send(body(b"part", more=True))
        try:
            await trio.sleep_forever()
        finally:
            journal.append("cancelled")

    async with run_server(with_lifespan(app, journal), shutdown_grace=30) as server, await server.connect() as client:
        await client.stream.send_all(GET)
        await wait_all_tasks_blocked()
        server.stop.set()
        assert await seconds_until_end(server) == pytest.approx(30)
        with pytest.raises(Truncated):
            read_answers(await client.read_to_end() or b"?")
    assert journal == ["lifespan.startup", "cancelled", "lifespan.shutdown"]
    assert server.reports == []


@pytest.mark.parametrize("shield", [False, True])
async def test_a_client_that_does_not_read_does_not_delay_the_end(shield: bool, autojump_clock: MockClock) -> None:
    """This is also true if the application shields its sending."""
    stuck = trio.Event()

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start())
        with trio.CancelScope(shield=shield):
            while True:
                stuck.set()
                await send(body(ENDLESS, more=True))

    async with run_server(app, shutdown_grace=5, write_timeout=1000) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(GET)
            await stuck.wait()
            await wait_all_tasks_blocked(0.01)
            server.stop.set()
            assert await seconds_until_end(server) == pytest.approx(5)
    assert server.reports == []


async def test_a_lingering_connection_does_not_delay_the_end(autojump_clock: MockClock) -> None:
    async with run_server(Echo()) as server, await server.connect() as client:
        await client.stream.send_all(b"BAD\r\n\r\n")
        assert b"400" in await client.stream.receive_some()
        server.stop.set()
        assert await seconds_until_end(server) == 0


async def test_cancelling_ends_the_server(autojump_clock: MockClock) -> None:
    journal: list[str] = []
    app = Hold()
    async with run_server(with_lifespan(app, journal)) as server, await server.connect() as client:
        await client.stream.send_all(GET)
        await wait_all_tasks_blocked()
        assert app.running == 1
    assert app.running == 0
    assert journal == ["lifespan.startup", "lifespan.shutdown"]
