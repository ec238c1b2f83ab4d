"""A client that hides nothing: raw bytes over a trio stream, and responses as they came.

`exchange` is one request on a connection of its own; `Connection` is for everything that takes more care, such as
pipelining, half a request, reading slowly, or leaving early. Responses are read with h11, which the proxy's own parser
is not.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import h11
import trio
from attrs import define, field, frozen

Headers = Iterable[tuple[str, str]]

#: No step of a client may take longer, in seconds; a scenario that means to wait says so with a scope of its own.
DEADLINE = 30.0


@frozen
class Response:
    """What a client got.

    `complete` is False where the connection ended before the body did: what `h11` calls a violation of the framing.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes = field(repr=False)
    complete: bool = True

    def header(self, name: str) -> str | None:
        """The first header of that name, in whatever case."""
        return next((value for known, value in self.headers if known == name.lower()), None)

    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)


def encode(method: str, target: str, headers: Headers = (), body: bytes | None = None, host: str = "proxy") -> bytes:
    """A request with `Host` and, where it has a body, `Content-Length`; both are left out where `headers` have them."""
    given = list(headers)
    names = {name.lower() for name, _ in given}
    if "host" not in names:
        given.insert(0, ("Host", host))
    if body is not None and not names & {"content-length", "transfer-encoding"}:
        given.append(("Content-Length", str(len(body))))
    head = "".join(f"{name}: {value}\r\n" for name, value in given)
    return f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + (body or b"")


@define
class Connection:
    """One connection to a server. Use `connect` to make one."""

    stream: trio.abc.Stream
    socket: trio.SocketStream
    _parser: h11.Connection = field(factory=lambda: h11.Connection(h11.CLIENT), repr=False)

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        with trio.fail_after(DEADLINE):
            await self.stream.send_all(data)

    async def request(self, method: str, target: str, headers: Headers = (), body: bytes | None = None) -> None:
        """Send a whole request; read its answer with `response`, or `head` and `chunks`."""
        await self.send(encode(method, target, headers, body))

    async def response(self, method: str = "GET") -> Response:
        """Read one response to its end, or to the end of the connection. `method` is that of its request.

        Raises:
            ConnectionError: the connection ended before a head.
            h11.RemoteProtocolError: what came is no HTTP.
        """
        head = await self.head(method)
        body = bytearray()
        try:
            async for chunk in self.chunks():
                body += chunk
        except (ConnectionError, trio.BrokenResourceError, h11.RemoteProtocolError):
            return Response(head.status, head.headers, bytes(body), complete=False)
        return Response(head.status, head.headers, bytes(body))

    async def head(self, method: str = "GET") -> Response:
        """Read a response up to its body; interim responses (1xx) are skipped."""
        if self._parser.our_state is h11.DONE:
            self._parser.start_next_cycle()
        # The parser pairs responses with requests; ours went out as raw bytes.
        self._parser.send(h11.Request(method=method, target="/", headers=[("Host", "proxy")]))
        self._parser.send(h11.EndOfMessage())
        while True:
            event = self._parser.next_event()
            if event is h11.NEED_DATA:
                data = await self.receive()
                if not data:
                    raise ConnectionResetError("the connection ended before a response")
                self._parser.receive_data(data)
            elif isinstance(event, h11.Response):
                headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers)
                return Response(event.status_code, headers, b"")

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The body as it comes, one piece for each read."""
        while True:
            event = self._parser.next_event()
            if event is h11.NEED_DATA:
                self._parser.receive_data(await self.receive())
            elif isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return

    async def receive(self, limit: int = 65536) -> bytes:
        """Read raw bytes; nothing once the server has closed its side."""
        with trio.fail_after(DEADLINE):
            return bytes(await self.stream.receive_some(limit))

    async def receive_all(self) -> bytes:
        """Read raw bytes until the server closes or resets."""
        received = bytearray()
        try:
            while data := await self.receive():
                received += data
        except trio.BrokenResourceError:
            pass
        return bytes(received)

    async def finish(self) -> None:
        """Close our side only (FIN)."""
        await self.socket.send_eof()

    def reset(self) -> None:
        """Leave at once, with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.socket.close()

    async def close(self) -> None:
        """Leave at once, with FIN where everything was read."""
        await trio.aclose_forcefully(self.stream)


@asynccontextmanager
async def connect(
    url: str, tls: ssl.SSLContext | None = None, receive_buffer: int | None = None
) -> AsyncGenerator[Connection]:
    """Connect to the host and port of a URL, with TLS where it begins with https.

    Args:
        url: such as `http://127.0.0.1:8080`; the path is ignored.
        tls: the context for https; one that trusts the system's roots where None.
        receive_buffer: bytes that the kernel may hold for us (SO_RCVBUF), to be a client that soon stops taking.
    """
    parts = urlsplit(url)
    host, secure = parts.hostname or "127.0.0.1", parts.scheme == "https"
    with trio.fail_after(DEADLINE):
        transport = trio.socket.socket()
        if receive_buffer is not None:
            transport.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            await transport.connect((host, parts.port or (443 if secure else 80)))
        except BaseException:
            transport.close()
            raise
        plain = trio.SocketStream(transport)
        stream: trio.abc.Stream = plain
        if secure:
            encrypted = trio.SSLStream(plain, tls or ssl.create_default_context(), server_hostname=host)
            await encrypted.do_handshake()
            stream = encrypted
    connection = Connection(stream, plain)
    try:
        yield connection
    finally:
        await connection.close()


async def exchange(
    url: str,
    method: str,
    target: str,
    headers: Headers = (),
    body: bytes | None = None,
    tls: ssl.SSLContext | None = None,
) -> Response:
    """One request on a connection of its own; `Connection: close` is not added."""
    async with connect(url, tls) as connection:
        await connection.request(method, target, headers, body)
        return await connection.response(method)
