"""The connections to one origin.

Idle connections form a stack: the one used last is used next, so the fewest are kept warm and the oldest expire. A
request costs the same however many there are: it looks at the top only, and a connection that comes back looks at the
bottom only. There is no bound on connections in use; whoever admits requests bounds those.
"""

from __future__ import annotations

import ssl
from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from llm_proxy.proxy.upstream.connection import Connection
from llm_proxy.proxy.upstream.failures import ConnectFailed, ConnectTimeout, Disconnected
from llm_proxy.proxy.upstream.interface import Dispatch
from llm_proxy.proxy.upstream.request import write_down
from llm_proxy.proxy.upstream.response import PooledConnection, PooledResponse
from llm_proxy.proxy.upstream.tls import client_context
from llm_proxy.proxy.upstream.wire import dial, words
from llm_proxy.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from llm_proxy.proxy.upstream.interface import RequestBody
    from llm_proxy.proxy.upstream.origin import Origin, Timeouts

#: Seconds that an unused connection is kept, below what load balancers commonly allow (60 s).
IDLE_EXPIRY: Final = 50.0

#: Unused connections that are kept.
MAX_IDLE: Final = 100


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
        self._stack: deque[PooledConnection] = deque()
        self._in_use = 0
        self._closed = False

    @property
    def idle(self) -> int:
        """Connections kept for the next request."""
        return len(self._stack)

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
        at last a fresh one. Once a byte is out nothing is sent a second time.
        """
        request = write_down(method, target, self._origin.authority, headers, body)
        dispatch = dispatch or Dispatch()
        self._in_use += 1
        try:
            while True:
                connection = self._take()
                kept = connection is not None
                if connection is None:
                    connection = await self._connect()
                try:
                    head = await connection.exchange(request, dispatch)
                except Disconnected as failure:
                    if failure.sent or not kept:
                        raise
                else:
                    return PooledResponse(head, connection, self._release)
        except BaseException:
            self._in_use -= 1
            raise

    def close(self) -> None:
        """Drop all idle connections; those in use end with their exchanges. Idempotent, never waits."""
        self._closed = True
        while self._stack:
            self._stack.pop().close()

    def _take(self) -> PooledConnection | None:
        """Take the connection that was used last and is still good; those that are not are closed."""
        stack = self._stack
        if not stack:
            return None
        now = trio.current_time()
        while stack:
            connection = stack.pop()
            if now < connection.best_before and connection.is_quiet():
                return connection
            connection.close()
        return None

    def _release(self, connection: PooledConnection) -> None:
        """Keep a connection whose exchange ended cleanly, close any other."""
        self._in_use -= 1
        if self._closed or not connection.is_reusable:
            connection.close()
            return
        now = trio.current_time()
        expiry = self._idle_expiry
        promised = connection.lifetime
        if promised is not None and promised - 1 < expiry:
            # The server says when it will close (`Keep-Alive: timeout`): be gone a second before, or requests get lost.
            expiry = promised - 1
        connection.best_before = now + expiry
        stack = self._stack
        stack.append(connection)
        while len(stack) > self._max_idle or stack[0].best_before <= now:
            stack.popleft().close()
            if not stack:
                return


class DirectConnector:
    """Makes connections to the origin itself."""

    def __init__(self, origin: Origin, timeouts: Timeouts, ssl_context: ssl.SSLContext | None) -> None:
        """Prepare what all connections share: the TLS context and the deadlines."""
        self._origin = origin
        self._seconds = timeouts.connect
        self._context = (ssl_context or client_context()) if origin.scheme == "https" else None
        self._header_watch = Watch(timeouts.response_header)
        self._idle_watch = Watch(timeouts.idle)

    async def connect(self) -> Connection:
        """Resolve, connect and shake hands.

        Raises:
            ConnectFailed: or, in time, ConnectTimeout.
        """
        origin = self._origin
        with trio.move_on_after(self._seconds):
            try:
                wire = await dial(origin.host, origin.port, self._context)
            except OSError as error:
                raise ConnectFailed(f"cannot connect to {origin}: {words(error)}") from error
            return Connection(wire, self._header_watch, self._idle_watch)
        raise ConnectTimeout(f"no connection to {origin} within {self._seconds:g} s")
