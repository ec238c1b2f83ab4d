from __future__ import annotations

import socket

import pytest
import trio
from trio.testing import MockClock

from llm_proxy.server.asgi import Receive, Scope, Send
from llm_proxy.server.http1.cycle import DISCARD_TIMEOUT
from llm_proxy.server.transport import CHECKS, LINGER_GAP, LINGER_TOTAL
from tests.server.applications import Echo, body, respond, sending, start
from tests.server.conftest import Connect, Peer
from tests.server.http1.framing_table import GET, post


async def after(seconds: float, peer: Peer, clock: MockClock) -> bool:
    """Advance the clock; return whether the server has closed the connection."""
    clock.jump(seconds)
    await peer.settle()
    return peer.closed


@pytest.mark.parametrize("before", [b"", GET, b"\r\n"])
async def test_an_idle_connection_is_closed(before: bytes, connect: Connect, mock_clock: MockClock) -> None:
    peer = connect(Echo(), keep_alive_timeout=75)
    await peer.send(before)
    assert not await after(74.9, peer, mock_clock)
    assert await after(0.2, peer, mock_clock)
    assert len(peer.answers()) == (before == GET)
    assert not peer.reset


async def test_a_request_restarts_the_keep_alive_timeout(connect: Connect, mock_clock: MockClock) -> None:
    peer = connect(Echo(), keep_alive_timeout=75)
    for _ in range(3):
        assert not await after(74, peer, mock_clock)
        await peer.send(GET)
    assert len(peer.answers()) == 3


async def test_a_running_request_has_no_timeout(connect: Connect, mock_clock: MockClock) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await trio.sleep(10_000)
        await respond(send, b"at last")

    peer = connect(app)
    await peer.send(GET)
    assert not await after(9_999, peer, mock_clock)
    assert not await after(2, peer, mock_clock)
    assert peer.answers()[0].body == b"at last"


async def test_a_head_that_arrives_byte_by_byte_times_out(connect: Connect, mock_clock: MockClock) -> None:
    peer = connect(Echo(), header_timeout=10)
    await peer.send(b"GET / HTTP/1.1\r\n")
    for octet in b"Host: abc":
        assert not await after(1.1, peer, mock_clock)
        await peer.send(bytes([octet]))
    assert await after(0.2, peer, mock_clock)
    (answer,) = peer.answers()
    assert (answer.status, answer.closing) == (408, True)
    assert answer.body == b"The head of the request did not arrive in time.\n"


async def test_the_head_of_a_later_request_times_out(connect: Connect, mock_clock: MockClock) -> None:
    peer = connect(Echo(), header_timeout=10)
    await peer.send(GET + GET[:-3])
    assert not await after(9.9, peer, mock_clock)
    assert await after(0.2, peer, mock_clock)
    assert [answer.status for answer in peer.answers()] == [200, 408]


async def test_a_silent_body_times_out(connect: Connect, mock_clock: MockClock) -> None:
    app = Echo()
    peer = connect(app, body_idle_timeout=60)
    await peer.send(post(b"a", b"Content-Length: 5"))
    for octet in b"bcd":
        assert not await after(59, peer, mock_clock)
        await peer.send(bytes([octet]))
    assert not await after(59.9, peer, mock_clock)
    assert app.truncated == 0
    assert await after(0.2, peer, mock_clock)
    assert app.truncated == 1
    assert [answer.status for answer in peer.answers()] == [408]


async def test_a_silent_body_ends_a_response_that_has_begun(connect: Connect, mock_clock: MockClock) -> None:
    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"begun", more=True))
        while (await receive())["type"] != "http.disconnect":
            pass

    peer = connect(app, body_idle_timeout=60)
    await peer.send(post(b"", b"Content-Length: 5"))
    assert await after(60.1, peer, mock_clock)
    assert peer.got.count(b"HTTP/1.1") == 1
    assert peer.got.endswith(b"begun\r\n")


async def test_a_body_that_the_application_does_not_read_has_no_timeout(
    connect: Connect, mock_clock: MockClock
) -> None:
    gate = trio.Event()

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await gate.wait()
        await respond(send, b"")

    peer = connect(app)
    await peer.send(post(b"a", b"Content-Length: 5"))
    assert not await after(3600, peer, mock_clock)
    gate.set()
    await peer.send(b"bcde")
    assert peer.answers()[0].status == 200


async def test_the_rest_of_an_unread_body_is_awaited_for_a_limited_time(
    connect: Connect, mock_clock: MockClock
) -> None:
    peer = connect(sending(start(200, (b"content-length", b"0")), body()))
    await peer.send(post(b"a", b"Content-Length: 5"))
    assert not await after(DISCARD_TIMEOUT - 0.1, peer, mock_clock)
    assert await after(0.2, peer, mock_clock)
    assert peer.answers()[0].status == 200


async def test_a_client_that_does_not_read_is_reset(connect: Connect, mock_clock: MockClock) -> None:
    raised: list[BaseException] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start())
        try:
            while True:
                await send(body(b"x" * 65536, more=True))
        except OSError as error:
            raised.append(error)
            raise

    peer = connect(app, tcp=True, write_timeout=30)
    peer.socket.sendall(GET)
    await trio.testing.wait_all_tasks_blocked(0.01)
    # The kernel may still take some bytes, and asks for room again after 0.2 s and 0.4 s: until then, time starts anew.
    arrived = -1
    while arrived < (arrived := len(peer.socket.recv(1 << 26, socket.MSG_PEEK))):
        await trio.testing.wait_all_tasks_blocked(0.7)
    check = 30 / CHECKS
    for seconds in (check, 29.9 - check):
        mock_clock.jump(seconds)
        await trio.testing.wait_all_tasks_blocked(0.01)
    assert raised == []
    mock_clock.jump(check + 0.2)
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert len(raised) == 1
    await peer.settle()
    assert peer.reset
    assert peer.reports == []


async def test_a_client_that_reads_slowly_is_not_reset(connect: Connect, mock_clock: MockClock) -> None:
    size = 3_000_000
    peer = connect(sending(start(), body(b"x" * size)), tcp=True, write_timeout=30)
    peer.socket.sendall(GET)
    await trio.testing.wait_all_tasks_blocked(0.01)
    got = 0
    while got < size:
        mock_clock.jump(20)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(100):
            try:
                got += len(peer.socket.recv(4096))
            except BlockingIOError:
                break
        await trio.testing.wait_all_tasks_blocked()
    assert not peer.connection.transport.closed


async def test_lingering_waits_two_seconds_for_a_silent_client(connect: Connect, mock_clock: MockClock) -> None:
    peer = connect(Echo())
    await peer.send(b"BAD\r\n\r\n")
    assert peer.closed
    assert not peer.connection.transport.closed
    await after(LINGER_GAP - 0.1, peer, mock_clock)
    assert not peer.connection.transport.closed
    await after(0.2, peer, mock_clock)
    assert peer.connection.transport.closed


async def test_lingering_ends_if_a_client_never_stops_sending(connect: Connect, mock_clock: MockClock) -> None:
    peer = connect(Echo())
    await peer.send(b"BAD\r\n\r\n")
    for _ in range(int(LINGER_TOTAL)):
        assert not peer.connection.transport.closed
        peer.socket.send(b"more")
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(1)
        await trio.testing.wait_all_tasks_blocked()
    assert peer.connection.transport.closed


async def test_lingering_ends_when_the_client_closes(connect: Connect) -> None:
    peer = connect(Echo())
    await peer.send(b"BAD\r\n\r\n")
    peer.socket.shutdown(socket.SHUT_WR)
    await trio.testing.wait_all_tasks_blocked()
    assert peer.connection.transport.closed
