"""TLS in front of a server whose certificates a test cannot choose: the handshake is the test's own.

MySQL's greeting passes through, and the wire speaks TLS with the server too, so that both sides agree on the packets'
numbers and on whether a password may be said aloud (MySQL documentation, "Connection Phase": the client asks for TLS
with a packet of 32 bytes, and continues inside). PostgreSQL's clients ask before anything else is said, so its server
need not know ("Message Flow", SSL Session Encryption: eight bytes, answered by one).
"""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from attrs import define

from tests.db.threaded_server import threaded_server

#: CLIENT_SSL is bit 11 of the capabilities: the fourth of their second byte.
_SSL_BIT = 0x08
_REQUEST_BYTES = 32
#: PostgreSQL's request: its bytes, and the number in the last four of them.
_SSL_REQUEST = (8, 80877103)


@define(eq=False)
class TlsWire:
    """Forwards connections to a MySQL server.

    Attributes:
        port: where it listens on 127.0.0.1.
        context: what is presented to clients from now on; with None, a server without TLS.
    """

    port: int
    _server: tuple[str, int]
    context: ssl.SSLContext | None = None

    def forward(self, client: socket.socket) -> None:
        """Forward one connection to its end."""
        with client, socket.create_connection(self._server) as server, suppress(OSError):
            # An OSError is a client that did not like the certificate, or has none, or has closed the connection.
            near, far = self._greet(client, server)
            with near, far:
                _shuttle(near, far)

    def _greet(self, client: socket.socket, server: socket.socket) -> tuple[socket.socket, socket.socket]:
        greeting = _packet(server)
        # Behind the header and the protocol's version: the server's, a thread, eight bytes of salt, and one of nothing.
        capabilities = greeting.index(0, 5) + 1 + 4 + 8 + 1
        offered = greeting[capabilities + 1]
        greeting[capabilities + 1] = offered & ~_SSL_BIT if self.context is None else offered | _SSL_BIT
        client.sendall(greeting)
        answer = _packet(client)
        server.sendall(answer)
        if self.context is None or len(answer) != 4 + _REQUEST_BYTES:
            return client, server
        unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
        return self.context.wrap_socket(client, server_side=True), unverified.wrap_socket(server)


@define(eq=False)
class PostgresWire(TlsWire):
    """Forwards connections to a PostgreSQL server, in plain."""

    def _greet(self, client: socket.socket, server: socket.socket) -> tuple[socket.socket, socket.socket]:
        if self.context is None:
            return client, server
        asked = _exactly(client, _SSL_REQUEST[0])
        if int.from_bytes(asked[4:]) != _SSL_REQUEST[1]:
            raise ConnectionError
        client.sendall(b"S")
        return self.context.wrap_socket(client, server_side=True), server


def _packet(source: socket.socket) -> bytearray:
    packet = _exactly(source, 4)
    return packet + _exactly(source, int.from_bytes(packet[:3], "little"))


def _exactly(source: socket.socket, size: int) -> bytearray:
    read = bytearray()
    while len(read) < size:
        data = source.recv(size - len(read))
        if not data:
            raise ConnectionError
        read += data
    return read


def _shuttle(near: socket.socket, far: socket.socket) -> None:
    """Forward both ways until one side ends. In one thread, because a TLS connection is not for two."""
    while True:
        buffered = [side for side in (near, far) if isinstance(side, ssl.SSLSocket) and side.pending()]
        for source in buffered or select.select([near, far], [], [])[0]:
            source.settimeout(0)
            try:
                data = source.recv(65536)
            except (ssl.SSLWantReadError, BlockingIOError):  # not a whole record, or none for us
                continue
            finally:
                source.settimeout(None)
            if not data:
                return
            (far if source is near else near).sendall(data)


@contextmanager
def tls_wire_to(host: str, port: int, kind: type[TlsWire] = TlsWire) -> Iterator[TlsWire]:
    """A wire on a port of its own; its users must have closed their connections at the end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        wire = kind(listener.getsockname()[1], (host, port))
        with threaded_server(listener, wire.forward):
            yield wire
