"""The configuration of a server, and what all its connections share."""

from __future__ import annotations

import heapq
import socket
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import attrs
import trio

from llm_proxy.net.timeouts import TimeoutWheel
from llm_proxy.server.asgi import ASGIApp

MAX_CONNECTIONS: Final = 10_000
_BACK_OFF: Final = 0.1
"""Seconds without accepting if the limit of connections is reached, unless a connection ends earlier."""
_CLOSED_AT_ONCE: Final = 0.01
"""Share of the idle connections that is closed at the limit: each search for the longest idle ones takes time."""


def _plain_text(_status: int, message: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    body = message.encode() + b"\n"
    return [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))], body


@attrs.frozen(kw_only=True)
class ServerConfig:
    """Addresses, limits and timeouts of one server. Times are in seconds, sizes in bytes.

    Attributes:
        host, port: where to listen if `sockets` is empty, see `listener.bind`.
        sockets: sockets that are already bound, as a worker process inherits them. The server listens on them and
            closes its own handles of them at the end.
        shared: whether other processes accept from these sockets too.
        tls_cert, tls_key: PEM files; if both are set, all sockets speak TLS, with HTTP/2 by ALPN.
        shutdown_grace: how long running requests may continue after `stop`.
        lifespan_timeout: how long the application's own shutdown may take after that.
        header_timeout: from the first byte of a request to the end of its headers; also for the TLS handshake.
        body_idle_timeout: longest silence while the application waits for the body of a request.
        keep_alive_timeout: longest silence between two requests, and before the first.
        write_timeout: longest time in which a client reads nothing of what is sent to it.
        max_header_size: request line and headers together.
        max_connections: at this number the connections that have been idle longest are closed; if none is idle, new
            ones wait in the listen queue. Keep it below the limit on open files.
        backlog: length of the listen queue.
        report: called with each exception that escapes from an application or a connection.
        error_response: headers and body for a status and a message, for requests that the server itself answers:
            malformed ones, and those that the application fails to answer.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    sockets: tuple[socket.socket, ...] = ()
    shared: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    shutdown_grace: float = 30.0
    lifespan_timeout: float = 60.0
    header_timeout: float = 10.0
    body_idle_timeout: float = 60.0
    keep_alive_timeout: float = 75.0
    write_timeout: float = 30.0
    max_header_size: int = 64 * 1024
    max_connections: int = MAX_CONNECTIONS
    backlog: int = 1024
    report: Callable[[BaseException], None] = traceback.print_exception
    error_response: Callable[[int, str], tuple[list[tuple[bytes, bytes]], bytes]] = _plain_text

    def __attrs_post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("TLS needs both tls_cert and tls_key")


class ServerConnection(Protocol):
    """A connection as the server sees it, of either version of HTTP.

    Attributes:
        idle_since: Trio's time since when it waits for a request; None while it has one, and while it ends.
        busy: a request is running on it, or has begun to arrive.
    """

    idle_since: float | None

    @property
    def busy(self) -> bool: ...

    def close_if_idle(self) -> None:
        """Close the connection at once, unless it is busy."""

    def drain(self) -> None: ...

    def cut(self) -> None:
        """Close the connection at once, so that no client takes half a response for a whole one."""


@attrs.define(eq=False)
class ConnectionTracker:
    """Knows all open connections of one server."""

    #: The server is stopping; each response from now on closes its connection.
    draining: bool = False
    open: set[ServerConnection] = attrs.field(factory=set)
    _changed: trio.Event = attrs.field(factory=trio.Event, init=False)
    _ended: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False)

    @contextmanager
    def track(self, connection: ServerConnection) -> Iterator[None]:
        self.open.add(connection)
        try:
            yield
        finally:
            self.open.discard(connection)
            self._ended.unpark_all()
            self.notify()

    def notify(self) -> None:
        if self.draining:
            self._changed.set()

    async def wait_idle(self, connections: Iterable[ServerConnection]) -> None:
        """Wait, while draining, until none of `connections` is busy."""
        while any(connection.busy for connection in connections):
            self._changed = trio.Event()
            await self._changed.wait()

    async def make_room(self) -> None:
        """Close the connections that have been idle longest. Wait until a connection has ended, but not for long."""
        idle = [connection for connection in self.open if connection.idle_since is not None]
        number = 1 + int(len(idle) * _CLOSED_AT_ONCE)
        for connection in heapq.nsmallest(number, idle, key=lambda connection: connection.idle_since or 0.0):
            connection.close_if_idle()
        with trio.move_on_after(_BACK_OFF):
            await self._ended.park()


@attrs.frozen
class ServerContext:
    """What all connections of one server share.

    Attributes:
        state: set by the application's lifespan for its requests.
        sees_disconnects: whether applications are told when their clients disconnect; the system must support it.
        header_wheel: ends connections on which the headers of a request do not arrive in time.
        keep_alive_wheel: ends connections on which no request begins in time.
    """

    app: ASGIApp
    config: ServerConfig
    state: dict[str, Any]
    connections: ConnectionTracker = attrs.field(factory=ConnectionTracker)
    sees_disconnects: bool = False
    header_wheel: TimeoutWheel = attrs.field(
        init=False, default=attrs.Factory(lambda self: TimeoutWheel(self.config.header_timeout), takes_self=True)
    )
    keep_alive_wheel: TimeoutWheel = attrs.field(
        init=False, default=attrs.Factory(lambda self: TimeoutWheel(self.config.keep_alive_timeout), takes_self=True)
    )
