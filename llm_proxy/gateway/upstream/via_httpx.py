"""Connections through an outbound proxy: httpcore, the transport under httpx, in a pool of ours.

Of httpx nothing is used that adds to a request or a response: no client, so no cookies, no redirects, no default
headers, no decoding, and nothing is read from the environment. httpcore's own pool is left out too: it walks all its
connections for every request, and loses slots when requests are cancelled.

A request's body is sent before its response is read; an upstream that answers early is heard when it stops reading.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self, cast

import httpcore
import trio
from attrs import define

from llm_proxy.gateway.upstream.failures import (
    ConnectFailed,
    ConnectTimeout,
    Disconnected,
    HeaderTimeout,
    IdleTimeout,
    MalformedResponse,
    UpstreamFailure,
)
from llm_proxy.gateway.upstream.interface import Dispatch
from llm_proxy.gateway.upstream.network import Network
from llm_proxy.gateway.upstream.request import BodyReader
from llm_proxy.net.tls import client_context

if TYPE_CHECKING:
    from llm_proxy.gateway.upstream.origin import Origin, Timeouts
    from llm_proxy.gateway.upstream.outbound import OutboundProxy
    from llm_proxy.gateway.upstream.request import Request


class HttpxConnector:
    """Makes connections to one origin through httpcore."""

    def __init__(
        self,
        origin: Origin,
        timeouts: Timeouts,
        *,
        proxy: OutboundProxy,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """Prepare what all connections share.

        Args:
            origin: where to.
            timeouts: how long it may take.
            proxy: the way there.
            ssl_context: for an `https` origin and an `https` proxy, instead of one for each that verifies against the
                system's roots.
        """
        self.origin = origin
        self.timeouts = timeouts
        self._proxy = proxy
        self._context = (ssl_context or client_context()) if origin.scheme == "https" else None
        self._proxy_context = (ssl_context or client_context()) if proxy.scheme == "https" else None

    async def connect(self) -> HttpxConnection:
        """Make a connection that connects with its first exchange."""
        network = Network()
        proxy = httpcore.Proxy(
            httpcore.URL(scheme=self._proxy.scheme, host=self._proxy.host, port=self._proxy.port, target=b"/"),
            auth=self._proxy.credentials,
            ssl_context=self._proxy_context,
        )
        factory = httpcore.AsyncConnectionPool(
            ssl_context=self._context, proxy=proxy, max_connections=None, network_backend=network
        )
        origin = httpcore.Origin(self.origin.scheme.encode(), self.origin.host.encode(), self.origin.port)
        return HttpxConnection(self, factory.create_connection(origin), network)

    def __str__(self) -> str:
        """The origin, and the way there."""
        return f"{self.origin} through {self._proxy}"


@define
class HttpxHead:
    """The head of a final response."""

    status: int
    reason: bytes
    headers: list[tuple[bytes, bytes]]


class HttpxConnection:
    """One httpcore connection, used for one exchange at a time.

    Attributes:
        best_before: trio time after which the idle connection is not used again.
    """

    def __init__(
        self, connector: HttpxConnector, connection: httpcore.AsyncConnectionInterface, network: Network
    ) -> None:
        """Take over a connection that may not be connected yet."""
        self.best_before = 0.0
        self._connector = connector
        self._timeouts = connector.timeouts
        self._connection = connection
        self._network = network
        self._connected = False
        self._scope = trio.CancelScope()
        self._dispatch = Dispatch()
        self._reader: BodyReader | None = None
        self._response: httpcore.Response | None = None
        self._pieces: AsyncIterator[bytes] | None = None
        self._complete = False
        self._answering = False

    @property
    def lifetime(self) -> int | None:
        """Seconds for which the server promises to keep the idle connection, None where it does not say."""
        return self._network.witness.lifetime

    @property
    def is_reusable(self) -> bool:
        """Has the exchange ended cleanly on both sides, with the connection fit for the next?"""
        idle = self._complete and self._connection.is_idle() and not self._connection.is_closed()
        return idle and self._network.witness.reusable

    @property
    def is_ready(self) -> bool:
        """Would `receive` return without waiting? It cannot be told."""
        return False

    def fileno(self) -> int:
        """The descriptor of the socket; -1 once it is closed."""
        return self._network.fileno()

    def is_quiet(self) -> bool:
        """Is the idle connection still there, with nothing to read on it?"""
        return self._network.is_quiet()

    def close(self) -> None:
        """Close the socket at once. Idempotent."""
        self._network.close()
        pieces, self._pieces = self._pieces, None
        if pieces is not None:
            with suppress(RuntimeError):  # outside of trio nothing can be cleaned up, and nothing needs to be
                trio.lowlevel.spawn_system_task(_dismiss, pieces)

    async def exchange(self, request: Request, dispatch: Dispatch) -> HttpxHead:
        """Send a request and wait for the head of its final response.

        Raises:
            UpstreamFailure: with `sent` false only if not a byte went out.
            Exception: whatever iterating over the request's body raises.
        """
        self._network.expect(head_only=request.method == b"HEAD")
        self._dispatch = dispatch
        self._reader = None
        self._complete = False
        self._answering = False
        try:
            with self._within(self._timeouts.idle if self._connected else self._timeouts.connect):
                response = await self._send(request)
        except BaseException:
            self.close()
            raise
        self._connected = True
        self._response = response
        self._pieces = aiter(cast("AsyncIterable[bytes]", response.stream))
        reason: bytes = response.extensions.get("reason_phrase", b"")
        headers = [(name.lower(), value.rstrip()) for name, value in response.headers]
        return HttpxHead(response.status, reason, headers)

    async def receive(self) -> bytes:
        """Wait for the next piece of the response's body; empty at its clean end.

        Raises:
            UpstreamFailure: the body broke off, stalled or is malformed.
        """
        if self._complete:
            return b""
        response, pieces = self._response, self._pieces
        if response is None or pieces is None:
            raise trio.ClosedResourceError("the response is closed")
        self._answering = False
        with self._within(self._timeouts.idle):
            async for piece in pieces:
                if piece:
                    return piece
            await response.aclose()
        self._complete = True
        self._pieces = None
        return b""

    async def _send(self, request: Request) -> httpcore.Response:
        origin = self._connector.origin
        headers = [(b"Host", origin.authority), *request.headers]
        body = request.body
        if body is not None or b"\r\nContent-Length: 0\r\n" in request.head:
            chunked = request.length is None and body is not None
            headers.append(
                (b"Transfer-Encoding", b"chunked") if chunked else (b"Content-Length", b"%d" % (request.length or 0))
            )
        url = httpcore.URL(
            scheme=origin.scheme.encode(), host=origin.host.encode(), port=origin.port, target=request.target
        )
        async with aclosing(BodyReader(_Once(body) if body is None or isinstance(body, bytes) else body)) as reader:
            self._reader = reader
            wanted = httpcore.Request(
                request.method,
                url,
                headers=headers,
                content=_Touching(reader, self._touch),
                extensions={"trace": self._trace},
            )
            return await self._connection.handle_async_request(wanted)

    def _touch(self) -> None:
        self._allow(self._timeouts.idle)

    def _allow(self, seconds: float) -> None:
        """Give what is being waited for `seconds` from now."""
        self._scope.deadline = trio.current_time() + seconds

    async def _trace(self, event: str, info: dict[str, Any]) -> None:
        """Follow the exchange: httpcore calls this before and after each step."""
        step = event.partition(".")[2]
        request = info.get("request")
        if request is None or request.method == b"CONNECT":
            return
        if step == "send_request_headers.started":
            self._dispatch.sent = True
            self._allow(self._timeouts.idle)
        elif step == "receive_response_headers.started":
            self._answering = True
            self._allow(self._timeouts.response_header)

    def _too_slow(self) -> UpstreamFailure:
        timeouts = self._timeouts
        if not self._dispatch.sent:
            return ConnectTimeout(f"no connection to {self._connector} within {timeouts.connect:g} s")
        if self._answering:
            return HeaderTimeout(f"the upstream did not answer within {timeouts.response_header:g} s", sent=True)
        if self._reader is not None and self._reader.pulling:
            return IdleTimeout(
                f"the client sent nothing of its request body for {timeouts.idle:g} s", sent=True, waiting_for="body"
            )
        return IdleTimeout(f"no byte went to or came from the upstream for {timeouts.idle:g} s", sent=True)

    @contextmanager
    def _within(self, seconds: float) -> Iterator[None]:
        """Allow `seconds` for a start; `_allow` moves the deadline."""
        with trio.CancelScope() as self._scope:
            self._allow(seconds)
            with self._translated():
                yield
        if self._scope.cancelled_caught:
            raise self._too_slow()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn httpcore's errors into ours. Those of h11 quote what they complain of: they stay out."""
        try:
            yield
        except (httpcore.ConnectError, httpcore.ProxyError) as error:
            raise ConnectFailed(f"cannot connect to {self._connector}: {error}") from error
        except httpcore.LocalProtocolError:
            raise ValueError("the request cannot be written down as HTTP") from None
        except (httpcore.NetworkError, httpcore.RemoteProtocolError, httpcore.ConnectionNotAvailable) as error:
            sent = self._dispatch.sent
            unreadable = isinstance(error, httpcore.RemoteProtocolError) and "disconnected" not in str(error)
            what = "what came back is unreadable" if unreadable else "the connection was lost"
            if not sent and not self._connected:
                raise ConnectFailed(f"cannot connect to {self._connector}: {what}") from None
            kind = MalformedResponse if unreadable else Disconnected
            raise kind(f"the exchange with the upstream failed: {what}", sent=sent) from None
        except UpstreamFailure as failure:
            if self._dispatch.sent or self._connected:
                raise
            raise ConnectFailed(f"cannot connect to {self._connector}: {failure}") from failure


class _Once:
    """A whole body, or none, in the form of a stream of at most one piece."""

    def __init__(self, body: bytes | None) -> None:
        self._left = body or b""
        self.content_length = len(self._left)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        body, self._left = self._left, b""
        return body


class _Touching:
    """Passes a body on, and tells of every piece."""

    def __init__(self, reader: BodyReader, touch: Callable[[], None]) -> None:
        self._reader = reader
        self._touch = touch

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        self._touch()
        piece = await anext(self._reader)
        self._touch()
        return piece


async def _dismiss(pieces: AsyncIterator[bytes]) -> None:
    """Let httpcore's generators, one in the other, come to their end: the socket is closed, so they meet an error.

    Closing the outer one would leave the inner one to the garbage collector.
    """
    with suppress(Exception):
        async for _ in pieces:
            pass
