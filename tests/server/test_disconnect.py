"""The server tells an application at once when the client of a request has left."""

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

from llm_proxy.net.disconnect import EXTENSION, DisconnectWatcher
from llm_proxy.server.asgi import Receive, Scope, Send
from llm_proxy.server.context import ServerConfig
from llm_proxy.server.server import serve
from tests.server.answers import read_answers
from tests.server.applications import body, read_all, saying, start
from tests.server.conftest import ServeTls
from tests.server.http1.framing_table import get, post
from tests.server.running import run_server

pytestmark = pytest.mark.skipif(not DisconnectWatcher.available(), reason="this system does not tell; receive() does")

REQUEST = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


class ASGIApp:
    """Waits until it is told that the client has left, without ever calling `receive`."""

    def __init__(self, *, late: bool = False) -> None:
        self.late = late
        self.started = trio.Event()
        self.told = trio.Event()
        self.told_after = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        self.started.set()
        if self.late:
            await trio.sleep(0.05)
        begun = trio.current_time()
        scope["extensions"][EXTENSION]["on_disconnect"](self.told.set)
        with trio.fail_after(5):
            await self.told.wait()
        self.told_after = trio.current_time() - begun
        with pytest.raises(OSError, match="client"):
            await send({"type": "http.response.start", "status": 200, "headers": []})


def fin(client: socket.socket) -> None:
    client.close()


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@pytest.mark.parametrize("leave", [fin, reset])
@pytest.mark.parametrize("late", [False, True], ids=["while-it-runs", "before-it-asks"])
@pytest.mark.parametrize("pipelined", [b"", REQUEST, REQUEST * 200], ids=["alone", "another-behind", "many-behind"])
async def test_it_is_told(leave: Callable[[socket.socket], None], *, late: bool, pipelined: bytes) -> None:
    application = ASGIApp(late=late)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:

        async def plain(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                raise NotImplementedError("without a lifespan")
            if not application.started.is_set():
                await application(scope, receive, send)

        addresses = await nursery.start(partial(serve, plain, ServerConfig(port=0), stop=stop))
        client = socket.create_connection(addresses[0])
        client.sendall(REQUEST + pipelined)
        await application.started.wait()
        leave(client)
        with trio.fail_after(5):
            await application.told.wait()
        stop.set()


class Answering:
    """Answers in pieces, each when it is told to; asks to be told when the client leaves, or waits for it to."""

    def __init__(self, *, by_notice: bool, reads: bool = True) -> None:
        self.by_notice = by_notice
        self.reads = reads
        self.started = trio.Event()
        self.body = b""
        self.left = trio.Event()
        self._to_send, self._pieces = trio.open_memory_channel[bytes](10)

    async def send(self, *pieces: bytes) -> None:
        """Send these pieces to the client; an empty one is the end."""
        for piece in pieces:
            await self._to_send.send(piece)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        if self.by_notice:
            scope["extensions"][EXTENSION]["on_disconnect"](self.left.set)
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
        if self.by_notice:
            await self.left.wait()
        else:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.left.set()
        await self._to_send.aclose()


BY = pytest.mark.parametrize("by_notice", [True, False], ids=["on_disconnect", "receive"])


@asynccontextmanager
async def asking(application: Answering, wire: bytes) -> AsyncIterator[trio.SocketStream]:
    """Serve the application, and send these bytes to it."""
    async with run_server(application) as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        async with stream:
            await stream.send_all(wire)
            yield stream
        assert server.reports == []


async def read_to_end(stream: trio.SocketStream) -> bytes:
    with trio.fail_after(5):
        return b"".join([data async for data in stream])


@BY
@pytest.mark.parametrize(
    "wire",
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
async def test_a_client_that_has_ended_its_side_gets_its_answer(wire: bytes, *, when: str, by_notice: bool) -> None:
    application = Answering(by_notice=by_notice)
    got = b""
    async with asking(application, wire) as stream:
        if when == "at-once":
            await stream.send_eof()
        await application.started.wait()
        if when == "while-it-streams":
            await application.send(b"first ")
            while b"first " not in got:
                got += await stream.receive_some()
        await stream.send_eof()
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert not application.left.is_set()
        await application.send(b"second", b"")
        got += await read_to_end(stream)
    *interim, answer = read_answers(got)
    assert {each.status for each in interim} <= {100}
    assert answer.body == (b"first second" if when == "while-it-streams" else b"second")
    assert application.body == (b"hello" if b"hello" in wire else b"")


@BY
@pytest.mark.parametrize("when", ["while-it-waits", "while-it-streams"])
@pytest.mark.parametrize("leave", [fin, reset])
async def test_a_client_that_has_closed_its_socket_is_noticed_at_once(
    leave: Callable[[socket.socket], None], *, when: str, by_notice: bool
) -> None:
    application = Answering(by_notice=by_notice)
    async with asking(application, REQUEST) as stream:
        await application.started.wait()
        if when == "while-it-streams":
            await application.send(b"first")
            assert b"first" in await stream.receive_some()
        leave(stream.socket)  # type: ignore[arg-type]  # a trio socket is closed in the same way
        began = trio.current_time()
        with trio.fail_after(5):
            await application.left.wait()
        assert trio.current_time() - began < 0.1


@pytest.mark.parametrize(
    "wire",
    [
        post(b"he", b"Content-Length: 5"),
        post(b"5\r\nhello\r\n", b"Transfer-Encoding: chunked"),
        post(b"", b"Content-Length: 5", b"Expect: 100-continue"),
    ],
    ids=["length", "chunked", "expecting"],
)
@pytest.mark.parametrize("reads", [True, False])
async def test_a_request_that_is_cut_off_has_no_client_any_more(wire: bytes, *, reads: bool) -> None:
    application = Answering(by_notice=True, reads=False)
    if reads:
        application.by_notice = False
    async with asking(application, wire) as stream:
        await application.started.wait()
        await trio.testing.wait_all_tasks_blocked(0.02)
        await stream.send_eof()
        with trio.fail_after(5):
            await application.left.wait()


async def test_all_requests_that_were_sent_before_the_end_are_answered() -> None:
    async with asking(Answering(by_notice=True), REQUEST) as stream:
        pass
    app = saying(start(200, (b"content-length", b"2")), body(b"ok"))
    async with run_server(app) as server, await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        await stream.send_all(REQUEST * 50)
        await stream.send_eof()
        assert [answer.body for answer in read_answers(await read_to_end(stream))] == [b"ok"] * 50


@BY
@pytest.mark.parametrize("end_of_tcp", [False, True])
async def test_under_tls_only_the_end_of_tcp_is_the_end_of_the_client(
    serve_tls: ServeTls, trust: ssl.SSLContext, *, end_of_tcp: bool, by_notice: bool
) -> None:
    """A client that has sent `close_notify` alone may still read (RFC 8446 section 6.1)."""
    application = Answering(by_notice=by_notice)
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
                await application.left.wait()
        else:
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert not application.left.is_set()
            await application.send(b"")
            assert await tcp.receive_some(), "the answer"
    assert server.reports == []


def test_a_number_that_another_socket_has_by_now_is_not_forgotten() -> None:
    disconnects = DisconnectWatcher()
    heard: list[str] = []
    one, other = socket.socketpair()
    with one, other:

        def first(_: bool) -> None:
            heard.append("first")

        def second(_: bool) -> None:
            heard.append("second")

        disconnects.add(one.fileno(), first)
        disconnects._poll.unregister(one.fileno())
        disconnects.add(one.fileno(), second)
        disconnects.remove(one.fileno(), first)
        assert disconnects._callbacks == {one.fileno(): second}
        disconnects.remove(one.fileno(), second)
        assert not disconnects._callbacks
    disconnects.close()
    assert not heard
