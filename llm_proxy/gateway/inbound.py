"""The client's side of one request: its head, its body as it arrives, and the disconnect.

One reader takes events from the ASGI `receive` channel: pieces of the body, and then the disconnect. A body is held
whole only if a rule has to read it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from hashlib import sha256
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import trio
from attrs import define, field

from llm_proxy.errors import BadRequest, Overloaded, ProxyError, RequestTimeout, RequestTooLarge
from llm_proxy.net.disconnect import EXTENSION, ClientDisconnected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from llm_proxy.errors import Shape
    from llm_proxy.gateway.providers.provider import Route

#: Bytes of a body that are read ahead of the upstream, so that a disconnect during an upload is noticed.
READ_AHEAD = 64 * 1024

#: Seconds that a provider has to end its body after the client has disconnected with a complete answer.
REST_TIMEOUT = 0.1
#: Seconds that a request waits for its body, and bytes that add one second: after `BODY_PATIENCE`, a body has to arrive
#: at 1 KiB/s on average.
BODY_PATIENCE = 10.0
BODY_RATE = 1024
#: Bytes of a body that are joined into one piece, so that it can be sent again on another connection. Held bodies up to
#: this size are bounded by the number of requests, longer ones by `HELD_LIMIT`.
JOINED = 1024 * 1024
#: Bytes of longer bodies that a process holds at once because a rule has to read them: two of the longest that
#: `MAX_REQUEST_SIZE` accepts by default, and a small part of a usual container's memory.
HELD_LIMIT = 256 * 1024 * 1024

#: Bytes of the beginning, and of the end, of a longer body that are kept while it passes.
ENDS = 64 * 1024

_READ = frozenset(
    {
        *(b"content-length", b"transfer-encoding", b"expect", b"upgrade", b"sec-websocket-key"),
        *(b"content-type", b"content-encoding", b"anthropic-version"),
    }
)


@define(eq=False)
class HeldBodies:
    """Memory used by all long bodies that are held because a rule has to read them.

    Attributes:
        size: bytes, including Python's overhead.
    """

    size: int = 0


@define(eq=False)
class _Ends:
    """The first and the last pieces of a body that has passed."""

    first: bytearray = field(factory=bytearray)
    last: list[bytes] = field(factory=list)
    size: int = 0

    def add(self, piece: bytes) -> None:
        if (room := ENDS - len(self.first)) > 0:
            self.first += piece[:room]
        self.last.append(piece)
        self.size += len(piece)
        while self.size - len(self.last[0]) >= ENDS:
            self.size -= len(self.last.pop(0))


async def _ignore(piece: bytes) -> None:
    """See nothing of a body that is only held."""


class Inbound:
    """One client request.

    Attributes:
        id: the request's id.
        route: where its path leads.
        method, path, query, headers: as they came; names of headers in lower case.
        client: the client's address, empty if it has none (a Unix socket).
        model: the model that the body asks for, if a rule had to read it.
        labels: those in its headers, or why they are not valid.
        not_forwarded: names of headers that are for the proxy alone.
        arrived: trio's clock at arrival.
        has_slot: whether it counts as running.
        admitted: whether the ledger has a reservation for it.
        answered: whether the client is about to have a complete answer: then a disconnect is no failure.
        gone: whether the client disconnected before that.
        left: whether it disconnected after that.
        rest: scope of reading the rest of the answer after that; it ends soon after a disconnect.
        received: bytes of the body so far.
        content_length: what the client declared; None for a chunked body.
        content: the headers with the type and the coding of the body.
        shape: the shape of error bodies that the client expects. Some paths without a provider's name, such as
            `/v1/models`, are in both APIs. Anthropic's API requires the header `anthropic-version` in every request, so
            its clients are known by it.
        has_body: whether the message is framed as having one.
        websocket: whether it is the handshake of a WebSocket (RFC 6455 §4.1).
        scope: what is cancelled when the client leaves, where the server does not do that by itself.
        notify: the server's own news of that, where it has any: takes a function that is called then, and says whether
            to cancel this task.
    """

    labels: Mapping[str, str] | BadRequest = MappingProxyType({})
    not_forwarded: frozenset[bytes] = frozenset()
    model = ""
    has_slot = False
    admitted = False
    answered = False
    gone = False
    left = False
    rest: trio.CancelScope | None = None
    received = 0
    expects_continue = False
    websocket = False
    scope: trio.CancelScope | None = None
    _seen_ends: tuple[bytes, bytes | None] | None = None
    _ended = False
    _ends: _Ends | None = None
    _held = 0
    _waited = 0.0
    _watched = False
    _ahead: float = READ_AHEAD
    _fault: ProxyError | None = None
    _charged = 0
    _held_bodies: HeldBodies | None = None
    # Made by the task that waits: most requests need neither.
    _news: trio.Event | None = None
    _room: trio.Event | None = None

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
        self.arrived = arrived
        self.content_length: int | None = None
        self.content: list[tuple[bytes, bytes]] = []
        self.shape: Shape = route.shape
        # HTTP/2 frames a body without any header that says so (RFC 9113 §8.1).
        self.has_body = not str(scope.get("http_version", "1.1")).startswith("1")
        extension = (scope.get("extensions") or {}).get(EXTENSION)
        self.notify: Callable[[Callable[[], bool]], None] | None = extension and extension["on_disconnect"]
        self._arrived: Callable[[], bool] | None = extension and extension.get("body_arrived")
        self._receive = receive
        self._max_size = max_size
        self._pieces: list[bytes] = []
        for name, value in self.headers:
            if name not in _READ:
                continue
            if name in (b"content-type", b"content-encoding"):
                self.content.append((name, value))
            elif name == b"anthropic-version":
                if route.provider is None:
                    self.shape = "anthropic"
            elif name == b"content-length":
                self.content_length = int(value)
                self.has_body = self.content_length > 0
            elif name == b"transfer-encoding":
                self.has_body = True
            elif name == b"expect":
                self.expects_continue = True
            elif self.method == "GET" if name == b"sec-websocket-key" else b"websocket" in value.lower():
                # A handshake is a GET. Reverse proxies take `Upgrade` out of it, and leave the key. Any other upgrade
                # is an offer that a server may ignore (RFC 9110 §7.8): Java's client and curl offer `h2c`.
                self.websocket = True
        if not self.has_body:
            self.content_length = 0

    def check_size(self) -> None:
        """Refuse a body that is declared to be too long, before it is read; raises `RequestTooLarge`."""
        if self.content_length is not None and self.content_length > self._max_size:
            raise self._too_large()

    async def begin(self) -> None:
        """Take the part of the body that came with the head, without waiting; often that is all of it.

        A client that expects `100 Continue` is not asked for its body yet.
        """
        if not self.has_body:
            self._ended = True
        elif self.expects_continue:
            pass
        elif self._arrived is None:
            with trio.CancelScope(deadline=-math.inf):
                await self._take()
        elif self._arrived():
            await self._take()

    async def first_piece(self) -> None:
        """Wait for the first bytes of the body; a client that expects `100 Continue` is not asked for it yet."""
        while not (self._ended or self._pieces or self.expects_continue):
            await self._wait()

    async def gather(self) -> None:
        """Wait until the body has arrived whole, or is too long to be joined."""
        if (self.content_length or 0) > JOINED:
            await self.first_piece()
            return
        while not self._ended and self._held <= JOINED:
            await self._wait()

    async def hold(self, held: HeldBodies, see: Callable[[bytes], Awaitable[None]] = _ignore) -> None:
        """Wait for the whole body and keep it, also while `watch` is reading; `see` is called with each piece.

        Raises:
            Overloaded: the held bodies take too much memory.
            RequestTimeout, RequestTooLarge: as for all bodies.
        """
        seen = charged = 0
        self._held_bodies = held
        while True:
            if self.received > JOINED:
                self._charge(held, self._pieces[charged:])
                charged = len(self._pieces)
            arrived = self._pieces[seen:]
            for piece in arrived:
                await see(piece)
            seen += len(arrived)
            if seen < len(self._pieces):
                continue
            if self._ended:
                return
            await self._wait_beside_watch() if self._watched else await self._wait()

    def _charge(self, held: HeldBodies, pieces: list[bytes]) -> None:
        size = sum(map(sys.getsizeof, pieces))
        if held.size + size > HELD_LIMIT:
            raise Overloaded("The memory for large request bodies is full. Try again later.")
        held.size += size
        self._charged += size

    def release(self, size: int | None = None) -> None:
        """Give back the memory that was charged for `size` bytes of the body, or for all of it."""
        if self._held_bodies is not None:
            given = self._charged if size is None else min(size, self._charged)
            self._charged -= given
            self._held_bodies.size -= given

    @property
    def pieces(self) -> Sequence[bytes]:
        """The body as far as it has arrived, and has not been passed on."""
        return self._pieces

    @property
    def ended(self) -> bool:
        """Whether the whole body has arrived."""
        return self._ended

    def complete(self) -> bytes | None:
        """The whole body, if it has arrived and is not too long to be joined.

        Raises:
            RequestTooLarge, RequestTimeout: it is too long, or came too slowly.
        """
        if self._fault is not None:
            raise self._fault
        if not self._ended or self._held > JOINED:
            return None
        self._pieces = [b"".join(self._pieces)]
        return self._pieces[0]

    def ends(self) -> tuple[bytes, bytes | None]:
        """The body as far as it has arrived: its first bytes, and its last ones, None if the first are all of it.

        There are no last bytes before the end. Call it after the body has passed: later calls have the same answer.
        """
        if self._seen_ends is None:
            self._seen_ends = self._find_ends()
        return self._seen_ends

    def _find_ends(self) -> tuple[bytes, bytes | None]:
        ends = self._ends
        if ends is None and self._ended and self._held <= ENDS:
            return b"".join(self._pieces), None
        ends = ends or _Ends()
        for piece in self._pieces:
            ends.add(piece)
        last = b"".join(ends.last)[-ENDS:] if self._ended else b""
        return bytes(ends.first), None if len(last) == self.received else last

    async def sha256(self) -> str:
        """The digest of the body in hexadecimal; the body must have ended."""
        digest = sha256()
        for piece in self._pieces:
            digest.update(piece)
            await trio.lowlevel.checkpoint()
        return digest.hexdigest()

    async def watch(self) -> None:
        """Read until the client disconnects, then cancel the request."""
        self._watched = True
        try:
            while not self._ended:
                if self._held > self._ahead:
                    self._room = trio.Event()
                    await self._room.wait()
                else:
                    await self._wait()
            event = await self._receive()
            while event["type"] != "http.disconnect":
                event = await self._receive()
        except ClientDisconnected:
            pass
        except ProxyError:
            # The iterator raises it too, and the client can still be answered.
            return
        self.leave()

    def leave(self) -> bool:
        """Note that the client has disconnected, and cancel the request; False if it is answered already."""
        # Servers report the end after an answer in the same way, some of them before the last `send` returns.
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
        """Yield the pieces as they arrive, while `watch` is reading.

        Raises:
            RequestTooLarge, RequestTimeout: the body is longer than the limit, or comes too slowly.
        """
        self._ends = _Ends()
        while True:
            while self._pieces:
                piece = self._pieces.pop(0)
                self._ends.add(piece)
                self._held -= len(piece)
                self.release(sys.getsizeof(piece))
                if self._room is not None:
                    self._room.set()
                yield piece
            if self._fault is not None:
                raise self._fault
            if self._ended:
                return
            self._news = trio.Event()
            await self._news.wait()

    async def _take(self) -> None:
        event = await self._receive()
        if event["type"] == "http.disconnect":
            self.gone = True
            raise ClientDisconnected
        piece: bytes = event.get("body", b"")
        self.received += len(piece)
        if piece:
            self._pieces.append(piece)
            self._held += len(piece)
        # The provider does not get the end of a body that is too large.
        if self.received > self._max_size:
            self._fault = self._too_large()
        else:
            self._ended = not event.get("more_body", False)
        if self._ended and not self.received:
            self.has_body = False
        self._notify()
        if self._fault is not None:
            raise self._fault

    async def _wait(self) -> None:
        """Take the next piece, unless the sum of all waits for this client is too long.

        Only time in which there was room for more counts, so a slow provider does not matter.
        """
        began = trio.current_time()
        allowed = max(BODY_PATIENCE, self.received / BODY_RATE)
        with trio.move_on_at(began + allowed - self._waited) as patience:
            await self._take()
        self._waited += trio.current_time() - began
        if patience.cancelled_caught:
            self._fault = RequestTimeout(
                f"The body of the request came too slowly: {self.received} bytes while the proxy waited for it for "
                f"{self._waited:.0f} s (allowed: {BODY_RATE} bytes per second after {BODY_PATIENCE:.0f} s)"
            )
            self._notify()
            raise self._fault

    async def _wait_beside_watch(self) -> None:
        """Wait for the next piece of a body that is held, while `watch` is reading."""
        self._ahead = math.inf
        if self._room is not None:
            self._room.set()
        if self._fault is None:
            self._news = trio.Event()
            await self._news.wait()
        if self._fault is not None:
            raise self._fault

    def _notify(self) -> None:
        if self._news is not None:
            self._news.set()

    def _too_large(self) -> RequestTooLarge:
        return RequestTooLarge(f"The request body is larger than the {self._max_size} bytes that this proxy accepts.")
