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


async def test_a_request_that_is_on_its_way_to_an_idle_connection_is_answered() -> None:
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


async def test_a_half_sent_request_may_come_to_its_end(autojump_clock: MockClock) -> None:
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


async def test_while_a_request_runs_others_are_answered_and_told_to_leave() -> None:
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


async def test_while_a_request_runs_a_connection_that_was_just_made_may_send_its_first() -> None:
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
            # Whoever has still not said anything when all is done is not waited for.
            await server.ended.wait()
            assert await silent.read_to_end() == b""


async def test_requests_that_came_later_finish_too_but_nothing_new_is_taken(autojump_clock: MockClock) -> None:
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


async def test_streams_end_whole_under_load(autojump_clock: MockClock) -> None:
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


async def test_a_response_that_promised_more_is_the_last_all_the_same(autojump_clock: MockClock) -> None:
    """Its head went out before the drain began, so the client waits for a connection that stays open."""

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
async def test_what_outlives_the_grace_is_cut(started: bool, autojump_clock: MockClock) -> None:
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
async def test_a_stalled_reader_cannot_hold_the_end(shield: bool, autojump_clock: MockClock) -> None:
    """Not even of an application that shields its sending."""
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


async def test_a_lingering_connection_does_not_hold_the_end(autojump_clock: MockClock) -> None:
    async with run_server(Echo()) as server, await server.connect() as client:
        await client.stream.send_all(b"BAD\r\n\r\n")
        assert b"400" in await client.stream.receive_some()
        server.stop.set()
        assert await seconds_until_end(server) == 0


async def test_cancelling_the_server_ends_it(autojump_clock: MockClock) -> None:
    journal: list[str] = []
    app = Hold()
    async with run_server(with_lifespan(app, journal)) as server, await server.connect() as client:
        await client.stream.send_all(GET)
        await wait_all_tasks_blocked()
        assert app.running == 1
    assert app.running == 0
    assert journal == ["lifespan.startup", "lifespan.shutdown"]
