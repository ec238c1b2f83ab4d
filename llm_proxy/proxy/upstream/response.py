"""A response that came directly over one of our connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_proxy.proxy.upstream.connection import Connection


class DirectResponse:
    """The final response to one request: its head, and the content as it arrives.

    It owns the connection until it is closed or fails, and then never touches it again.
    """

    __slots__ = ("_connection", "_release", "headers", "reason", "status")

    sent_any: ClassVar[bool] = True

    def __init__(self, connection: Connection, release: Callable[[Connection], None]) -> None:
        """Take over a connection whose parser has read a final head. `release` gets it back, once."""
        parser = connection.parser
        self.status = parser.status
        self.reason = parser.reason
        self.headers = parser.headers
        self._connection: Connection | None = connection
        self._release = release

    def __repr__(self) -> str:
        """Say the status and whether the response is still open."""
        state = "closed" if self._connection is None else "open"
        return f"<DirectResponse {self.status} {state}>"

    async def receive(self) -> bytes:
        """Wait for the next piece of the body; empty at the clean end. A checkpoint only where it has to wait.

        Raises:
            UpstreamFailure: the body broke off, stalled or is malformed. The connection is closed by then.
            trio.ClosedResourceError: the response was closed, or has failed.
        """
        connection = self._connection
        if connection is None:
            raise trio.ClosedResourceError("the response is closed")
        pieces = connection.parser.pieces
        if not pieces:
            if connection.parser.complete:
                return b""
            try:
                await connection.read_body()
            except BaseException:
                self.close()
                raise
            if not pieces:
                return b""
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return data

    def close(self) -> None:
        """Give the connection back if the exchange ended cleanly, else end it at once. Idempotent, never waits."""
        connection = self._connection
        if connection is not None:
            self._connection = None
            self._release(connection)
