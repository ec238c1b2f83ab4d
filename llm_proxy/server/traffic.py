"""What a server is busy with: its connections, and whether anything is going on in them."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

import attrs
import trio

from llm_proxy.net.disconnect import DisconnectWatcher
from llm_proxy.net.timeouts import TimeoutWheel
from llm_proxy.server.asgi import Application
from llm_proxy.server.config import ServeConfig

_BACK_OFF: Final = 0.1
"""Seconds without accepting when there is no room, unless a connection ends before."""
_CLOSED_AT_ONCE: Final = 0.01
"""Part of the idle connections that is closed when there is no room: looking for the idlest ones takes time as well."""


class Connection(Protocol):
    """A connection as the server sees it, of either version of HTTP.

    Attributes:
        idle_since: Trio's time since when it waits for a request; None while it has one, and once it is ending.
        busy: a request is running on it, or has begun to arrive.
    """

    idle_since: float | None

    @property
    def busy(self) -> bool:
        """Whether a client waits for an answer on this connection."""

    def close_if_idle(self) -> None:
        """Close the connection at once, unless it is busy."""

    def drain(self) -> None:
        """Take no further request than those that are running, and close the connection behind them."""

    def cut(self) -> None:
        """End the connection at once, whoever reads or writes, so that no client takes half a response for a whole."""


class Traffic:
    """Knows all open connections of one server.

    Attributes:
        draining: the server was told to stop; every response from now on ends its connection.
        connections: those that are open.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self.draining = False
        self.connections: set[Connection] = set()
        self._changed = trio.Event()
        self._ended = trio.lowlevel.ParkingLot()

    @contextmanager
    def connection(self, connection: Connection) -> Iterator[None]:
        """Keep `connection` among the open ones while the block runs."""
        self.connections.add(connection)
        try:
            yield
        finally:
            self.connections.discard(connection)
            self._ended.unpark_all()
            self.notify()

    def notify(self) -> None:
        """Say that a connection may have ceased to be busy."""
        if self.draining:
            self._changed.set()

    async def settled(self, connections: Iterable[Connection]) -> None:
        """Wait, while draining, until none of `connections` is busy."""
        while any(connection.busy for connection in connections):
            self._changed = trio.Event()
            await self._changed.wait()

    async def make_room(self) -> None:
        """Close the connections that have been idle for the longest time, and wait until one has ended, or a moment."""
        idle = [connection for connection in self.connections if connection.idle_since is not None]
        for connection in heapq.nsmallest(1 + int(len(idle) * _CLOSED_AT_ONCE), idle, key=_idle_since):
            connection.close_if_idle()
        with trio.move_on_after(_BACK_OFF):
            await self._ended.park()


def _idle_since(connection: Connection) -> float:
    return connection.idle_since or 0.0


@attrs.frozen
class Site:
    """What all connections of one server share.

    Attributes:
        app: the ASGI application.
        config: limits and deadlines.
        state: what the application's lifespan has left for its requests.
        traffic: all connections.
        disconnects: tells when clients leave; None where the system cannot.
        head_watch, idle_watch: end connections whose next head is not complete in time, or does not even begin.
    """

    app: Application
    config: ServeConfig
    state: dict[str, Any]
    traffic: Traffic = attrs.field(factory=Traffic)
    disconnects: DisconnectWatcher | None = None
    head_watch: TimeoutWheel = attrs.field(init=False)
    idle_watch: TimeoutWheel = attrs.field(init=False)

    @head_watch.default
    def _watch_heads(self) -> TimeoutWheel:
        return TimeoutWheel(self.config.header_timeout)

    @idle_watch.default
    def _watch_idle(self) -> TimeoutWheel:
        return TimeoutWheel(self.config.keep_alive_timeout)
