"""The connections to one origin.

Idle connections form a stack: the one used last is used next, so the fewest are kept warm and the oldest expire. A
request costs the same however many there are: it looks at the top only. One task closes what has been idle for too
long, another one what the upstream has closed. There is no bound on connections in use; whoever admits requests bounds
those.
"""

from __future__ import annotations

import math
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from llm_proxy.gateway.upstream.connection import Connection
from llm_proxy.gateway.upstream.failures import ConnectFailed, ConnectTimeout, Disconnected
from llm_proxy.gateway.upstream.interface import Dispatch
from llm_proxy.gateway.upstream.request import write_down
from llm_proxy.gateway.upstream.response import PooledConnection, PooledResponse
from llm_proxy.net.client_socket import connect, describe_error
from llm_proxy.net.disconnect import DisconnectWatcher
from llm_proxy.net.timeouts import TimeoutWheel
from llm_proxy.net.tls import client_context

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from llm_proxy.gateway.upstream.interface import RequestBody
    from llm_proxy.gateway.upstream.origin import Origin, Timeouts

#: Seconds that an unused connection is kept, below what load balancers commonly allow (60 s).
IDLE_EXPIRY: Final = 50.0

#: Unused connections that are kept.
MAX_IDLE: Final = 100

#: Methods that ask for nothing to be done (RFC 9110 §9.2.1). PUT and DELETE may be sent again as well (§9.2.2), but the
#: second answer can be another one: a 404 for what the first has deleted.
_SAFE: Final = frozenset({b"GET", b"HEAD", b"OPTIONS"})


class UpstreamPool:
    """Sends requests to one origin over HTTP/1.1, and keeps its connections. Belongs to one trio run."""

    def __init__(
        self,
        origin: Origin,
        timeouts: Timeouts,
        *,
        max_idle: int = MAX_IDLE,
        idle_expiry: float = IDLE_EXPIRY,
        ssl_context: ssl.SSLContext | None = None,
        connect: Callable[[], Awaitable[PooledConnection]] | None = None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            origin: where to.
            timeouts: how long it may take.
            max_idle: connections kept; beyond it the oldest is closed.
            idle_expiry: seconds that an unused connection is kept.
            ssl_context: for `https`, instead of one that verifies against the system's roots.
            connect: makes a new connection, instead of dialling the origin itself.
        """
        self._origin = origin
        self._max_idle = max_idle
        self._idle_expiry = idle_expiry
        self._connect = connect or DirectConnector(origin, timeouts, ssl_context).connect
        #: By descriptor, the one that was used last at the end.
        self._idle: dict[int, PooledConnection] = {}
        self._in_use = 0
        self._closed = False
        #: What waits until the next idle connection is due, and when that is.
        self._sweeping: trio.CancelScope | None = None
        self._due = math.inf
        self._disconnects: DisconnectWatcher | None = None
        self._listening = trio.CancelScope()
        #: Descriptors of connections in use that the upstream has closed behind its response.
        self._ended: set[int] = set()

    @property
    def idle(self) -> int:
        """Connections kept for the next request."""
        return len(self._idle)

    @property
    def in_use(self) -> int:
        """Exchanges under way, those still connecting included."""
        return self._in_use

    def __repr__(self) -> str:
        """Name the origin and count the connections."""
        return f"<UpstreamPool {self._origin.scheme}://{self._origin}, {self.idle} idle, {self._in_use} in use>"

    async def send(
        self,
        method: bytes,
        target: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes | RequestBody | None,
        *,
        dispatch: Dispatch | None = None,
    ) -> PooledResponse:
        """Send one request and wait for the head of its final response; see `interface.Upstream.send`.

        A kept connection may turn out to be dead when the first byte is to be sent: then the next one is taken, and
        at last a fresh one. Once a byte is out nothing is sent a second time, with one exception: what has no body and
        a safe method, and met the end of a kept connection instead of a response, is sent once more on a fresh one
        (RFC 9110 §9.2.2).
        """
        request = write_down(method, target, self._origin.authority, headers, body)
        dispatch = dispatch or Dispatch()
        repeatable = body is None and method in _SAFE
        lost: Disconnected | None = None
        self._in_use += 1
        try:
            while True:
                connection = None if lost else self._take()
                kept = connection is not None
                if connection is None:
                    try:
                        connection = await self._connect()
                    except ConnectFailed:
                        if lost is None:
                            raise
                        raise lost from None
                try:
                    head = await connection.exchange(request, dispatch)
                except Disconnected as failure:
                    if not kept or (failure.sent and not repeatable):
                        raise
                    lost = failure if failure.sent else None
                else:
                    if not kept:
                        self._listen_to(connection)
                    return PooledResponse(head, connection, self._release)
        except BaseException:
            self._in_use -= 1
            raise

    def close(self) -> None:
        """Drop all idle connections; those in use end with their exchanges. Idempotent, never waits."""
        self._closed = True
        self._listening.cancel()
        if self._sweeping is not None:
            self._sweeping.cancel()
        while self._idle:
            self._idle.popitem()[1].close()

    def _take(self) -> PooledConnection | None:
        """Take the connection that was used last and is still good; those that are not are closed."""
        if not self._idle:
            return None
        now = trio.current_time()
        while self._idle:
            _, connection = self._idle.popitem()
            if now < connection.best_before and connection.is_quiet():
                return connection
            connection.close()
        return None

    def _release(self, connection: PooledConnection) -> None:
        """Keep a connection whose exchange ended cleanly, close any other."""
        self._in_use -= 1
        descriptor = connection.fileno()
        expiry = self._idle_expiry
        promised = connection.lifetime
        if promised is not None and promised - 1 < expiry:
            # The server says when it will close (`Keep-Alive: timeout`): be gone a second before, or requests get lost.
            expiry = promised - 1
        if self._closed or not connection.is_reusable or descriptor in self._ended or expiry <= 0:
            connection.close()
            return
        connection.best_before = trio.current_time() + expiry
        self._idle[descriptor] = connection
        if len(self._idle) > self._max_idle:
            self._idle.pop(next(iter(self._idle))).close()
        if connection.best_before < self._due:
            self._sweep_at(connection.best_before)

    def _sweep_at(self, due: float) -> None:
        self._due = due
        if self._sweeping is None:
            self._sweeping = trio.CancelScope(deadline=due)
            trio.lowlevel.spawn_system_task(self._sweep)
        else:
            self._sweeping.deadline = due

    async def _sweep(self) -> None:
        """Close what has been idle for too long, as long as anything is idle."""
        while self._sweeping is not None:
            with self._sweeping:
                await trio.sleep_forever()
            now = trio.current_time()
            for descriptor, connection in list(self._idle.items()):
                if connection.best_before <= now:
                    del self._idle[descriptor]
                    connection.close()
            self._due = min((connection.best_before for connection in self._idle.values()), default=math.inf)
            self._sweeping = trio.CancelScope(deadline=self._due) if self._idle else None

    def _listen_to(self, connection: PooledConnection) -> None:
        """Learn when the upstream closes a new connection: nobody reads from it while it is idle."""
        descriptor = connection.fileno()
        self._ended.discard(descriptor)
        if self._closed or not DisconnectWatcher.available():
            return
        with suppress(OSError):  # out of descriptors: idle connections expire all the same
            if self._disconnects is None:
                self._disconnects = DisconnectWatcher()
                trio.lowlevel.spawn_system_task(self._listen, self._disconnects)
            self._disconnects.add(descriptor, lambda _gone: self._peer_closed(descriptor))

    async def _listen(self, disconnects: DisconnectWatcher) -> None:
        try:
            with self._listening:
                await disconnects.run()
        finally:
            disconnects.close()

    def _peer_closed(self, descriptor: int) -> None:
        """An upstream that has ended its side will not answer another request: there is no half of that."""
        connection = self._idle.pop(descriptor, None)
        if connection is None:
            self._ended.add(descriptor)
        else:
            connection.close()


class DirectConnector:
    """Makes connections to the origin itself."""

    def __init__(self, origin: Origin, timeouts: Timeouts, ssl_context: ssl.SSLContext | None) -> None:
        """Prepare what all connections share: the TLS context and the deadlines."""
        self._origin = origin
        self._seconds = timeouts.connect
        self._context = (ssl_context or client_context()) if origin.scheme == "https" else None
        self._header_timeout = TimeoutWheel(timeouts.response_header)
        self._idle_timeout = TimeoutWheel(timeouts.idle)

    async def connect(self) -> Connection:
        """Resolve, connect and shake hands.

        Raises:
            ConnectFailed: or, in time, ConnectTimeout.
        """
        origin = self._origin
        with trio.move_on_after(self._seconds):
            try:
                connected = await connect(origin.host, origin.port, self._context)
            except OSError as error:
                raise ConnectFailed(f"cannot connect to {origin}: {describe_error(error)}") from error
            return Connection(connected, self._header_timeout, self._idle_timeout)
        raise ConnectTimeout(f"no connection to {origin} within {self._seconds:g} s")
