"""The callback of the ASGI extension for disconnects, and half-closed clients."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio
import trio.testing

from llm_proxy.net import poller
from llm_proxy.net.disconnect import EXTENSION
from llm_proxy.server.asgi import Receive, Scope, Send
from llm_proxy.server.context import ServerConfig
from llm_proxy.server.server import serve
from tests.server.answers import read_answers
from tests.server.applications import body, read_all, sending, start
from tests.server.conftest import ServeTls
from tests.server.http1.framing_table import get, post
from tests.server.running import run_server

pytestmark = pytest.mark.skipif(not poller.AVAILABLE, reason="this system has no EPOLLRDHUP")

REQUEST = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


class WaitsForCallback:
    """Waits for the callback without calling `receive`."""

    def __init__(self, *, late: bool = False) -> None:
        self.late = late
        self.started = trio.Event()
        self.called = trio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        self.started.set()
        if self.late:
            await trio.sleep(0.05)
        scope["extensions"][EXTENSION]["on_disconnect"](self.called.set)
        with trio.fail_after(5):
            await self.called.wait()
        with pytest.raises(OSError, match="client"):
            await send({"type": "http.response.start", "status": 200, "headers": []})


def fin(client: socket.socket) -> None:
    client.close()


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@pytest.mark.parametrize("close", [fin, reset])
@pytest.mark.parametrize("late", [False, True], ids=["while-it-runs", "before-it-is-set"])
@pytest.mark.parametrize("pipelined", [b"", REQUEST, REQUEST * 200], ids=["alone", "one-more", "many-more"])
async def test_the_callback_is_called_when_the_client_disconnects(
    close: Callable[[socket.socket], None], *, late: bool, pipelined: bytes
) -> None:
    application = WaitsForCallback(late=late)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:

        async def plain(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                raise NotImplementedError("no lifespan")
            if not application.started.is_set():
                await application(scope, receive, send)

        addresses = await nursery.start(partial(serve, plain, ServerConfig(port=0), stop=stop))
        client = socket.create_connection(addresses[0])
        client.sendall(REQUEST + pipelined)
        await application.started.wait()
        close(client)
        with trio.fail_after(5):
            await application.called.wait()
        stop.set()


class AnswersOnCommand:
    """Answers in pieces, on command; detects a disconnect by callback or by `receive`."""

    def __init__(self, *, by_callback: bool, reads: bool = True) -> None:
        self.by_callback = by_callback
        self.reads = reads
        self.started = trio.Event()
        self.body = b""
        self.disconnected = trio.Event()
        self._to_send, self._pieces = trio.open_memory_channel[bytes](10)

    async def send(self, *pieces: bytes) -> None:
        """Send these pieces to the client; an empty one ends the response."""
        for piece in pieces:
            await self._to_send.send(piece)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        if self.by_callback:
            scope["extensions"][EXTENSION]["on_disconnect"](self.disconnected.set)
        async with trio.open_nursery() as nursery:
            if self.reads:
                self.body = await read_all(receive)
            nursery.start_soon(self._watch, receive)
            self.started.set()
            with suppress(OSError):
                await send(start())
                async for piece in self._pieces:
                    await send(body(piece, more=bool(piece)))
                    if not piece:
                        break
            nursery.cancel_scope.cancel()

    async def _watch(self, receive: Receive) -> None:
        if self.by_callback:
            await self.disconnected.wait()
        else:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.disconnected.set()
        await self._to_send.aclose()


DETECTION = pytest.mark.parametrize("by_callback", [True, False], ids=["on_disconnect", "receive"])


@asynccontextmanager
async def serve_and_send(application: AnswersOnCommand, sent: bytes) -> AsyncIterator[trio.SocketStream]:
    """Serve the application, and send these bytes to the server."""
    async with run_server(application) as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        async with stream:
            await stream.send_all(sent)
            yield stream
        assert server.reports == []


async def read_to_end(stream: trio.SocketStream) -> bytes:
    with trio.fail_after(5):
        return b"".join([data async for data in stream])


@DETECTION
@pytest.mark.parametrize(
    "sent",
    [
        REQUEST,
        get(version=b"HTTP/1.0"),
        get(b"Connection: close"),
        post(b"hello", b"Content-Length: 5"),
        post(b"5\r\nhello\r\n0\r\n\r\n", b"Transfer-Encoding: chunked"),
    ],
    ids=["get", "http-1.0", "close", "length", "chunked"],
)
@pytest.mark.parametrize("when", ["at-once", "while-it-waits", "while-it-streams"])
async def test_a_half_closed_client_gets_its_response(sent: bytes, *, when: str, by_callback: bool) -> None:
    application = AnswersOnCommand(by_callback=by_callback)
    got = b""
    async with serve_and_send(application, sent) as stream:
        if when == "at-once":
            await stream.send_eof()
        await application.started.wait()
        if when == "while-it-streams":
            await application.send(b"first ")
            while b"first " not in got:
                got += await stream.receive_some()
        await stream.send_eof()
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert not application.disconnected.is_set()
        await application.send(b"second", b"")
        got += await read_to_end(stream)
    *interim, answer = read_answers(got)
    assert {each.status for each in interim} <= {100}
    assert answer.body == (b"first second" if when == "while-it-streams" else b"second")
    assert application.body == (b"hello" if b"hello" in sent else b"")


@DETECTION
@pytest.mark.parametrize("when", ["while-it-waits", "while-it-streams"])
@pytest.mark.parametrize("close", [fin, reset])
async def test_a_client_that_has_closed_its_socket_is_detected_at_once(
    close: Callable[[socket.socket], None], *, when: str, by_callback: bool
) -> None:
    application = AnswersOnCommand(by_callback=by_callback)
    async with serve_and_send(application, REQUEST) as stream:
        await application.started.wait()
        if when == "while-it-streams":
            await application.send(b"first")
            assert b"first" in await stream.receive_some()
        close(stream.socket)  # type: ignore[arg-type]  # a trio socket is closed in the same way
        with trio.fail_after(5):
            await application.disconnected.wait()


@pytest.mark.parametrize(
    "sent",
    [
        post(b"he", b"Content-Length: 5"),
        post(b"5\r\nhello\r\n", b"Transfer-Encoding: chunked"),
        post(b"", b"Content-Length: 5", b"Expect: 100-continue"),
    ],
    ids=["length", "chunked", "expecting"],
)
@pytest.mark.parametrize("reads", [True, False])
async def test_the_end_of_the_stream_within_a_body_is_a_disconnect(sent: bytes, *, reads: bool) -> None:
    application = AnswersOnCommand(by_callback=True, reads=False)
    if reads:
        application.by_callback = False
    async with serve_and_send(application, sent) as stream:
        await application.started.wait()
        await trio.testing.wait_all_tasks_blocked(0.02)
        await stream.send_eof()
        with trio.fail_after(5):
            await application.disconnected.wait()


async def test_all_requests_before_the_end_of_the_stream_are_answered() -> None:
    async with serve_and_send(AnswersOnCommand(by_callback=True), REQUEST) as stream:
        pass
    app = sending(start(200, (b"content-length", b"2")), body(b"ok"))
    async with run_server(app) as server, await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        await stream.send_all(REQUEST * 50)
        await stream.send_eof()
        assert [answer.body for answer in read_answers(await read_to_end(stream))] == [b"ok"] * 50


@DETECTION
@pytest.mark.parametrize("end_of_tcp", [False, True])
async def test_with_tls_only_the_end_of_tcp_is_a_disconnect(
    serve_tls: ServeTls, trust: ssl.SSLContext, *, end_of_tcp: bool, by_callback: bool
) -> None:
    """A client that has sent `close_notify` alone may still read (RFC 8446 section 6.1)."""
    application = AnswersOnCommand(by_callback=by_callback)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = trust.wrap_bio(incoming, outgoing, server_hostname="localhost")
    async with serve_tls(application) as server, await trio.open_tcp_stream("127.0.0.1", server.port) as tcp:
        for step in (tls.do_handshake, partial(tls.write, REQUEST), tls.unwrap):
            while True:
                try:
                    step()
                    break
                except ssl.SSLWantReadError:
                    await tcp.send_all(outgoing.read())
                    if step == tls.unwrap:
                        break
                    incoming.write(await tcp.receive_some())
            await tcp.send_all(outgoing.read())
        await application.started.wait()
        if end_of_tcp:
            await tcp.send_eof()
            with trio.fail_after(5):
                await application.disconnected.wait()
        else:
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert not application.disconnected.is_set()
            await application.send(b"")
            assert await tcp.receive_some(), "the response"
    assert server.reports == []
