"""The connections to one origin.

Idle connections are a stack: the connection used last is used next, so few stay in use and the oldest expire. The cost
of a request does not depend on their number: only the top is checked. One task closes connections that were idle for
too long, another one those that the upstream has closed. Connections in use have no limit here: admission limits
requests.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import trio

from llm_proxy.gateway.upstream.connector import Connector, Origin, Timeouts
from llm_proxy.gateway.upstream.failures import ConnectFailed, Disconnected
from llm_proxy.gateway.upstream.request import Dispatch, write_request

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence

    from llm_proxy.gateway.upstream.connection import Connection
    from llm_proxy.gateway.upstream.outbound_proxy import OutboundProxy
    from llm_proxy.gateway.upstream.request import RequestBody

#: Seconds that an unused connection is kept: less than load balancers commonly allow (60 s).
KEEP_ALIVE: Final = 50.0

#: Maximum number of unused connections.
MAX_IDLE: Final = 100

#: Methods that change nothing (RFC 9110 §9.2.1). PUT and DELETE may be sent again too (§9.2.2), but their second
#: response can be different: 404 for what the first one has deleted.
_SAFE: Final = frozenset({b"GET", b"HEAD", b"OPTIONS"})


class UpstreamResponse:
    """The head of a final response, and its body as it arrives. Must be closed.

    It owns the connection until it is closed or fails.
    """

    __slots__ = ("_connection", "_release", "headers", "reason", "status")

    def __init__(self, connection: Connection, release: Callable[[Connection], None]) -> None:
        parser = connection.parser
        self.status = parser.status
        self.reason = parser.reason
        #: In order, with hop-by-hop fields; names in lower case.
        self.headers = parser.headers
        self._connection: Connection | None = connection
        self._release = release

    def __repr__(self) -> str:
        state = "closed" if self._connection is None else "open"
        return f"<UpstreamResponse {self.status} {state}>"

    @property
    def ready(self) -> bool:
        """Whether `receive` would return without waiting."""
        connection = self._connection
        return connection is None or bool(connection.parser.pieces) or connection.parser.complete

    @property
    def ended(self) -> bool:
        """After a piece was received: whether it is known to be the last one."""
        return self._connection is not None and self._connection.is_reusable

    async def receive(self) -> bytes:
        """Return the next piece of the body, empty at the clean end. A checkpoint only if it has to wait.

        Raises `UpstreamFailure` and closes the connection if the body was cut off, stalled or is malformed; raises
        `trio.ClosedResourceError` if the response was closed, or has failed.
        """
        if self._connection is None:
            raise trio.ClosedResourceError("the response is closed")
        try:
            return await self._connection.receive()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the connection; it is closed if the exchange has not ended cleanly. Idempotent, never waits."""
        connection = self._connection
        if connection is not None:
            self._connection = None
            self._release(connection)


class UpstreamPool:
    """Sends requests to one origin over HTTP/1.1, and keeps its connections. Belongs to one trio run."""

    def __init__(
        self,
        origin: Origin,
        timeouts: Timeouts,
        *,
        max_idle: int = MAX_IDLE,
        keep_alive: float = KEEP_ALIVE,
        proxy: OutboundProxy | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """Connect to nothing yet.

        At most `max_idle` unused connections are kept, for `keep_alive` seconds. `ssl_context` is used for the origin
        and the proxy, instead of contexts that verify against the system's roots.
        """
        self._origin = origin
        self._max_idle = max_idle
        self._keep_alive = keep_alive
        self._connector = Connector(origin, timeouts, proxy, ssl_context)
        #: By descriptor; the connection that was used last is at the end.
        self._idle: dict[int, Connection] = {}
        #: Current exchanges, including those that still connect.
        self.in_use = 0
        self._closed = False
        #: Waits until the next idle connection expires at `_due`.
        self._sweeping: trio.CancelScope | None = None
        self._due = math.inf

    @property
    def idle(self) -> int:
        return len(self._idle)

    def __repr__(self) -> str:
        return f"<UpstreamPool {self._origin.scheme}://{self._origin}, {self.idle} idle, {self.in_use} in use>"

    async def send(
        self,
        method: bytes,
        target: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes | RequestBody | None,
        *,
        dispatch: Dispatch | None = None,
    ) -> UpstreamResponse:
        """Send one request and wait for the head of its final response.

        If sending fails on an idle connection before the first byte, the next one is used, and in the end a new one.
        After the first byte nothing is sent again, with one exception: a request without a body and with a safe
        method, whose idle connection was closed instead of a response, is sent once more on a new one (RFC 9110
        §9.2.2).

        `target` is in origin form, and `method` is not CONNECT. `headers` has neither Host nor Content-Length nor
        Transfer-Encoding, which are set here. `dispatch` says whether a byte was sent, also if this call fails or is
        cancelled.

        Raises:
            UpstreamFailure: no final response head was received.
            ValueError: the request cannot be written as one HTTP/1.1 request.
            Exception: any exception of `body`.
        """
        connector = self._connector
        if connector.target_prefix:
            target, headers = connector.target_prefix + target, [*headers, *connector.headers]
        request = write_request(method, target, self._origin.authority, headers, body)
        dispatch = dispatch or Dispatch()
        repeatable = body is None and method in _SAFE
        lost: Disconnected | None = None
        self.in_use += 1
        try:
            while True:
                connection = None if lost else self._take()
                reused = connection is not None
                if connection is None:
                    try:
                        connection = await connector.connect()
                    except ConnectFailed:
                        if lost is None:
                            raise
                        raise lost from None
                try:
                    await connection.exchange(request, dispatch)
                except Disconnected as failure:
                    if not reused or (failure.sent and not repeatable):
                        raise
                    lost = failure if failure.sent else None
                else:
                    if not reused:
                        self._watch(connection)
                    return UpstreamResponse(connection, self._release)
        except BaseException:
            self.in_use -= 1
            raise

    def close(self) -> None:
        """Close all idle connections; those in use close after their exchange. Idempotent, never waits."""
        self._closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        while self._idle:
            self._idle.popitem()[1].close()

    def _take(self) -> Connection | None:
        """Take the connection that was used last and is still usable; close unusable ones."""
        now = trio.current_time()
        while self._idle:
            _, connection = self._idle.popitem()
            if now < connection.expires and connection.is_quiet():
                return connection
            connection.close()
        return None

    def _release(self, connection: Connection) -> None:
        self.in_use -= 1
        descriptor = connection.fileno()
        keep_alive = self._keep_alive
        announced = connection.parser.keep_alive
        if announced is not None and announced - 1 < keep_alive:
            # The server announces when it closes (`Keep-Alive: timeout`): close a second before, or requests get lost.
            keep_alive = announced - 1
        ended = connection.watch.peer_closed or not connection.is_reusable
        if self._closed or ended or keep_alive <= 0:
            connection.close()
            return
        connection.expires = trio.current_time() + keep_alive
        self._idle[descriptor] = connection
        if len(self._idle) > self._max_idle:
            self._idle.pop(next(iter(self._idle))).close()
        if connection.expires < self._due:
            self._due = connection.expires
            if self._sweeping is None:
                self._sweeping = trio.CancelScope(deadline=self._due)
                trio.lowlevel.spawn_system_task(self._sweep)
            else:
                self._sweeping.deadline = self._due

    async def _sweep(self) -> None:
        """Close connections that were idle for too long. Ends when none is idle."""
        while self._sweeping is not None:
            with self._sweeping:
                await trio.sleep_forever()
            now = trio.current_time()
            for descriptor, connection in list(self._idle.items()):
                if connection.expires <= now:
                    del self._idle[descriptor]
                    connection.close()
            self._due = min((connection.expires for connection in self._idle.values()), default=math.inf)
            self._sweeping = trio.CancelScope(deadline=self._due) if self._idle else None

    def _watch(self, connection: Connection) -> None:
        """Close a new connection when its upstream closes it while it is idle: no task reads from it then."""
        descriptor = connection.fileno()

        def closed(_lost: bool) -> None:  # noqa: FBT001 - the signature of `Watch.on_closed`
            if self._idle.get(descriptor) is connection:
                del self._idle[descriptor]
                connection.close()

        connection.watch.on_closed(closed)
