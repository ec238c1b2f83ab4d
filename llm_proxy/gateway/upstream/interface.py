"""The seam between the data plane and its two ways to an upstream: direct, and through an outbound proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from attrs import define


class RequestBody(Protocol):
    """A request body that is too long, or too slow, to be held.

    `content_length` is its size in bytes, or None where it is not known: then it is sent chunked. It is iterated at
    most once.
    """

    @property
    def content_length(self) -> int | None:
        """Size in bytes, None where unknown."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over the pieces, of any size."""


@define
class Dispatch:
    """Tells the caller of `send` whether a byte of the request went out, even where `send` was cancelled.

    Pass a fresh one; `sent` turns true just before the first byte may leave this machine and stays so.
    """

    sent: bool = False


class UpstreamResponse(Protocol):
    """The head of a response, and its body as it arrives. Must be closed."""

    @property
    def status(self) -> int:
        """Status code of the final response."""

    @property
    def reason(self) -> bytes:
        """Reason phrase, possibly empty."""

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Header fields in order: names in lower case, values exact, hop-by-hop fields included."""

    @property
    def ready(self) -> bool:
        """Would `receive` return without waiting?"""

    @property
    def ended(self) -> bool:
        """After a piece was received: was it the last one, as far as is known without waiting?"""

    async def receive(self) -> bytes:
        """Wait for the next piece of the body; empty at the clean end.

        Raises:
            UpstreamFailure: the body broke off, stalled or is malformed. The connection is closed by then.
            trio.ClosedResourceError: the response was closed.
        """

    def close(self) -> None:
        """Give the connection back if the exchange ended cleanly, else end it at once. Idempotent, never waits."""


class Upstream(Protocol):
    """One origin, and the connections to it."""

    @property
    def idle(self) -> int:
        """Connections kept for the next request."""

    @property
    def in_use(self) -> int:
        """Exchanges under way, those still connecting included."""

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

        Args:
            method: the method, in its own case; not CONNECT.
            target: the request target in origin form, sent as it is.
            headers: fields to send; neither Host nor Content-Length nor Transfer-Encoding, which are set here.
            body: the whole body, a stream of it, or None.
            dispatch: learns whether a byte went out.

        Raises:
            UpstreamFailure: no final response head came.
            ValueError: the request cannot be written down as one HTTP/1.1 request.
            Exception: whatever iterating over `body` raises.
        """

    def close(self) -> None:
        """Drop all idle connections; those in use end with their exchanges. Never waits."""
