"""A response on a connection of the pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_proxy.gateway.upstream.interface import Dispatch
    from llm_proxy.gateway.upstream.request import Request


class Head(Protocol):
    """The head of a final response: names in lower case, values exact."""

    status: int
    reason: bytes
    headers: list[tuple[bytes, bytes]]


class PooledConnection(Protocol):
    """A connection that carries one exchange after the other, never two at a time.

    Attributes:
        best_before: trio time after which the idle connection is not used again.
    """

    best_before: float

    @property
    def lifetime(self) -> int | None:
        """Seconds for which the server promises to keep the idle connection, None where it does not say."""

    @property
    def is_reusable(self) -> bool:
        """Has the exchange ended cleanly on both sides, with the connection fit for the next?"""

    @property
    def is_ready(self) -> bool:
        """Would `receive` return without waiting?"""

    def fileno(self) -> int:
        """The descriptor of the socket; -1 once it is closed."""

    def is_quiet(self) -> bool:
        """Is the idle connection still there, with nothing to read on it?"""

    async def exchange(self, request: Request, dispatch: Dispatch) -> Head:
        """Send a request and wait for the head of its final response; closed if that fails."""

    async def receive(self) -> bytes:
        """Wait for the next piece of the body, empty at the clean end; not reusable if that fails."""

    def close(self) -> None:
        """Close the socket at once. Idempotent."""


class PooledResponse:
    """The final response to one request: its head, and the content as it arrives.

    It owns the connection until it is closed or fails, and then never touches it again.
    """

    __slots__ = ("_connection", "_release", "headers", "reason", "status")

    def __init__(self, head: Head, connection: PooledConnection, release: Callable[[PooledConnection], None]) -> None:
        """Take over the connection that `head` was read from. `release` gets it back, once."""
        self.status = head.status
        self.reason = head.reason
        self.headers = head.headers
        self._connection: PooledConnection | None = connection
        self._release = release

    def __repr__(self) -> str:
        """Say the status and whether the response is still open."""
        state = "closed" if self._connection is None else "open"
        return f"<PooledResponse {self.status} {state}>"

    @property
    def ready(self) -> bool:
        """Would `receive` return without waiting?"""
        return self._connection is None or self._connection.is_ready

    @property
    def ended(self) -> bool:
        """After a piece was received: was it the last one, as far as is known without waiting?"""
        return self._connection is not None and self._connection.is_reusable

    async def receive(self) -> bytes:
        """Wait for the next piece of the body; empty at the clean end. A checkpoint only where it has to wait.

        Raises:
            UpstreamFailure: the body broke off, stalled or is malformed. The connection is closed by then.
            trio.ClosedResourceError: the response was closed, or has failed.
        """
        if self._connection is None:
            raise trio.ClosedResourceError("the response is closed")
        try:
            return await self._connection.receive()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the connection back if the exchange ended cleanly, else end it at once. Idempotent, never waits."""
        connection = self._connection
        if connection is not None:
            self._connection = None
            self._release(connection)
