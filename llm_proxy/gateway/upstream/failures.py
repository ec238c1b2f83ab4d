"""Everything that can go wrong between the proxy and an upstream, as one family.

Each failure says whether a byte of the request may have reached the upstream: only where none has is it safe to send
the request again, or to take back that it was counted. The words name the upstream and the fault, never a header, a
target or a body.
"""

from __future__ import annotations

from typing import Literal


class UpstreamFailure(Exception):
    """The upstream gave no usable response, or not all of it.

    Attributes:
        sent: could any byte of the request have reached the upstream?
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        """Take the words for the log and whether the request may have left."""
        self.sent = sent
        super().__init__(message)


class ConnectFailed(UpstreamFailure):
    """No connection: the name, the route, the listener or the TLS handshake failed."""

    def __init__(self, message: str) -> None:
        """A request is never sent before its connection stands."""
        super().__init__(message, sent=False)


class ConnectTimeout(ConnectFailed):
    """Name resolution, TCP and TLS together took longer than the connect deadline."""


class HeaderTimeout(UpstreamFailure):
    """The request went out whole, and no final response head came in time."""


class IdleTimeout(UpstreamFailure):
    """No byte moved in either direction for too long while a body was under way.

    Attributes:
        waiting_for: whose silence it was: the upstream's, or that of the caller's own request body.
    """

    def __init__(self, message: str, *, sent: bool, waiting_for: Literal["upstream", "body"] = "upstream") -> None:
        """Take the words, whether the request may have left, and who was silent."""
        self.waiting_for = waiting_for
        super().__init__(message, sent=sent)


class Disconnected(UpstreamFailure):
    """The connection ended before a response, or in the middle of one."""


class MalformedResponse(UpstreamFailure):
    """What came back is not a response by RFC 9112, or one whose end cannot be trusted."""


class UnexpectedUpgrade(MalformedResponse):
    """The upstream switched protocols (101), which nobody asked it to (RFC 9110 §15.2.2)."""
