"""The network as httpcore sees it: trio streams that can be closed at once, with a witness.

h11, which httpcore reads HTTP/1.1 with, keeps bytes that come after a response and takes them for the next one. So
our own parser reads along on every stream: what it refuses is refused, and a connection is used again only
if it says so. Unlike httpcore's own backend this one sees a TLS stream that was cut off as broken, not as ended.
"""

from __future__ import annotations

import select
import ssl
from collections.abc import Iterable
from typing import Any

import httpcore
import trio

from llm_proxy.gateway.upstream.parser import ResponseParser
from llm_proxy.net.client_socket import describe_error, enable_keepalive, open_stream


class Network(httpcore.AsyncNetworkBackend):
    """The socket of one httpcore connection, and what is known of the bytes that came over it.

    Attributes:
        witness: reads along.
    """

    def __init__(self) -> None:
        """Connect to nothing yet."""
        self.witness = ResponseParser()
        self._head_only = False
        self._tcp: trio.SocketStream | None = None

    def expect(self, *, head_only: bool) -> None:
        """A request is about to be sent; `head_only` if its method is HEAD."""
        self._head_only = head_only
        self.witness.begin(bodiless=head_only)

    def saw(self, data: bytes) -> None:
        """Judge what came.

        Raises:
            UpstreamFailure: it is malformed, or has ended too early.
        """
        if data:
            self.witness.feed(data)
            self.witness.pieces.clear()
        else:
            self.witness.end()

    def encrypted(self) -> None:
        """TLS stands: what came before it was a proxy's."""
        self.witness.begin(bodiless=self._head_only)

    def fileno(self) -> int:
        """The descriptor of the socket; -1 before there is one, and once it is closed."""
        return -1 if self._tcp is None else self._tcp.socket.fileno()

    def is_quiet(self) -> bool:
        """Is the idle connection alive with nothing to read?"""
        if self.fileno() == -1:
            return False
        poll = select.poll()
        poll.register(self.fileno(), select.POLLRDHUP | select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Close the socket at once. Idempotent."""
        if self._tcp is not None:
            self._tcp.socket.close()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect; all arguments but the first two are ignored.

        Raises:
            httpcore.ConnectError: no address could be connected to.
        """
        try:
            self._tcp = await open_stream(host, port)
        except OSError as error:
            raise httpcore.ConnectError(describe_error(error)) from error
        enable_keepalive(self._tcp.socket)
        return _Stream(self, self._tcp)


class _Stream(httpcore.AsyncNetworkStream):
    """A trio stream in httpcore's words."""

    def __init__(self, network: Network, stream: trio.SocketStream | trio.SSLStream[Any]) -> None:
        self._network = network
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore's signature
        try:
            data = bytes(await self._stream.receive_some(max_bytes))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise httpcore.ReadError(_cause(error)) from error
        self._network.saw(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - httpcore's signature
        if not buffer:
            return
        try:
            await self._stream.send_all(buffer)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise httpcore.WriteError(_cause(error)) from error

    async def aclose(self) -> None:
        self._network.close()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
    ) -> httpcore.AsyncNetworkStream:
        stream: trio.SSLStream[Any] = trio.SSLStream(self._stream, ssl_context, server_hostname=server_hostname)
        try:
            await stream.do_handshake()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise httpcore.ConnectError(_cause(error)) from error
        self._network.encrypted()
        return _Stream(self._network, stream)


def _cause(error: Exception) -> str:
    cause = error.__cause__
    return describe_error(cause) if isinstance(cause, OSError) else "connection closed"
