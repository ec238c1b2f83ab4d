"""The address of an upstream, its timeouts, and connections to it, directly or through an outbound proxy.

Through a proxy, an https origin is reached by a tunnel (CONNECT, RFC 9110 section 9.3.6), and requests to an http
origin are sent to the proxy itself, with their target in absolute form (RFC 9112 section 3.2.2).
"""

from __future__ import annotations

import ssl
from functools import cached_property
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import trio
from attrs import field, frozen, validators

from llm_proxy.gateway.upstream.connection import Connection
from llm_proxy.gateway.upstream.failures import ConnectFailed, ConnectTimeout, MalformedResponse
from llm_proxy.gateway.upstream.parser import ResponseParser
from llm_proxy.net.client_socket import ClientSocket, connect, describe_error
from llm_proxy.net.timeouts import TimeoutWheel
from llm_proxy.net.tls import client_context

if TYPE_CHECKING:
    from llm_proxy.gateway.upstream.outbound_proxy import OutboundProxy

DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@frozen(slots=False)
class Origin:
    """Scheme, host and port of an upstream (RFC 9110 §4.3.1), from configuration alone.

    `host` is an ASCII name (IDNA-encoded if necessary) or an IP address without brackets.
    """

    scheme: str = field(validator=validators.in_(DEFAULT_PORTS))
    host: str = field(validator=validators.matches_re(r"[A-Za-z0-9._:%-]+"))
    port: int = field(validator=[validators.ge(1), validators.le(65535)])

    @cached_property
    def authority(self) -> bytes:
        """The value of `Host` (RFC 9110 §7.2): IPv6 addresses in brackets, without the scheme's default port."""
        return str(self).removesuffix(f":{DEFAULT_PORTS[self.scheme]}").encode("ascii")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@frozen
class Timeouts:
    """Timeouts in seconds; `math.inf` for none.

    `connect` covers name resolution, TCP and TLS together. `response_header` runs from the end of the request to the
    head of the final response; interim (1xx) responses do not restart it. `read` is the longest time without a byte in
    either direction while a body is sent or received.
    """

    connect: float = field(validator=validators.gt(0))
    response_header: float = field(validator=validators.gt(0))
    read: float = field(validator=validators.gt(0))


class Connector:
    """Opens connections; holds what they share: TLS contexts and timeouts.

    Attributes:
        target_prefix: what precedes the target of each request.
        headers: fields to add to each request.
    """

    def __init__(
        self, origin: Origin, timeouts: Timeouts, proxy: OutboundProxy | None, ssl_context: ssl.SSLContext | None
    ) -> None:
        self._origin = origin
        self._proxy = proxy
        self._seconds = timeouts.connect
        self._context = (ssl_context or client_context()) if origin.scheme == "https" else None
        self._proxy_context = (ssl_context or client_context()) if proxy and proxy.scheme == "https" else None
        self._header_timeout = TimeoutWheel(timeouts.response_header)
        self._read_timeout = TimeoutWheel(timeouts.read)
        forwarded = proxy is not None and self._context is None
        self.target_prefix = b"http://" + origin.authority if forwarded else b""
        self.headers = proxy.headers if proxy is not None and forwarded else []

    def __str__(self) -> str:
        return f"{self._origin} through {self._proxy}" if self._proxy else str(self._origin)

    async def connect(self) -> Connection:
        """Resolve the name, connect and do the TLS handshake; raises `ConnectFailed` (or `ConnectTimeout`)."""
        with trio.move_on_after(self._seconds):
            try:
                if self._proxy is None:
                    connected = await connect(self._origin.host, self._origin.port, self._context)
                else:
                    connected = await self._connect_through(self._proxy)
            except OSError as error:
                raise self._failure(describe_error(error)) from error
            return Connection(connected, self._header_timeout, self._read_timeout)
        raise ConnectTimeout(f"no connection to {self} within {self._seconds:g} s")

    def _failure(self, what: str) -> ConnectFailed:
        return ConnectFailed(f"cannot connect to {self}: {what}")

    async def _connect_through(self, proxy: OutboundProxy) -> ClientSocket:
        connected = await connect(proxy.host, proxy.port, self._proxy_context)
        if self._context is None:
            return connected
        try:
            await self._open_tunnel(connected, proxy)
        except BaseException:
            connected.close()
            raise
        return await connected.start_tls(self._context, self._origin.host)

    async def _open_tunnel(self, connected: ClientSocket, proxy: OutboundProxy) -> None:
        authority = str(self._origin).encode("ascii")
        fields = b"".join([b"%b: %b\r\n" % field for field in proxy.headers])
        await connected.send_all(b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (authority, authority, fields))
        parser = ResponseParser()
        parser.begin(bodiless=True)
        while not parser.head_complete:
            data = await connected.receive()
            if not data:
                raise self._failure("the proxy closed the connection")
            try:
                parser.feed(data)
            except MalformedResponse:
                raise self._failure("the response of the proxy is malformed") from None
        status = parser.status
        if not 200 <= status < 300:
            # The reason phrase comes from the proxy, and may repeat what it was sent. Use the standard one.
            known = status in HTTPStatus.__members__.values()
            raise self._failure(f"the proxy answered {status} {HTTPStatus(status).phrase if known else ''}".rstrip())
