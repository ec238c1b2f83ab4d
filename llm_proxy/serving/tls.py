"""TLS on accepted connections: the context, and the handshake with its deadline."""

from __future__ import annotations

import ssl
from pathlib import Path

import trio

from llm_proxy.serving.traffic import Traffic
from llm_proxy.serving.transport import SocketTransport


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return a context for TLS 1.2 and later that offers HTTP/2 and HTTP/1.1 by ALPN (RFC 7301).

    Raises:
        OSError: a file cannot be read, or (as `ssl.SSLError`) does not hold what it should.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 9113 section 9.2
    context.set_alpn_protocols(["h2", "http/1.1"])
    context.load_cert_chain(certificate, key)
    return context


class Handshake:
    """A connection on which TLS is not yet established; see `traffic.Connection`."""

    busy = False

    def __init__(self, transport: SocketTransport, context: ssl.SSLContext, timeout: float) -> None:
        """Take over an accepted connection, for at most `timeout` seconds."""
        self.idle_since: float | None = trio.current_time()
        self._transport = transport
        self._context = context
        self._timeout = timeout

    def close_if_idle(self) -> None:
        """Close the connection."""
        self._transport.close()

    drain = cut = close_if_idle

    async def establish(self, traffic: Traffic) -> trio.SSLStream[SocketTransport] | None:
        """Return the encrypted stream; None when the client did not come to terms in time."""
        stream = trio.SSLStream(self._transport, self._context, server_side=True)
        with traffic.connection(self), trio.move_on_after(self._timeout):
            try:
                await stream.do_handshake()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return None
            return stream
        return None
