"""The client's side of one request: its head, its body as it arrives, and the news that it has gone.

One reader takes events off the ASGI `receive` channel: while the body is coming they go to whoever iterates over it,
afterwards the only event left is the disconnect. A body is never held whole unless somebody asks for that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from llm_proxy.errors import RequestTooLarge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from llm_proxy.proxy.faults import Shape
    from llm_proxy.proxy.providers import Route

#: The ASGI extension by which a server offers to tell when the client of a request leaves.
HANG_UP = "llm_proxy.hang_up"
#: Bytes of a body that are read ahead of the upstream, so that a client which leaves during an upload is noticed.
READ_AHEAD = 64 * 1024

#: Seconds that a provider has to end its body once a client has left that misses nothing.
REST_TIMEOUT = 0.1

_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"expect", b"upgrade", b"sec-websocket-key"})


class ClientGone(Exception):
    """The client closed its connection before its body was complete."""


class Inbound:
    """One client request.

    Attributes:
        id: the request's id.
        route: where its path leads.
        method, path, query, headers: as they came; names of headers in lower case.
        client: the client's address, empty if it has none (a Unix socket).
        model: the model that the body asks for, if a rule had to read it.
        arrived: trio's clock at arrival.
        admitted: whether the ledger has a reservation for it.
        answered: whether the client is about to have all that it waits for, so that leaving is no failure any more.
        gone: whether the client has left before that.
        left: whether it has left after that.
        rest: covers what is read from the provider after that; it ends soon after the client has left.
        received: bytes of the body so far.
        content_length: what the client declared; None for a chunked body.
        has_body: whether the message is framed as having one.
        websocket: whether it is the handshake of a WebSocket (RFC 6455 §4.1).
        scope: what is cancelled when the client leaves, where the server does not do that by itself.
        notify: the server's own news of that, where it has any: takes a function that is called then, and says whether
            to cancel this task.
    """

    def __init__(
        self,
        request_id: str,
        arrived: float,
        route: Route,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[Any]],
        max_size: int,
    ) -> None:
        """Read the framing from the headers; `max_size` bytes is the longest body that is accepted."""
        self.id = request_id
        self.route = route
        self.method: str = scope["method"]
        self.path: bytes = scope["raw_path"]
        self.query: bytes = scope["query_string"]
        self.headers: list[tuple[bytes, bytes]] = scope["headers"]
        self.client: str = (scope.get("client") or ("",))[0]
        self.model = ""
        self.arrived = arrived
        self.admitted = False
        self.answered = False
        self.gone = False
        self.left = False
        self.rest: trio.CancelScope | None = None
        self.received = 0
        self.content_length: int | None = None
        # HTTP/2 frames a body without any header that says so (RFC 9113 §8.1).
        self.has_body = not str(scope.get("http_version", "1.1")).startswith("1")
        self.expects_continue = False
        self.websocket = False
        self.scope: trio.CancelScope | None = None
        extension = (scope.get("extensions") or {}).get(HANG_UP)
        self.notify: Callable[[Callable[[], bool]], None] | None = extension and extension["notify"]
        self._receive = receive
        self._max_size = max_size
        self._ended = False
        self._pieces: list[bytes] = []
        self._held = 0
        self._news = trio.Event()
        self._room = trio.Event()
        for name, value in self.headers:
            if name not in _FRAMING:
                continue
            if name == b"content-length":
                self.content_length = int(value)
                self.has_body = self.content_length > 0
            elif name == b"transfer-encoding":
                self.has_body = True
            elif name == b"expect":
                self.expects_continue = True
            elif name == b"sec-websocket-key" or b"websocket" in value.lower():
                # Reverse proxies take `Upgrade` out of a request, and leave the rest of the handshake in it. Any other
                # upgrade is an offer that a server may ignore (RFC 9110 §7.8): Java's client and curl offer `h2c`.
                self.websocket = True
        if not self.has_body:
            self.content_length = 0

    def check_size(self) -> None:
        """Refuse a body that is declared to be too long, before it is read; raises `RequestTooLarge`."""
        if self.content_length is not None and self.content_length > self._max_size:
            raise self._too_large()

    async def begin(self) -> None:
        """Take the first piece of the body, which usually came with the head, and often is all of it.

        A client that expects `100 Continue` is not asked for its body before it is admitted.
        """
        if self.has_body and not self.expects_continue:
            await self._take()
            if self._ended and not self.received:
                self.has_body = False
        elif not self.has_body:
            self._ended = True

    async def whole(self) -> bytes:
        """Wait for the whole body and keep it, for rules that need to read it."""
        while not self._ended:
            await self._take()
        return b"".join(self._pieces)

    @property
    def shape(self) -> Shape:
        """Whose error bodies the client expects.

        Some paths without a provider's name, such as `/v1/models`, are in both APIs; a client of Anthropic's shows
        itself by `anthropic-version`, which that API wants with every request.
        """
        if self.route.provider is None and any(name == b"anthropic-version" for name, _ in self.headers):
            return "anthropic"
        return self.route.shape

    @property
    def ended(self) -> bool:
        """Whether all of the body is here."""
        return self._ended

    def complete(self) -> bytes | None:
        """The whole body, if it is here already; raises `RequestTooLarge` where it came to be too long meanwhile."""
        if self.received > self._max_size:
            raise self._too_large()
        return b"".join(self._pieces) if self._ended else None

    async def watch(self) -> None:
        """Read on until the client leaves, then cancel the request."""
        try:
            while not self._ended:
                if self._held > READ_AHEAD:
                    await self._room.wait()
                    self._room = trio.Event()
                else:
                    await self._take()
            event = await self._receive()
            while event["type"] != "http.disconnect":
                event = await self._receive()
        except ClientGone:
            pass
        except RequestTooLarge:
            # The upload learns of it from the iterator, and can still be answered.
            return
        self.leave()

    def leave(self) -> bool:
        """Take note that the client has left, and cancel the request; False where it is answered already."""
        # Servers tell of the end behind an answer in the same way, some of them before its last `send` returns.
        if self.answered:
            self.left = True
            if self.rest is not None:
                self.rest.deadline = trio.current_time() + REST_TIMEOUT
            return False
        self.gone = True
        if self.scope is not None:
            self.scope.cancel()
        return True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Hand on the pieces as they arrive, while `watch` is reading.

        Raises:
            RequestTooLarge: the body has grown beyond the limit.
        """
        while True:
            while self._pieces:
                piece = self._pieces.pop(0)
                self._held -= len(piece)
                self._room.set()
                yield piece
            if self.received > self._max_size:
                raise self._too_large()
            if self._ended:
                return
            await self._news.wait()
            self._news = trio.Event()

    async def _take(self) -> None:
        event = await self._receive()
        if event["type"] == "http.disconnect":
            self.gone = True
            raise ClientGone
        piece: bytes = event.get("body", b"")
        self.received += len(piece)
        if piece:
            self._pieces.append(piece)
            self._held += len(piece)
        self._ended = not event.get("more_body", False)
        self._news.set()
        if self.received > self._max_size:
            raise self._too_large()

    def _too_large(self) -> RequestTooLarge:
        return RequestTooLarge(f"The request body is larger than the {self._max_size} bytes that this proxy accepts.")
