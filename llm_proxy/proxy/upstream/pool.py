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
from llm_proxy.proxy.upstream.request import CHUNKED, request_head
from llm_proxy.proxy.upstream.response import DirectResponse
from llm_proxy.proxy.upstream.tls import client_context
from llm_proxy.proxy.upstream.watch import Watch
from llm_proxy.proxy.upstream.wire import dial, words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_proxy.proxy.upstream.interface import RequestBody
    from llm_proxy.proxy.upstream.origin import Origin, Timeouts

#: Seconds that an unused connection is kept, below what load balancers commonly allow (60 s).
IDLE_EXPIRY: Final = 50.0


class UpstreamPool:
    """Sends requests to one origin over HTTP/1.1, and keeps its connections. Belongs to one trio run."""

    def __init__(
        self,
        origin: Origin,
        timeouts: Timeouts,
        *,
        max_idle: int = 100,
        idle_expiry: float = IDLE_EXPIRY,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            origin: where to.
            timeouts: how long it may take.
            max_idle: connections kept; beyond it the oldest is closed.
            idle_expiry: seconds that an unused connection is kept.
            ssl_context: for `https`, instead of one that verifies against the system's roots.
        """
        self._origin = origin
        self._timeouts = timeouts
        self._max_idle = max_idle
        self._idle_expiry = idle_expiry
        self._context = (ssl_context or client_context()) if origin.scheme == "https" else None
        self._stack: deque[Connection] = deque()
        self._in_use = 0
        self._closed = False
        self._header_watch = Watch(timeouts.response_header)
        self._idle_watch = Watch(timeouts.idle)

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
    ) -> DirectResponse:
        """Send one request and wait for the head of its final response; see `interface.Upstream.send`.

        A kept connection may turn out to be dead when the first byte is to be sent: then the next one is taken, and
        at last a fresh one. Once a byte is out nothing is sent a second time.
        """
        length = None if body is None else len(body) if isinstance(body, bytes) else body.content_length
        if length is None and body is not None:
            length = CHUNKED
        head = request_head(method, target, self._origin.authority, headers, length)
        dispatch = dispatch or Dispatch()
        head_only = method == b"HEAD"
        self._in_use += 1
        try:
            while True:
                connection = self._take()
                kept = connection is not None
                if connection is None:
                    connection = await self._connect()
                try:
                    await connection.exchange(head, body, dispatch, head_only=head_only)
                except Disconnected as failure:
                    if failure.sent or not kept:
                        raise
                else:
                    return DirectResponse(connection, self._release)
        except BaseException:
            self._in_use -= 1
            raise

    def close(self) -> None:
        """Drop all idle connections; those in use end with their exchanges. Idempotent, never waits."""
        self._closed = True
        while self._stack:
            self._stack.pop().close()

    def _take(self) -> Connection | None:
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

    def _release(self, connection: Connection) -> None:
        """Keep a connection whose exchange ended cleanly, close any other."""
        self._in_use -= 1
        if self._closed or not connection.is_reusable:
            connection.close()
            return
        now = trio.current_time()
        expiry = self._idle_expiry
        promised = connection.parser.lifetime
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

    async def _connect(self) -> Connection:
        origin = self._origin
        seconds = self._timeouts.connect
        with trio.move_on_after(seconds):
            try:
                wire = await dial(origin.host, origin.port, self._context)
            except OSError as error:
                raise ConnectFailed(f"cannot connect to {origin}: {words(error)}") from error
            return Connection(wire, self._header_watch, self._idle_watch)
        raise ConnectTimeout(f"no connection to {origin} within {seconds:g} s")
