"""An upstream on loopback that sends what a test specifies, byte for byte."""

from __future__ import annotations

import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import h11
import trio
from attrs import Factory, define

from llm_proxy.gateway.upstream.connector import Origin, Timeouts
from llm_proxy.gateway.upstream.pool import UpstreamPool, UpstreamResponse
from llm_proxy.gateway.upstream.request import RequestBody

#: Long enough that nothing times out by accident.
PATIENT = Timeouts(connect=60, response_header=60, read=60)

HEADERS = [(b"Authorization", b"Bearer sk-1"), (b"Content-Type", b"application/json")]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@define
class Asked:
    """A request as an upstream sees it, read by h11 and not by this project."""

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name]


@define(eq=False)
class Peer:
    """The upstream's side of one connection."""

    stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]
    asked: list[Asked] = Factory(list)
    _left: bytes = b""

    @property
    def socket(self) -> trio.socket.SocketType:
        stream = self.stream
        return stream.socket if isinstance(stream, trio.SocketStream) else stream.transport_stream.socket

    async def request(self) -> Asked | None:
        """Read one request; None at the end of the stream."""
        reader = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        reader.receive_data(self._left) if self._left else None
        request: h11.Request | None = None
        body = bytearray()
        while True:
            event = reader.next_event()
            if event is h11.NEED_DATA:
                data = bytes(await self.stream.receive_some())
                if not data and request is None:
                    return None
                reader.receive_data(data)
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
        assert request is not None
        self._left = reader.trailing_data[0]
        asked = Asked(request.method, request.target, request.headers.raw_items(), bytes(body))
        self.asked.append(asked)
        return asked

    async def head(self) -> bytes:
        """Read until the end of a request's head, and possibly a few bytes more."""
        data = b""
        while b"\r\n\r\n" not in data:
            piece = bytes(await self.stream.receive_some(65536))
            if not piece:
                raise trio.BrokenResourceError
            data += piece
        return data

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    def reset(self) -> None:
        """End the connection with a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        """End the connection with a FIN, and without a close_notify."""
        self.socket.close()


Handler = Callable[[Peer], Awaitable[None]]


@define
class Stage:
    """A running upstream."""

    origin: Origin
    peers: list[Peer] = Factory(list)

    @property
    def asked(self) -> list[Asked]:
        """All requests so far, by connection."""
        return [asked for peer in self.peers for asked in peer.asked]


@asynccontextmanager
async def stage(
    handler: Handler, context: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Stage]:
    """Run an upstream; with `context` over TLS."""
    async with trio.open_nursery() as nursery:
        listener = trio.socket.socket()
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        running = Stage(Origin("https" if context else "http", host, listener.getsockname()[1]))
        serve = partial(_handle, handler, running, context)
        nursery.start_soon(trio.serve_listeners, serve, [trio.SocketListener(listener)])
        yield running
        nursery.cancel_scope.cancel()


async def _handle(handler: Handler, running: Stage, context: ssl.SSLContext | None, stream: trio.SocketStream) -> None:
    peer = Peer(stream if context is None else trio.SSLStream(stream, context, server_side=True))
    running.peers.append(peer)
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
        await handler(peer)
    peer.close()


def answering(*responses: bytes) -> Handler:
    """Answer each request of a connection with the next response, and then always with the last one."""

    async def handler(peer: Peer) -> None:
        queue = list(responses)
        while await peer.request():
            await peer.send(queue.pop(0) if len(queue) > 1 else queue[0])

    return handler


def client_sockets(origin: Origin) -> int:
    """Count the sockets of this process that are connected to `origin`."""
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if not entry.readlink().name.startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as duplicate:
                address: Any = duplicate.getpeername()
                count += isinstance(address, tuple) and address[1] == origin.port
    return count


async def settled() -> None:
    """Wait until all tasks are blocked."""
    await trio.testing.wait_all_tasks_blocked(0.002)


@define
class Body:
    """A body in pieces; `content_length` may be wrong."""

    pieces: list[bytes]
    content_length: int | None = None
    taken: int = 0
    closed: bool = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            for piece in self.pieces:
                self.taken += 1
                yield piece
        finally:
            self.closed = True


class Endless:
    """A body without end."""

    content_length = None

    def __init__(self) -> None:
        self.taken = 0
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while True:
                self.taken += 1
                yield b"x" * 65536
        finally:
            self.closed = True


async def whole(response: UpstreamResponse) -> bytes:
    """Read a body to its end, and close the response."""
    pieces = []
    while piece := await response.receive():
        pieces.append(piece)
    assert await response.receive() == b""
    response.close()
    return b"".join(pieces)


async def ask(pool: UpstreamPool, body: bytes | RequestBody | None = None) -> bytes:
    return await whole(await pool.send(b"POST", b"/v1/x?y=%20", HEADERS, body))


def counts(pool: UpstreamPool) -> str:
    return repr(pool).partition(", ")[2].rstrip(">")
