from __future__ import annotations

import datetime as dt
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from attrs import Factory, define
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from llm_proxy.server.asgi import ASGIApp
from llm_proxy.server.context import ServerConfig, ServerContext
from llm_proxy.server.http1.connection import Http1Connection
from llm_proxy.server.transport import SocketTransport
from tests.server.answers import Answer, read_answers
from tests.server.running import Running, run_server


@define
class Peer:
    """The client's end of a connection that the server serves in this process.

    Attributes:
        socket: the client's socket, non-blocking.
        got: bytes that the server has sent so far.
        closed: the server has closed the connection; `reset` if with a reset.
        reports: the exceptions that the server has reported.
    """

    socket: socket.socket
    connection: Http1Connection
    reports: list[BaseException] = Factory(list)
    got: bytes = b""
    closed: bool = False
    reset: bool = False

    async def settle(self) -> bytes:
        """Run the server until it waits for time or for the client; return everything it has sent."""
        await trio.testing.wait_all_tasks_blocked()
        while not self.closed:
            try:
                data = self.socket.recv(65536)
            except BlockingIOError:
                break
            except ConnectionResetError:
                self.closed = self.reset = True
                break
            self.closed = not data
            self.got += data
            await trio.testing.wait_all_tasks_blocked()
        return self.got

    async def send(self, data: bytes, *, bytewise: bool = False) -> bytes:
        """Send in one piece or byte by byte, each after the server has handled the previous one.

        Long data is sent in small pieces instead.
        """
        step = len(data) if not bytewise else 1 if len(data) < LONG else 97
        for piece in [data[i : i + step] for i in range(0, len(data), step or 1)]:
            try:
                self.socket.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                break
            await trio.testing.wait_all_tasks_blocked()
        return await self.settle()

    def answers(self, *methods: str) -> list[Answer]:
        return read_answers(self.got, methods)


LONG = 5000
Connect = Callable[..., Peer]


@pytest.fixture
async def connect(nursery: trio.Nursery) -> AsyncIterator[Connect]:
    """Connect to an application with a socket pair; keywords are fields of `ServerConfig`, and `tcp=True`."""
    ends: list[tuple[SocketTransport, socket.socket]] = []

    def make(app: ASGIApp, *, tcp: bool = False, **fields: Any) -> Peer:
        ours, theirs = tcp_pair() if tcp else socket.socketpair()
        ours.settimeout(0)
        reports: list[BaseException] = []
        context = ServerContext(app, ServerConfig(**{"report": reports.append, **fields}), {})
        transport = SocketTransport(theirs, context.config.write_timeout)
        peer = Peer(ours, Http1Connection(context, transport, transport), reports)
        ends.append((transport, ours))

        async def run() -> None:
            with context.connections.track(peer.connection):
                await peer.connection.run()

        nursery.start_soon(run)
        return peer

    yield make
    for server_end, client_end in ends:
        server_end.close()
        client_end.close()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection on loopback, with small buffers."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(listener.getsockname())
        return client, listener.accept()[0]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate of `localhost`, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
def trust(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    """A client's context that trusts `certificate`."""
    return ssl.create_default_context(cafile=certificate[0])


ServeTls = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def serve_tls(certificate: tuple[Path, Path]) -> ServeTls:
    """Serve an application over TLS; keywords are fields of `ServerConfig`."""

    def make(app: ASGIApp, **fields: Any) -> AbstractAsyncContextManager[Running]:
        return run_server(app, tls_cert=certificate[0], tls_key=certificate[1], **fields)

    return make
