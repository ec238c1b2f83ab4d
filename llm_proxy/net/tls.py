"""TLS towards servers: the context, and TLS inside of TLS."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any, Final

import certifi

#: Most bytes that are passed to TLS at once when the network is slower than this process: one record.
RECORD_SIZE: Final = 16384


def client_context(*, ca: Path | None = None, insecure: bool = False) -> ssl.SSLContext:
    """Return a context that verifies certificate and name with the system's roots, or certifi's if there are none.

    TLS 1.2 or later, and only HTTP/1.1 by ALPN. It takes about ten milliseconds: build it once per origin.

    `ca` is a PEM file of the only trusted authorities. `insecure` trusts any certificate. Raises OSError if the file
    cannot be read, or contains no certificates.
    """
    context = ssl.create_default_context(cafile=ca)
    if ca is None and not _has_system_roots(context):
        context.load_verify_locations(certifi.where())
    # With this option, reading never has to wait for writing, nor writing for reading.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _has_system_roots(context: ssl.SSLContext) -> bool:
    if context.cert_store_stats()["x509_ca"]:
        return True
    # A directory of roots is searched when a certificate is verified; it is not loaded before.
    paths = ssl.get_default_verify_paths()
    return any(Path(os.environ.get(paths.openssl_capath_env, paths.openssl_capath)).glob("*.0"))


class TlsInTls:
    """TLS over a socket that is TLS itself, for servers behind an `https://` outbound proxy.

    It behaves like a non-blocking `ssl.SSLSocket`. Python's own wraps a file descriptor, so it cannot wrap another one.
    """

    def __init__(self, outer: Any, context: ssl.SSLContext, server_hostname: str) -> None:
        """Take over `outer`, an `ssl.SSLSocket` or another object of this class; call `do_handshake` next."""
        self._outer = outer
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._inner = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_hostname)
        self._unsent = b""
        #: Bytes of the caller that are encrypted, but not sent to the end.
        self._accepted = 0
        self.fileno = outer.fileno
        self.close = outer.close
        self.getpeername = outer.getpeername

    def do_handshake(self) -> None:
        """Continue the handshake; as `SSLSocket.do_handshake`."""
        while True:
            try:
                self._inner.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
            else:
                self._flush()
                return

    def recv(self, size: int) -> bytes:
        """Return decrypted bytes, empty after a close_notify; as `SSLSocket.recv`."""
        while True:
            try:
                return self._inner.read(size)
            except ssl.SSLWantReadError:
                self._fill()

    def send(self, data: bytes | memoryview) -> int:
        """Encrypt and send up to one record; as `SSLSocket.send`.

        After `ssl.SSLWantWriteError`, call it again with the same bytes.
        """
        if not self._accepted:
            self._accepted = self._inner.write(data[:RECORD_SIZE])
        self._flush()
        sent, self._accepted = self._accepted, 0
        return sent

    def _fill(self) -> None:
        data = self._outer.recv(4 * RECORD_SIZE)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _flush(self) -> None:
        self._unsent += self._outgoing.read()
        while self._unsent:
            self._unsent = self._unsent[self._outer.send(self._unsent[:RECORD_SIZE]) :]
