"""A request that is cancelled at any checkpoint leaves no open socket and no slot in use."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from llm_proxy.gateway.upstream.pool import UpstreamPool
from tests.gateway.upstream.conftest import Authority
from tests.gateway.upstream.stage import OK, PATIENT, Body, Peer, ask, client_sockets, settled, stage, whole


class CancelAt(trio.abc.Instrument):
    """Cancels `scope` when the tasks under `root` have stopped for the `count`-th time."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.scope = trio.CancelScope()
        self.root: trio.lowlevel.Task | None = None

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        above: trio.lowlevel.Task | None = task
        while above is not None and above is not self.root:
            above = above.parent_nursery.parent_task if above.parent_nursery is not None else None
        if self.root is None or above is None:
            return
        self.count -= 1
        if self.count == 0:
            self.scope.cancel()


async def is_cancelled_at(count: int, work: Callable[[], Awaitable[Any]]) -> bool:
    """Run `work`, cancel it at its `count`-th checkpoint, and return whether it got there."""
    instrument = CancelAt(count)

    async def run() -> None:
        instrument.root = trio.lowlevel.current_task()
        with instrument.scope:
            await work()
        instrument.root = None

    trio.lowlevel.add_instrument(instrument)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
    finally:
        trio.lowlevel.remove_instrument(instrument)
    return instrument.scope.cancelled_caught


async def slow(peer: Peer) -> None:
    """Answer in many small pieces."""
    while await peer.request():
        for piece in (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\n", b"Transfer-Encoding: chunked\r\n\r\n"):
            await peer.send(piece)
            await settled()
        for piece in (b"3\r\nabc\r\n", b"3\r\ndef", b"\r\n0\r\n", b"\r\n"):
            await peer.send(piece)
            await settled()


class Upload:
    """A body whose client is slow too."""

    def __init__(self, content_length: int | None) -> None:
        self.content_length = content_length

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(3):
            await trio.lowlevel.checkpoint()
            yield b"x" * 100_000


async def early(peer: Peer) -> None:
    """Answer before the body is read."""
    await peer.head()
    await settled()
    await peer.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\n")
    await settled()
    await peer.send(b"big")


async def plain(peer: Peer) -> None:
    while await peer.request():
        await peer.send(OK)


@pytest.mark.parametrize(
    ("handler", "make_body", "at_least"),
    [
        (slow, lambda: b"x", 6),
        (slow, lambda: Upload(300_000), 10),
        (slow, lambda: Upload(None), 10),
        (slow, lambda: b"x" * 300_000, 10),
        (early, lambda: Upload(None), 6),
        (plain, lambda: Body([]), 2),
    ],
    ids=["small", "known length", "chunked", "large", "early response", "empty stream"],
)
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "kept"])
@pytest.mark.parametrize("secure", [True, False], ids=["TLS", "plain"])
async def test_a_request_cancelled_at_any_checkpoint_closes_its_connection(
    handler: Any,
    make_body: Callable[[], Any],
    at_least: int,
    fresh: bool,
    secure: bool,
    authority: Authority,
    tmp_path: Path,
) -> None:
    contexts: tuple[ssl.SSLContext, ssl.SSLContext] | tuple[None, None] = (None, None)
    if secure:
        contexts = authority.server(tmp_path), authority.client()
    async with stage(handler, contexts[0], "localhost" if secure else "127.0.0.1") as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT, ssl_context=contexts[1])

        async def exchange() -> None:
            await ask(pool, make_body())

        count = 0
        while True:
            if not fresh and handler is not early:
                await ask(pool, b"")
                assert pool.idle == 1
            count += 1
            cancelled = await is_cancelled_at(count, exchange)
            assert pool.in_use == 0
            assert client_sockets(upstream.origin) == pool.idle
            assert pool.idle <= 1
            if cancelled:
                assert pool.idle == 0
            if fresh:
                while pool.idle:
                    pool._idle.popitem()[1].close()
            if not cancelled:
                break
        assert count > at_least
        # The pool can still be used.
        if handler is not early:
            await ask(pool, b"x")
            assert repr(pool).endswith("1 idle, 0 in use>")
        pool.close()


async def test_a_request_cancelled_during_name_resolution_opens_no_connection() -> None:
    class Never(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *_: Any, **__: Any) -> Any:
            await trio.sleep_forever()

        async def getnameinfo(self, *_: Any) -> Any:
            raise NotImplementedError

    async with stage(plain, host="upstream.example") as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        trio.socket.set_custom_hostname_resolver(Never())
        assert await is_cancelled_at(1, lambda: ask(pool))
        assert repr(pool).endswith("0 idle, 0 in use>")


async def test_a_response_cancelled_between_two_pieces_closes_its_connection() -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await trio.sleep_forever()

    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        response = await pool.send(b"GET", b"/", [], None)
        assert await response.receive() == b"half"
        with trio.CancelScope() as scope:
            scope.cancel()
            await response.receive()
        # The socket is closed before the response is.
        assert client_sockets(upstream.origin) == 0
        assert repr(pool).endswith("0 idle, 0 in use>")
        response.close()
        assert repr(pool).endswith("0 idle, 0 in use>")


async def test_many_requests_cancelled_at_once_close_their_connections() -> None:
    async with stage(slow) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        with trio.move_on_after(0.02):
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(ask, pool, b"x")
        assert pool.in_use == 0
        assert client_sockets(upstream.origin) == pool.idle
        assert await whole(await pool.send(b"GET", b"/", [], None)) == b"abcdef"
        pool.close()
