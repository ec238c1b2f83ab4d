"""TLS on accepted connections: the context, and the handshake with its timeout."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NoReturn

import trio
from attrs import define, field

from llm_proxy.server.context import ConnectionTracker
from llm_proxy.server.transport import SocketTransport


class BadCertificate(Exception):
    """A certificate or key cannot be used; the message names the file and the reason."""


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return a context for TLS 1.2 and later that offers HTTP/2 and HTTP/1.1 by ALPN (RFC 7301).

    Raises BadCertificate if a file cannot be read, or does not contain a certificate or its key.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 9113 section 9.2
    context.set_alpn_protocols(["h2", "http/1.1"])

    def refuse() -> NoReturn:
        # OpenSSL would ask for the pass phrase on the terminal.
        raise BadCertificate(f"the key in {key} is encrypted; store it without a pass phrase")

    try:
        context.load_cert_chain(certificate, key, password=refuse)
    except ssl.SSLError as error:
        raise BadCertificate(_describe(error, certificate, key)) from error
    except OSError as error:
        raise BadCertificate(f"{certificate} or {key} cannot be read: {error.strerror}") from error
    return context


def _describe(error: ssl.SSLError, certificate: Path, key: Path) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"the key in {key} does not belong to the certificate in {certificate}"
    try:
        ssl.create_default_context(cafile=str(certificate))
    except ssl.SSLError:
        return f"{certificate} holds no certificate in PEM form"
    return f"{key} holds no private key in PEM form"


@define(eq=False)
class Handshake:
    """A connection before its TLS handshake is complete; see `context.ServerConnection`."""

    _transport: SocketTransport
    _context: ssl.SSLContext
    _timeout: float
    idle_since: float | None = field(factory=trio.current_time, init=False)
    busy: bool = field(default=False, init=False)

    def close_if_idle(self) -> None:
        self._transport.close()

    drain = cut = close_if_idle

    async def establish(self, connections: ConnectionTracker) -> trio.SSLStream[SocketTransport] | None:
        """Return the encrypted stream; None if the handshake fails or takes too long."""
        stream = trio.SSLStream(self._transport, self._context, server_side=True)
        with connections.track(self), trio.move_on_after(self._timeout):
            try:
                await stream.do_handshake()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return None
            return stream
        return None
