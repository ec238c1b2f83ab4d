"""Small servers with one function for each response."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from functools import partial

import trio
from attrs import define, field

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"

#: Answers one request on a connection; False closes the connection.
Answer = Callable[[trio.abc.Stream, int], Awaitable[bool]]


@define(eq=False)
class Server:
    """Counts what a server has received.

    Attributes:
        port: on 127.0.0.1.
        connections: number of accepted connections.
        requests: in order of arrival.
    """

    port: int = 0
    connections: int = 0
    requests: list[bytes] = field(factory=list)

    @property
    def url(self) -> str:
        """Its address for plain HTTP."""
        return f"http://127.0.0.1:{self.port}/"


async def start(nursery: trio.Nursery, answer: Answer, tls: ssl.SSLContext | None = None) -> Server:
    """Serve until the nursery is cancelled; `answer` is called with the number of the request, from 1."""
    server = Server()

    async def serve(plain: trio.SocketStream) -> None:
        server.connections += 1
        stream = plain if tls is None else trio.SSLStream(plain, tls, server_side=True, https_compatible=True)
        try:
            async with stream:
                while (request := await _request(stream)) is not None:
                    server.requests.append(request)
                    if not await answer(stream, len(server.requests)):
                        return
        except trio.BrokenResourceError:
            return

    listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
    server.port = listeners[0].socket.getsockname()[1]
    return server


async def _request(stream: trio.abc.Stream) -> bytes | None:
    data = b""
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some()
        if not more:
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].partition(b"\r")[0] or 0)
    while len(body) < length:
        more = await stream.receive_some()
        data += more
        body += more
    return data


def always(answer: bytes, *, stays: bool = True) -> Answer:
    """Answer all requests with the same bytes; the connection stays open if `stays`."""

    async def give(stream: trio.abc.Stream, number: int) -> bool:
        await stream.send_all(answer)
        return stays

    return give
