"""A wire with faults, to put between two processes: mostly between the proxy and its database.

It listens on a loopback port and forwards to another. Faults take effect at once, on connections that are open too.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio
from attrs import Factory, define, field

_RESET = struct.pack("ii", 1, 0)


@define(eq=False)
class Wire:
    """Use `wire_to` to make one.

    Attributes:
        host, port: where it listens.
        delay: seconds that every piece of data is held back, in each direction.
        accepted: connections that were taken so far.
    """

    host: str
    port: int
    _upstream: tuple[str, int]
    _nursery: trio.Nursery = field(repr=False)
    delay: float = 0.0
    accepted: int = 0
    _open: trio.Event = field(factory=trio.Event, repr=False)
    _listening: trio.CancelScope | None = field(default=None, repr=False)
    _pairs: set[tuple[trio.SocketStream, trio.SocketStream]] = Factory(set)

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        return len(self._pairs)

    def freeze(self) -> None:
        """Let nothing through; connections stay open, as to a host that hangs."""
        if self._open.is_set():
            self._open = trio.Event()

    def thaw(self) -> None:
        """Let everything through again, what was held back first."""
        self._open.set()

    def cut(self) -> int:
        """Reset all open connections, on both sides; say how many they were."""
        pairs = list(self._pairs)
        for pair in pairs:
            _reset(*pair)
        return len(pairs)

    def refuse(self) -> None:
        """Take no new connections: connecting fails at once. Open ones go on; `cut` them too for an outage."""
        if self._listening is not None:
            self._listening.cancel()
            self._listening = None

    async def accept(self) -> None:
        """Take connections (again), on the same port."""
        if self._listening is None:
            self._listening = await self._nursery.start(self._listen)

    async def _listen(self, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        listener = trio.socket.socket()
        with listener, trio.CancelScope() as scope:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            await listener.bind((self.host, self.port))
            self.port = listener.getsockname()[1]
            listener.listen(1024)
            task_status.started(scope)
            while True:
                connection, _ = await listener.accept()
                self.accepted += 1
                self._nursery.start_soon(self._forward, trio.SocketStream(connection))

    async def _forward(self, near: trio.SocketStream) -> None:
        async with near:
            await self._open.wait()
            try:
                far = await trio.open_tcp_stream(*self._upstream)
            except OSError:
                _reset(near)
                return
            async with far:
                pair = (near, far)
                self._pairs.add(pair)
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._pump, near, far)
                        nursery.start_soon(self._pump, far, near)
                finally:
                    self._pairs.discard(pair)

    async def _pump(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        try:
            while data := await source.receive_some(65536):
                if self.delay:
                    await trio.sleep(self.delay)
                await self._open.wait()
                await sink.send_all(data)
            await self._open.wait()
            await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            _reset(source, sink)


def _reset(*streams: trio.SocketStream) -> None:
    for stream in streams:
        # A socket that is closed already has nothing to reset.
        if stream.socket.fileno() != -1:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            stream.socket.close()


@asynccontextmanager
async def wire_to(host: str, port: int) -> AsyncGenerator[Wire]:
    """A faultless wire to a host and port, until something is done to it."""
    async with trio.open_nursery() as nursery:
        wire = Wire("127.0.0.1", 0, (host, port), nursery)
        wire.thaw()
        await wire.accept()
        try:
            yield wire
        finally:
            nursery.cancel_scope.cancel()
