"""HTTP/2 connections (RFC 9113), which TLS clients choose by ALPN.

Framing, header compression and outgoing flow control are Hypercorn's. Only this module uses its internals, so the
version of Hypercorn is pinned exactly. The changes to them, and the reasons:

- Streams run in `Http2Stream` instead of Hypercorn's ASGI code, so that `send` raises after a disconnect, invalid
  responses are reset and not silently dropped, and each stream has its timeouts.
- The reader of a connection never waits for an application: incoming data goes to its stream, within its window.
- Requests that make Hypercorn raise, and CONNECT with its WebSockets, are reset before they reach it.
- The priorities of clients are ignored (RFC 9113 section 5.3.2): a thousand of them would overflow Hypercorn's tree.
- An application waits for a client that does not read. Hypercorn's lets it go on whenever little could be sent.
- Any other exception ends only this connection: `run` raises it, and the server reports it.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol import h2 as protocol
from hypercorn.protocol.h2 import H2Protocol, StreamBuffer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from priority.priority import MissingStreamError

from llm_proxy.net.disconnect import ClientDisconnected
from llm_proxy.server.asgi import VERSIONS, Scope, report_each
from llm_proxy.server.context import ServerContext
from llm_proxy.server.http1.response import TOKEN
from llm_proxy.server.http2.stream import Http2Stream, check_request
from llm_proxy.server.listener import address_of
from llm_proxy.server.transport import RECEIVE_SIZE, SocketTransport

MAX_STREAMS: Final = 100
RESETS_ALLOWED: Final = 200
"""Requests that a client may begin and reset before the connection counts as an attack (CVE-2023-44487)."""
BUFFERED_LIMIT: Final = 512 * 1024
"""Octets of request bodies that all streams of one connection together may keep in memory."""
_WINDOW_STEP: Final = 16 * 1024
"""Octets of the connection's own window that are returned to the client at once."""
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME_HEADER: Final = 9
_MAX_FRAME: Final = 16 * 1024
"""Octets of a frame without another setting (RFC 9113 section 6.5.2)."""


class FrameLengths:
    """Checks the lengths in the headers of frames, because h2 checks a frame only after it has stored all of it."""

    def __init__(self) -> None:
        self._skip = len(_PREFACE)
        self._header = b""

    def allow(self, data: bytes | bytearray) -> bool:
        """Check received bytes; False if a frame is longer than allowed (RFC 9113 section 4.2)."""
        position = 0
        while position < len(data):
            if self._skip:
                step = min(self._skip, len(data) - position)
                self._skip -= step
            else:
                step = _FRAME_HEADER - len(self._header)
                self._header += data[position : position + step]
                if len(self._header) == _FRAME_HEADER:
                    self._skip = int.from_bytes(self._header[:3])
                    self._header = b""
                    if self._skip > _MAX_FRAME:
                        return False
            position += step
        return True


class _Buffer(StreamBuffer):
    """What a stream has not sent yet; `push` waits while there is more than two frames."""

    async def pop(self, max_length: int) -> bytes:
        data = bytes(self.buffer[:max_length])
        del self.buffer[:max_length]
        if len(self.buffer) < protocol.BUFFER_LOW_WATER:
            await self._paused.set()
        if not self.buffer:
            await self._is_empty.set()
        return data


protocol.StreamBuffer = _Buffer  # type: ignore[misc]  # what H2Protocol makes for each stream


class Http2Connection:
    """Serves the streams of one connection, each in a task of its own; see `context.ServerConnection`."""

    def __init__(
        self, context: ServerContext, transport: SocketTransport, stream: trio.SSLStream[SocketTransport]
    ) -> None:
        self.context = context
        self.idle_since: float | None = trio.current_time()
        self.streams: dict[int, Http2Stream] = {}
        self.opening = 0
        self.transport = transport
        self._stream = stream
        self._running = 0
        self._idle = trio.CancelScope()
        self._write_lock = trio.Lock()
        self._closing = False
        self._goaway_due = False
        self._nursery: trio.Nursery | None = None
        self._protocol = Http2Protocol(self)

    @property
    def busy(self) -> bool:
        """Whether a request is running, or GOAWAY is not sent yet."""
        return self._running > 0 or self._goaway_due

    def close_if_idle(self) -> None:
        """Send GOAWAY and close, unless a request is running."""
        if not self._running and not self._closing:
            self._goaway_due = True
            self._idle.cancel()

    drain = close_if_idle
    """GOAWAY is not sent earlier: clients that use the h2 library, such as httpx, abort running responses when they
    receive it. Until then new requests are served."""

    def cut(self) -> None:
        self.transport.close()

    async def run(self) -> None:
        """Serve until either side ends the connection; it is closed afterwards."""
        async with trio.open_nursery() as self._nursery:
            try:
                with self._idle:
                    await self._read()
                await self._close()
            finally:
                self._end()
                self.transport.close()
                await self._protocol.handle(Closed())

    async def _close(self) -> None:
        """Inform the streams, whose applications may still run, and the client that the connection ends."""
        await self._protocol.handle(Closed())
        protocol_error = self._closing
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            if self._idle.cancelled_caught:
                await self._protocol.go_away(h2.errors.ErrorCodes.NO_ERROR)
            self._end()
            if protocol_error:
                await self.transport.linger()
            else:
                await self._stream.aclose()

    def _end(self) -> None:
        self.idle_since = None
        self._closing = True
        self._goaway_due = False
        self.context.connections.notify()

    async def _read(self) -> None:
        self._idle.deadline = trio.current_time() + self.context.config.keep_alive_timeout
        await self._protocol.initiate()
        frames = FrameLengths()
        while not self._closing:
            try:
                data = await self._stream.receive_some(RECEIVE_SIZE)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            if not data:
                return
            if not frames.allow(data):
                await self._protocol.go_away(h2.errors.ErrorCodes.FRAME_SIZE_ERROR)
                self._closing = True
                return
            await self._protocol.handle(RawData(bytes(data)))

    async def write(self, event: Event) -> None:
        """Send data, or end the connection, as the protocol demands.

        Writing cannot be cancelled, because half a frame would break the connection; it has the transport's timeout.
        """
        if isinstance(event, RawData):
            with trio.CancelScope(shield=True):
                async with self._write_lock:
                    try:
                        await self._stream.send_all(event.data)
                    except (trio.BrokenResourceError, trio.ClosedResourceError):
                        self.transport.close()
        elif isinstance(event, Closed):
            self._closing = True

    # The interface of Hypercorn's task group.

    def spawn(self, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        assert self._nursery is not None, "spawned while running"  # noqa: S101 - narrows the type
        self._nursery.start_soon(function, *args)

    async def spawn_app(self, _app: Any, _config: Config, scope: Any, _send: Any) -> Callable[[Any], Awaitable[None]]:
        """Run the application for the new stream; return the function that receives its events."""
        stream = Http2Stream(self._protocol, self.opening, scope, self.context.config)
        self.streams[self.opening] = stream
        self._running += 1
        self.idle_since = None
        self._idle.deadline = math.inf
        self.spawn(self._respond, self.opening, stream, scope)

        async def put(message: Any) -> None:
            if message["type"] == "http.disconnect":
                stream.closed()
            elif not message["more_body"]:
                stream.request_ended()

        return put

    async def _respond(self, stream_id: int, stream: Http2Stream, scope: Scope) -> None:
        try:
            try:
                scope.update(asgi=VERSIONS, extensions={})
                error = check_request(scope)
                if error is None:
                    await self.context.app(scope, stream.receive, stream.send)
                else:
                    await stream.send_error(error)
            except* ClientDisconnected:
                pass
            except* Exception as errors:  # noqa: BLE001 - an exception of the application ends only its own request
                report_each(errors, self.context.config.report)
            with contextlib.suppress(ClientDisconnected):
                await stream.finish()
        finally:
            del self.streams[stream_id]
            self._protocol.buffered -= stream.unreturned
            self._running -= 1
            if not self._running and not self._closing:
                self.idle_since = trio.current_time()
                self._idle.deadline = self.idle_since + self.context.config.keep_alive_timeout
                if self.context.connections.draining:
                    self.close_if_idle()
            self.context.connections.notify()


class Http2Protocol(H2Protocol):
    """Hypercorn's protocol with the changes of the module docstring."""

    def __init__(self, owner: Http2Connection) -> None:
        config = Config()
        config.accesslog = config.errorlog = None
        config.include_date_header = config.include_server_header = False
        config.keep_alive_max_requests = sys.maxsize
        config.h2_max_concurrent_streams = MAX_STREAMS
        config.h2_max_header_list_size = owner.context.config.max_header_size
        super().__init__(
            owner.context.app,  # type: ignore[arg-type]  # never called: `spawn_app` takes ours
            config,
            WorkerContext(None),
            owner,  # type: ignore[arg-type]  # as much of a task group as the protocol needs
            ConnectionState(owner.context.state),
            True,  # noqa: FBT003 - Hypercorn's signature
            address_of(owner.transport.socket, peer=True),  # type: ignore[arg-type]  # a Unix socket has no port
            address_of(owner.transport.socket),  # type: ignore[arg-type]  # the same
            owner.write,
        )
        self._owner = owner
        self._unreturned = 0  # octets of the connection's window that the client has used and not got back
        self.buffered = 0  # octets that wait for their applications
        self._resets = 0
        self._unsent: dict[int, trio.Event] = {}
        self.connection.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
                h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: config.h2_max_header_list_size,
            },
        )

    async def forward(self, stream_id: int, message: Any) -> None:
        """Send a message of the application; waits for flow control."""
        stream = self.streams.get(stream_id)
        if stream is not None:
            await stream.app_send(message)

    async def send_continue(self, stream_id: int) -> None:
        """Send the interim response 100 (RFC 9110 section 15.2.1)."""
        with contextlib.suppress(h2.exceptions.ProtocolError, KeyError):
            self.connection.send_headers(stream_id, [(b":status", b"100")])
        await self._flush()

    async def consumed(self, stream_id: int, octets: int, *, more: bool) -> None:
        """Return window to the client for octets that the application has taken."""
        self.buffered -= octets
        if more:
            with contextlib.suppress(h2.exceptions.ProtocolError, KeyError):
                self.connection.increment_flow_control_window(octets, stream_id)
        await self._return_window()

    async def _return_window(self) -> None:
        """Return the connection's own window early, while there is room, so that no stream waits for another."""
        if self._unreturned >= _WINDOW_STEP and self.buffered <= BUFFERED_LIMIT:
            with contextlib.suppress(h2.exceptions.ProtocolError):
                self.connection.increment_flow_control_window(self._unreturned)
            self._unreturned = 0
        await self._flush()

    async def reset(self, stream_id: int, reason: str) -> None:
        """End a stream with an error code of RFC 9113 section 7."""
        with contextlib.suppress(h2.exceptions.ProtocolError, KeyError):
            self.connection.reset_stream(stream_id, h2.errors.ErrorCodes[reason])
        await self._flush()
        if stream_id in self.stream_buffers:
            # The sending task finds the stream closed, and deletes its buffer.
            await self.stream_buffers[stream_id].close()
            with contextlib.suppress(MissingStreamError):
                self.priority.unblock(stream_id)
        await self._close_stream(stream_id)
        await self.has_data.set()

    async def go_away(self, code: h2.errors.ErrorCodes) -> None:
        """Send GOAWAY (RFC 9113 section 6.8). For h2 this ends the connection."""
        self.connection.close_connection(code)
        await self._flush()

    async def sent(self, stream_id: int) -> None:
        """Wait until the buffer of a stream is deleted, which is after its end was written."""
        while stream_id in self.stream_buffers and not self.closed:
            self._unsent[stream_id] = trio.Event()
            await self._unsent[stream_id].wait()

    async def handle(self, event: Event) -> None:
        await super().handle(event)
        if isinstance(event, Closed):
            for unsent in self._unsent.values():
                unsent.set()

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        for event in events:
            if isinstance(event, h2.events.DataReceived):
                await self._data_received(event)
            elif isinstance(event, h2.events.StreamReset) and self._is_flood(event):
                await self.go_away(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
                await self.send(Closed())
                return
            elif not isinstance(event, h2.events.PriorityUpdated):
                await super()._handle_events([event])
        # h2 answers some input itself without an event, such as data on a closed stream: send that too.
        await self._flush()

    def _is_flood(self, event: h2.events.StreamReset) -> bool:
        if event.stream_id in self.streams:
            self._resets += 1
        return self._resets > max(RESETS_ALLOWED, self.keep_alive_requests // 2)

    async def _data_received(self, event: h2.events.DataReceived) -> None:
        octets = event.flow_controlled_length or 0
        self._unreturned += octets
        stream = self._owner.streams.get(event.stream_id)
        if stream is not None:
            self.buffered += octets
            stream.data_arrived(bytes(event.data or b""), octets)
        await self._return_window()

    async def _create_stream(self, request: h2.events.RequestReceived) -> None:
        stream_id = request.stream_id
        pseudo = {bytes(name): bytes(value) for name, value in request.headers if name.startswith(b":")}
        method, path = pseudo[b":method"], pseudo.get(b":path", b"")  # CONNECT has no path
        if method == b"CONNECT" or not TOKEN.fullmatch(method) or not all(0x20 < octet < 0x7F for octet in path):
            await self.reset(stream_id, "PROTOCOL_ERROR")
        else:
            self._owner.opening = stream_id
            await super()._create_stream(request)

    async def _send_data(self, stream_id: int) -> None:
        buffer = self.stream_buffers.get(stream_id)
        before = 0 if buffer is None else len(buffer.buffer)
        await super()._send_data(stream_id)
        stream = self._owner.streams.get(stream_id)
        if buffer is not None and stream is not None and len(buffer.buffer) < before:
            stream.progressed()
        if stream_id in self._unsent and stream_id not in self.stream_buffers:
            self._unsent.pop(stream_id).set()
