"""One client connection: llhttp (httptools) over a non-blocking socket, without trio's socket layer in between.

The usual answer costs one wait, one recv and one send. Only an answer that takes time (a delay, a stream, a fault,
a held gate) gets a nursery with a watcher for disconnects.
"""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Awaitable, Callable

import httptools
import trio
from attrs import define, field, frozen

from benchmarks.upstream.control import PREFIX, control
from benchmarks.upstream.faults import FAULTS, UNKNOWN, Ending, Fault
from benchmarks.upstream.journal import Entry, Headers, Journal
from benchmarks.upstream.rendering import Rendered, Renderer

#: Draws one delay, in seconds.
Delay = Callable[[random.Random], float]

_READ = 65536
_BACKLOG = 4096
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_RESET = struct.pack("ii", 1, 0)


@define
class Behaviour:
    """What holds for all requests.

    Attributes:
        renderer: writes the replies.
        journal: remembers the requests.
        latency: the delay before the head, unless a request directs its own.
        gap: seconds between the pieces of a stream, unless a request directs its own.
        fault: the fault that every request gets.
        source: of random numbers.
    """

    renderer: Renderer
    journal: Journal
    latency: Delay | None = None
    gap: float = 0.0
    fault: Fault | None = None
    source: random.Random = field(factory=lambda: random.Random(1))


@frozen
class _Request:
    method: str
    target: bytes
    headers: Headers
    body: bytes
    keep_alive: bool


class _Closed(Exception):
    """The connection is over: by the client, by a fault, or by the script."""


class Connection:
    """Serves one socket until either side is done with it; `run` closes it."""

    def __init__(self, sock: socket.socket, number: int, behaviour: Behaviour) -> None:
        """Take a connected, non-blocking socket; `number` identifies it in the journal."""
        self._sock = sock
        self._number = number
        self._behaviour = behaviour
        self._journal = behaviour.journal
        self._parser = httptools.HttpRequestParser(self)
        self._requests: list[_Request] = []
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._expects = False
        self._within = False
        self._is_control = False

    # Called by the parser.

    def on_message_begin(self) -> None:
        """Forget the previous request."""
        self._target = b""
        self._headers = []
        self._body = []
        self._within = True

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        name = name.lower()
        self._headers.append((name, value))
        if name == b"expect":
            self._expects = True

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Put the request in line to be answered."""
        parser = self._parser
        method = parser.get_method().decode("ascii")
        body = b"".join(self._body)
        self._requests.append(_Request(method, self._target, tuple(self._headers), body, parser.should_keep_alive()))
        self._within = False

    # The connection's life.

    async def run(self) -> None:
        """Read and answer requests until the connection is over."""
        self._journal.counts.connections_accepted += 1
        self._journal.counts.connections_open += 1
        try:
            while True:
                await trio.lowlevel.wait_readable(self._sock)
                self._feed()
                if self._expects and self._within:
                    await self._send(_CONTINUE)
                self._expects = False
                while self._requests:
                    request = self._requests.pop(0)
                    await self._handle(request)
                    if not request.keep_alive:
                        return
        except (_Closed, OSError):
            return
        finally:
            if not self._is_control:
                self._journal.counts.connections_open -= 1
            self._sock.close()

    def _feed(self) -> None:
        try:
            data = self._sock.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            if self._within:
                self._journal.counts.broken += 1
            raise _Closed
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._journal.counts.broken += 1
            raise _Closed from None

    async def _send(self, data: bytes) -> None:
        sock = self._sock
        try:
            sent = sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent == len(data):
            return
        view = memoryview(data)[sent:]
        while view:
            await trio.lowlevel.wait_writable(sock)
            try:
                view = view[sock.send(view) :]
            except BlockingIOError:
                continue

    async def _handle(self, request: _Request) -> None:
        if request.target.startswith(PREFIX):
            if not self._is_control:
                self._is_control = True
                self._journal.counts.connections_accepted -= 1
                self._journal.counts.connections_open -= 1
            await self._send(await control(self._journal, request.method, request.target))
            return
        behaviour = self._behaviour
        journal = self._journal
        entry = journal.begin(self._number, request.method, request.target, request.headers, request.body)
        status: int | None = None
        complete = False
        try:
            fault = self._fault(request)
            rendered = behaviour.renderer.render(request.method, request.target, request.headers, request.body)
            delay = rendered.directions.delay
            if not delay and behaviour.latency is not None:
                delay = behaviour.latency(behaviour.source)
            if fault is None and not delay and rendered.simple and journal.held is None:
                await self._send(rendered.whole)
                status = rendered.status
            elif fault is not None:
                await self._watched(entry, lambda: self._misbehave(fault))
            else:
                status = rendered.status
                await self._watched(entry, lambda: self._perform(rendered, delay))
            complete = True
        except OSError:
            if entry.closed_early_at is None:
                journal.disconnected(entry)
            raise _Closed from None
        finally:
            journal.end(entry, status, complete=complete)

    def _fault(self, request: _Request) -> Fault | None:
        for name, value in request.headers:
            if name == b"x-upstream-fault":
                return FAULTS.get(value.decode("latin-1"), UNKNOWN)
        return self._behaviour.fault

    async def _watched(self, entry: Entry, answer: Callable[[], Awaitable[None]]) -> None:
        """Answer, and cancel the answer if the client disconnects; raises _Closed and OSError."""
        left = False
        failure: OSError | _Closed | None = None

        async def watch() -> None:
            nonlocal left
            if await self._client_disconnects():
                left = True
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            try:
                if (gate := self._journal.held) is not None:
                    await gate.wait()
                await answer()
            except (OSError, _Closed) as error:
                failure = error
            nursery.cancel_scope.cancel()
        if left:
            self._journal.disconnected(entry)
            raise _Closed
        if failure is not None:
            raise failure

    async def _client_disconnects(self) -> bool:
        """Return True once the client has closed or reset; False when it sends more, which ends the watch."""
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            try:
                return not self._sock.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                continue
            except OSError:
                return True

    async def _perform(self, rendered: Rendered, delay: float) -> None:
        """Send a reply as directed."""
        directions = rendered.directions
        if delay:
            await trio.sleep(delay)
        if directions.abort == 0:
            raise _Closed
        if rendered.simple or (not rendered.streamed and directions.abort is None):
            await self._send(rendered.whole)
            return
        await self._send(rendered.head)
        gap = self._behaviour.gap if directions.gap is None else directions.gap
        for number, piece in enumerate(rendered.pieces):
            if number == directions.abort:
                raise _Closed
            await trio.sleep(gap if number else 0)
            await self._send(piece)
        if directions.abort is not None:
            raise _Closed

    async def _misbehave(self, fault: Fault) -> None:
        for step in fault.steps:
            if isinstance(step, bytes):
                await self._send(step)
            else:
                await trio.sleep(step)
        if fault.ending is Ending.HANG:
            await trio.sleep_forever()
        if fault.ending is Ending.RESET:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        if fault.ending is not Ending.KEEP:
            raise _Closed


def listen(host: str, port: int) -> socket.socket:
    """Return a non-blocking listening socket; port 0 picks a free one."""
    listener = socket.create_server((host, port), backlog=_BACKLOG)
    listener.settimeout(0)
    return listener


async def serve(listener: socket.socket, behaviour: Behaviour, announce: Callable[[str, int], None]) -> None:
    """Accept and serve connections until cancelled; `announce` is called with the address once that has begun."""
    host, port = listener.getsockname()[:2]
    number = 0
    async with trio.open_nursery() as nursery:
        announce(host, port)
        while True:
            await trio.lowlevel.wait_readable(listener)
            while True:
                try:
                    sock, _ = listener.accept()
                except BlockingIOError:
                    break
                except ConnectionError:
                    continue
                sock.settimeout(0)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                number += 1
                nursery.start_soon(Connection(sock, number, behaviour).run)
