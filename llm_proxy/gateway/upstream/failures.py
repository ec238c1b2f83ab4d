"""Errors of the exchange with an upstream.

Each error says whether the upstream may have received a byte of the request. Only if not, the request can be sent again
or its count can be reverted. Messages name the upstream and the fault, never a header, a target or a body.
"""

from __future__ import annotations

from typing import Literal


class UpstreamFailure(Exception):
    """The upstream sent no usable response, or not all of it.

    Attributes:
        sent: the upstream may have received a byte of the request.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        self.sent = sent
        super().__init__(message)


class ConnectFailed(UpstreamFailure):
    """No connection: name resolution, TCP, the outbound proxy or the TLS handshake failed."""

    def __init__(self, message: str) -> None:
        super().__init__(message, sent=False)


class ConnectTimeout(ConnectFailed):
    """Connecting took longer than the `connect` timeout."""


class HeaderTimeout(UpstreamFailure):
    """The request was sent completely, and no final response head came in time."""


class ReadTimeout(UpstreamFailure):
    """No byte was sent or received for too long while a body was sent or received.

    Attributes:
        waiting_for: the silent side: the upstream, or the caller's request body.
    """

    def __init__(self, message: str, *, sent: bool, waiting_for: Literal["upstream", "body"] = "upstream") -> None:
        self.waiting_for = waiting_for
        super().__init__(message, sent=sent)


class Disconnected(UpstreamFailure):
    """The connection was closed before or during a response."""


class MalformedResponse(UpstreamFailure):
    """The response does not conform to RFC 9112, or its end is ambiguous."""


class UnexpectedUpgrade(MalformedResponse):
    """The upstream switched protocols (101) without a request to do so (RFC 9110 §15.2.2)."""
