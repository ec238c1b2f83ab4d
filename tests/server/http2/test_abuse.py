from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from functools import partial

import h2.errors
import h2.exceptions
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from llm_proxy.server.asgi import Receive, Scope, Send
from llm_proxy.server.http2 import connection as http2
from tests.server.applications import Echo, Hold, body, read_all, respond, sending, start
from tests.server.conftest import ServeTls
from tests.server.http2.client import Headers, connect_http2

GET = {":method": "GET", ":scheme": "https", ":authority": "localhost", ":path": "/"}
CODES = h2.errors.ErrorCodes


@pytest.mark.parametrize(
    "head",
    [
        GET | {":path": "/é"},
        GET | {":path": "/a b"},
        GET | {":path": "/\x01"},
        GET | {":path": "/\x7f"},
        GET | {":method": "GÉT"},
        GET | {":method": "G T"},
        GET | {":method": ""},
        {":method": "CONNECT", ":authority": "a:443"},
        GET | {":method": "CONNECT", ":protocol": "websocket"},
    ],
)
async def test_a_malformed_request_is_reset_and_others_continue(
    head: dict[str, str], serve_tls: ServeTls, trust: ssl.SSLContext
) -> None:
    app = Echo()
    async with serve_tls(app) as server, connect_http2(server.port, trust) as client:
        assert (await client.get(head=list(head.items()))).reset == CODES.PROTOCOL_ERROR
        assert (await client.get()).status == 200
    assert len(app.scopes) == 1
    assert server.reports == []


@pytest.mark.parametrize(
    ("path", "extra", "status"),
    [
        ("*", [], 400),
        ("a", [], 400),
        ("http://localhost/", [], 400),
        ("/", [("expect", "200-maybe")], 417),
    ],
)
async def test_the_rules_of_http_1_1_apply(
    path: str, extra: Headers, status: int, serve_tls: ServeTls, trust: ssl.SSLContext
) -> None:
    app = Echo()
    async with serve_tls(app) as server, connect_http2(server.port, trust) as client:
        reply = await client.get(path, extra=extra)
        assert (reply.status, reply.ended) == (status, True)
        assert reply.headers["content-type"] == "text/plain; charset=utf-8"
        assert reply.body.endswith(b".\n")
    assert app.scopes == []
    assert server.reports == []


async def test_a_name_with_an_underscore_is_a_header_like_any_other(serve_tls: ServeTls, trust: ssl.SSLContext) -> None:
    app = Echo()
    extra = [("session_id", "z"), ("content_length", "99"), ("transfer_encoding", "chunked"), ("expect_", "x")]
    async with serve_tls(app) as server, connect_http2(server.port, trust) as client:
        number = await client.ask(method="POST", extra=extra, end=False)
        await client.send(number, b"hello", end=True)
        assert (await client.reply(number)).body == b"hello"
    assert app.scopes[0]["headers"][1:] == [(name.encode(), value.encode()) for name, value in extra]


async def test_any_number_of_priorities_is_ignored(serve_tls: ServeTls, trust: ssl.SSLContext) -> None:
    async with serve_tls(Echo()) as server, connect_http2(server.port, trust) as client:
        await client.get()
        for number in range(1, 6001, 2):
            client.h2.prioritize(number, depends_on=number + 2, weight=7, exclusive=True)
        await client.flush()
        assert (await client.get()).status == 200
    assert server.reports == []


@pytest.mark.parametrize(
    "wire",
    [
        b"\x00" * 100,
        b"\xff" * 100,
        b"\x00\x00\x04\x01\x05\x00\x00\x00\x03\xff\xff\xff\xff",
        b"\x00\x00\x01\x00\x01\x00\x00\x00\x09a",
        b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
async def test_malformed_frames_end_only_their_connection(
    wire: bytes, serve_tls: ServeTls, trust: ssl.SSLContext
) -> None:
    async with (
        serve_tls(Echo()) as server,
        connect_http2(server.port, trust) as good,
        connect_http2(server.port, trust) as bad,
    ):
        await good.get()
        await bad.stream.send_all(wire)
        with trio.fail_after(5):
            while not bad.closed:
                await bad.change()
        assert (await good.get()).status == 200
    assert server.reports == []


async def test_many_reset_requests_are_an_attack(serve_tls: ServeTls, trust: ssl.SSLContext) -> None:
    app = Hold()
    async with serve_tls(app) as server, connect_http2(server.port, trust) as client:
        with trio.fail_after(10):
            while not client.closed:
                for _ in range(50):
                    number = client.h2.get_next_available_stream_id()
                    client.h2.send_headers(number, list(GET.items()), end_stream=True)
                    client.h2.reset_stream(number, CODES.CANCEL)
                try:
                    await client.flush()
                except trio.BrokenResourceError:
                    break
                await trio.sleep(0.01)
        assert len(app.scopes) <= http2.RESETS_ALLOWED + 100
        await wait_all_tasks_blocked(0.05)
        assert app.running == 0
        app.release.set()
        async with connect_http2(server.port, trust) as other:
            assert (await other.get()).status == 200
    assert server.reports == []


async def test_an_exception_in_the_protocol_ends_only_its_connection(
    serve_tls: ServeTls, trust: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("a fault of the library")

    async with serve_tls(Echo()) as server, connect_http2(server.port, trust) as good:
        assert (await good.get()).status == 200
        with monkeypatch.context() as patch:
            patch.setattr("hypercorn.protocol.h2.H2Protocol._create_stream", broken)
            async with connect_http2(server.port, trust) as bad:
                await bad.get()
                assert bad.closed
        assert (await good.get()).status == 200
        assert [str(report) for report in server.reports] == ["a fault of the library"]


async def test_draining_lets_open_streams_finish(
    serve_tls: ServeTls, trust: ssl.SSLContext, autojump_clock: MockClock
) -> None:
    app = Hold()
    async with (
        serve_tls(app) as server,
        connect_http2(server.port, trust) as idle,
        connect_http2(server.port, trust) as client,
    ):
        number = await client.ask()
        await wait_all_tasks_blocked()
        assert app.running == 1
        server.stop.set()
        while not idle.closed:
            await idle.change()
        assert idle.goaway == CODES.NO_ERROR
        app.release.set()
        assert (await client.reply(number)).body == b"released"
        await server.ended.wait()
        while not client.closed:
            await client.change()
        assert client.goaway == CODES.NO_ERROR
    assert server.reports == []


async def test_draining_closes_each_connection_after_its_last_stream(
    serve_tls: ServeTls, trust: ssl.SSLContext, autojump_clock: MockClock
) -> None:
    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        await trio.sleep(float(scope["path"][1:]))
        await respond(send, b"")

    async with (
        serve_tls(app) as server,
        connect_http2(server.port, trust) as long,
        connect_http2(server.port, trust) as short,
    ):
        await long.ask("/20")
        await short.ask("/10")
        await wait_all_tasks_blocked()
        server.stop.set()
        began = trio.current_time()
        while not short.closed:
            await short.change()
        assert trio.current_time() - began == pytest.approx(10)
        assert not long.closed
        await server.ended.wait()
        assert trio.current_time() - began == pytest.approx(20)


async def test_requests_that_run_longer_than_the_grace_are_cut(
    serve_tls: ServeTls, trust: ssl.SSLContext, autojump_clock: MockClock
) -> None:
    app = Hold()
    async with serve_tls(app, shutdown_grace=30) as server, connect_http2(server.port, trust) as client:
        number = await client.ask()
        await wait_all_tasks_blocked()
        server.stop.set()
        began = trio.current_time()
        await server.ended.wait()
        assert trio.current_time() - began == pytest.approx(30, abs=1)
        reply = await client.reply(number)
        assert not reply.ended
        assert client.closed
        assert app.running == 0
    assert server.reports == []


async def test_buffered_request_bodies_of_a_connection_are_limited(serve_tls: ServeTls, trust: ssl.SSLContext) -> None:
    gate = trio.Event()
    got: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        await gate.wait()
        got.append(len(await read_all(receive)))
        await respond(send, b"")

    async with serve_tls(app) as server, connect_http2(server.port, trust) as client:
        numbers = [await client.ask(method="POST", end=False) for _ in range(20)]
        async with trio.open_nursery() as nursery:
            for number in numbers:
                nursery.start_soon(partial(client.send, number, b"x" * 60_000, end=True))
            with trio.move_on_after(5):
                while client.h2.outbound_flow_control_window:
                    await wait_all_tasks_blocked(0.01)
            assert client.h2.outbound_flow_control_window == 0
            assert got == []
            gate.set()
        for number in numbers:
            assert (await client.reply(number)).status == 200
    assert got == [60_000] * 20


async def test_unread_request_bodies_return_their_window(serve_tls: ServeTls, trust: ssl.SSLContext) -> None:
    """Otherwise the window of the connection would be used up after some time."""
    app = sending(start(200, (b"content-length", b"0")), body())
    async with serve_tls(app) as server, connect_http2(server.port, trust) as client:
        with trio.fail_after(10):
            for _ in range(60):
                number = await client.ask(method="POST", end=False)
                with contextlib.suppress(h2.exceptions.StreamClosedError):
                    await client.send(number, b"x" * 40_000, end=True)
                assert (await client.reply(number)).status == 200


@pytest.mark.parametrize("how", ["end", "reset"])
async def test_an_application_may_continue_after_a_disconnect(
    how: str, serve_tls: ServeTls, trust: ssl.SSLContext, autojump_clock: MockClock
) -> None:
    """It is not awaited longer than that."""
    finished: list[float] = []

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        await trio.sleep(10)
        finished.append(trio.current_time())
        await respond(send, b"")

    async with serve_tls(app, shutdown_grace=1000) as server:
        async with connect_http2(server.port, trust) as client:
            await client.ask()
            await wait_all_tasks_blocked()
            if how == "reset":
                client.stream.transport_stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await wait_all_tasks_blocked()
        server.stop.set()
        await server.ended.wait()
        assert finished == [trio.current_time()]
    assert server.reports == []
