from __future__ import annotations

import socket
import struct

import pytest
import trio
import trio.testing

from llm_proxy.net.disconnect import ClientDisconnected
from llm_proxy.server.asgi import Receive, Scope, Send
from llm_proxy.server.http1.cycle import PIPELINE_LIMIT
from llm_proxy.server.transport import CLOSED_POLL
from tests.server.answers import Truncated
from tests.server.applications import Hold, body, read_all, respond, start
from tests.server.conftest import Connect
from tests.server.http1.framing_table import GET, get, post


@pytest.mark.parametrize("how", ["end", "reset"])
@pytest.mark.parametrize("pipelined", [b"", GET, b"GET / HT"], ids=["alone", "pipelined", "half"])
async def test_a_disconnect_is_detected_at_once(how: str, pipelined: bytes, connect: Connect) -> None:
    app = Hold()
    peer = connect(app, tcp=True)
    await peer.send(GET)
    assert app.running == 1
    await peer.send(pipelined)
    if how == "reset":
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.socket.close()
        peer.closed = True
    else:
        peer.socket.shutdown(socket.SHUT_WR)
    await peer.settle()
    assert (app.running, app.disconnects, len(app.scopes)) == (0, 1, 1)
    assert peer.reports == []
    assert peer.connection.transport.closed


async def test_read_ahead_is_limited_and_a_disconnect_is_still_detected(
    connect: Connect, mock_clock: trio.testing.MockClock
) -> None:
    app = Hold()
    peer = connect(app, tcp=True)
    await peer.send(post(b"", b"Content-Length: 0"))
    while peer.connection.reader.pending <= PIPELINE_LIMIT:
        await peer.send(b"GET / HTTP/1.1\r\n" * 300)
    before = peer.connection.reader.pending
    await peer.send(b"x" * 100)
    assert peer.connection.reader.pending == before
    assert app.running == 1
    peer.socket.close()
    peer.closed = True
    mock_clock.jump(CLOSED_POLL)
    await peer.settle()
    assert (app.running, app.disconnects) == (0, 1)


async def test_sending_after_a_disconnect_raises_oserror(connect: Connect) -> None:
    raised: list[BaseException] = []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        with pytest.raises(EOFError):
            await read_all(receive)
        assert (await receive())["type"] == "http.disconnect"
        with pytest.raises(OSError, match="client has disconnected") as caught:
            await send(start())
        raised.append(caught.value)
        raise caught.value

    peer = connect(app)
    await peer.send(post(b"a", b"Content-Length: 2"))
    peer.socket.close()
    peer.closed = True
    await peer.settle()
    assert isinstance(raised[0], ClientDisconnected)
    assert peer.reports == []


async def test_streaming_after_a_disconnect_raises_oserror(connect: Connect) -> None:
    ended = trio.Event()

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start())
        try:
            while True:
                await send(body(b"tick", more=True))
        except OSError:
            ended.set()
            raise

    peer = connect(app, tcp=True)
    peer.socket.sendall(GET)
    peer.socket.shutdown(socket.SHUT_WR)
    peer.socket.close()
    peer.closed = True
    with trio.fail_after(5):
        await ended.wait()
    assert peer.reports == []


async def test_an_exception_group_is_reported_without_client_disconnected(connect: Connect) -> None:
    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise ExceptionGroup("several", [ClientDisconnected(), ValueError("bad")])

    peer = connect(app)
    await peer.send(GET)
    assert [str(error) for error in peer.reports] == ["bad"]


async def test_receive_returns_disconnect_after_the_response(connect: Connect) -> None:
    received: list[str] = []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        async def wait() -> None:
            received.append((await receive())["type"])

        await receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            await respond(send, b"done")
        received.append((await receive())["type"])

    peer = connect(app)
    await peer.send(GET + GET)
    assert received == ["http.disconnect"] * 4
    assert len(peer.answers()) == 2


async def test_closing_waits_for_a_client_that_still_sends(connect: Connect) -> None:
    """Unread bytes after the last request would turn the end of the connection into a reset."""
    gate = trio.Event()

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await gate.wait()
        await respond(send, b"the last")

    peer = connect(app, tcp=True)
    await peer.send(get(b"Connection: close"))
    await peer.send(b"x" * 1000)
    gate.set()
    await peer.settle()
    assert peer.answers()[0].body == b"the last"
    assert peer.closed
    assert not peer.reset


async def test_a_cancelled_write_ends_the_connection(connect: Connect) -> None:
    """Half a chunk may be sent; nothing may be written after it."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start())
        with trio.CancelScope() as scope:
            scope.cancel()
            while True:
                await send(body(b"x" * 100_000, more=True))
        with pytest.raises(OSError, match="client has disconnected"):
            await send(body(b"more"))

    peer = connect(app, tcp=True)
    await peer.send(GET)
    assert peer.closed
    with pytest.raises(Truncated):
        peer.answers()
    assert peer.reports == []
