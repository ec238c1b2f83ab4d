"""An HTTP/2 client that can break the rules, on the h2 library that other clients use."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import trio
from attrs import Factory, define

Headers = list[tuple[str, str]]


@define
class Reply:
    """What one stream has received.

    Attributes:
        interim: the statuses of the interim responses.
        ended: the server has ended it; `reset` is the error code if it was reset.
    """

    interim: list[str] = Factory(list)
    headers: dict[str, str] = Factory(dict)
    body: bytes = b""
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> int:
        return int(self.headers[":status"])


@define
class Http2Client:
    """One connection; `connect_http2` opens it.

    Attributes:
        deaf: never read.
        greedy: acknowledge data as it arrives; otherwise the server's window runs out.
        goaway: error code of GOAWAY.
        closed: the server has closed the connection.
    """

    stream: trio.SSLStream[trio.SocketStream]
    h2: h2.connection.H2Connection
    deaf: bool = False
    greedy: bool = True
    goaway: int | None = None
    closed: bool = False
    replies: dict[int, Reply] = Factory(dict)
    _changed: trio.Event = Factory(trio.Event)
    _sending: trio.Lock = Factory(trio.Lock)

    async def flush(self) -> None:
        async with self._sending:
            data = self.h2.data_to_send()
            if data:
                await self.stream.send_all(data)

    async def ask(
        self,
        path: str = "/",
        *,
        method: str = "GET",
        extra: Headers | None = None,
        head: Headers | None = None,
        end: bool = True,
    ) -> int:
        """Open a stream and return its number; `head` replaces the pseudo-headers."""
        stream_id = self.h2.get_next_available_stream_id()
        head = head or [(":method", method), (":scheme", "https"), (":authority", "localhost"), (":path", path)]
        self.h2.send_headers(stream_id, [*head, *(extra or [])], end_stream=end)
        self.replies[stream_id] = Reply()
        await self.flush()
        return stream_id

    async def send(self, stream_id: int, data: bytes, *, end: bool = False) -> None:
        """Send a piece of a body within the window of the server."""
        while data:
            room = min(self.h2.local_flow_control_window(stream_id), self.h2.max_outbound_frame_size)
            if not room:
                await self.change()
                continue
            self.h2.send_data(stream_id, data[:room])
            data = data[room:]
            await self.flush()
        if end:
            self.h2.end_stream(stream_id)
            await self.flush()

    async def reply(self, stream_id: int) -> Reply:
        """Return the response on a stream; if it is reset, what has arrived."""
        reply = self.replies[stream_id]
        while not reply.ended and reply.reset is None and not self.closed:
            await self.change()
        return reply

    async def get(self, path: str = "/", **options: Any) -> Reply:
        return await self.reply(await self.ask(path, **options))

    async def change(self) -> None:
        """Wait until something has arrived from the server."""
        if not self.closed:
            await self._changed.wait()

    async def read(self) -> None:
        """Read until the server closes."""
        if self.deaf:
            await trio.sleep_forever()
        try:
            while data := await self.stream.receive_some():
                for event in self.h2.receive_data(bytes(data)):
                    self._take(event)
                await self.flush()
                self._changed.set()
                self._changed = trio.Event()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        self.closed = True
        self._changed.set()

    def _take(self, event: object) -> None:
        match event:
            case h2.events.ResponseReceived(stream_id=number, headers=headers):
                assert number is not None
                self.replies[number].headers = {str(name): str(value) for name, value in headers or []}
            case h2.events.InformationalResponseReceived(stream_id=number, headers=headers):
                assert number is not None
                self.replies[number].interim += [str(value) for name, value in headers or [] if str(name) == ":status"]
            case h2.events.DataReceived(stream_id=number, data=data, flow_controlled_length=length):
                assert number is not None
                self.replies[number].body += data or b""
                if self.greedy and length:
                    self.h2.acknowledge_received_data(length, number)
            case h2.events.StreamEnded(stream_id=number):
                assert number is not None
                self.replies[number].ended = True
            case h2.events.StreamReset(stream_id=number, error_code=code):
                assert number is not None
                self.replies[number].reset = code
            case h2.events.ConnectionTerminated(error_code=code):
                self.goaway = code


@asynccontextmanager
async def connect_http2(port: int, trust: ssl.SSLContext, **options: Any) -> AsyncIterator[Http2Client]:
    """Connect to a server on this machine, and read while the block runs."""
    trust.set_alpn_protocols(["h2"])
    stream = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", port), trust, server_hostname="localhost")
    await stream.do_handshake()
    assert stream.selected_alpn_protocol() == "h2"
    config = h2.config.H2Configuration(
        client_side=True, header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False
    )
    client = Http2Client(stream, h2.connection.H2Connection(config), **options)
    client.h2.initiate_connection()
    await client.flush()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.read)
            yield client
            nursery.cancel_scope.cancel()
    finally:
        await trio.aclose_forcefully(stream)
