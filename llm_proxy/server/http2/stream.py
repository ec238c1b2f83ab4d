"""One HTTP/2 request and its response, as the application sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from llm_proxy.net.disconnect import ClientDisconnected
from llm_proxy.server.asgi import Message, Scope
from llm_proxy.server.context import ServerConfig
from llm_proxy.server.http1.request import HOST, RequestError
from llm_proxy.server.http1.response import InvalidResponse, checked_fields

if TYPE_CHECKING:
    from llm_proxy.server.http2.connection import Http2Protocol

_BODILESS: Final = frozenset({204, 304})


class Http2Stream:
    """The ASGI callables of one stream, and the events of its connection.

    Data of the client is buffered here, up to the flow-control window. The client gets new window when the application
    takes the data, so one slow reader does not block the other streams of a connection.
    """

    def __init__(self, protocol: Http2Protocol, stream_id: int, scope: Scope, config: ServerConfig) -> None:
        self._protocol = protocol
        self._id = stream_id
        self._head_only = scope["method"] == "HEAD"
        self._continue_due = any(name == b"expect" for name, _ in scope["headers"])
        self._config = config
        self._inbox: list[bytes] = []
        self.unreturned = 0  # octets of flow control that the client has used and not got back
        self._ended = False  # the client has sent its whole request
        self._body_read = False  # the application has the last piece of the body
        self._disconnected = False  # nothing can reach the client any more
        self._arrival = trio.Event()
        self._start: Message | None = None
        self._started = False
        self._complete = False
        self._remaining: int | None = None
        self._progress: trio.CancelScope | None = None

    # Called by the connection.

    def data_arrived(self, data: bytes, octets: int) -> None:
        """Buffer a piece of the request's body, which used `octets` of flow control."""
        self._inbox.append(data)
        self._continue_due = False
        self.unreturned += octets
        self._arrival.set()

    def request_ended(self) -> None:
        self._ended = True
        self._arrival.set()

    def closed(self) -> None:
        """The stream has ended, by completion, by a reset, or with its connection."""
        self._disconnected = True
        self._arrival.set()
        if self._progress is not None and not self._complete:
            self._progress.cancel()

    def progressed(self) -> None:
        if self._progress is not None:
            self._progress.deadline = trio.current_time() + self._config.write_timeout

    # Called by the application.

    async def receive(self) -> Message:
        """Return the next piece of the body; after it, and when the client has disconnected, `http.disconnect`."""
        if not self._disconnected and not self._body_read and (self._inbox or self._ended):
            # At once, for applications that need only what has arrived.
            return await self._take()
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(self._config.body_idle_timeout) as silence:
            while not self._disconnected:
                if not self._body_read and (self._inbox or self._ended):
                    return await self._take()
                if self._body_read:
                    silence.deadline = float("inf")
                self._arrival = trio.Event()
                if self._continue_due and not self._body_read and self._start is None:
                    self._continue_due = False
                    await self._protocol.send_continue(self._id)
                    continue
                await self._arrival.wait()
        if silence.cancelled_caught and not self._disconnected:
            if self._start is None:
                await self.send_error(RequestError(408, "The body of the request did not arrive in time."))
            self._disconnected = True
        return {"type": "http.disconnect"}

    async def _take(self) -> Message:
        data = b"".join(self._inbox)
        self._inbox.clear()
        self._body_read = self._ended
        await self._consume()
        return {"type": "http.request", "body": data, "more_body": not self._body_read}

    async def _consume(self) -> None:
        if self.unreturned:
            unreturned, self.unreturned = self.unreturned, 0
            await self._protocol.consumed(self._id, unreturned, more=not self._ended)

    async def send(self, message: Message) -> None:
        """Send the head or a piece of the body of the response. Raises as `RequestCycle.send`."""
        if self._disconnected:
            raise ClientDisconnected("the client has closed the stream")
        kind = message["type"]
        if kind == "http.response.start" and self._start is None:
            fields, self._remaining = checked_fields(message["status"], message.get("headers", ()))
            if self._head_only or message["status"] in _BODILESS:
                self._remaining = None
            self._start = {"type": kind, "status": message["status"], "headers": fields}
            await trio.lowlevel.checkpoint()
        elif kind == "http.response.body" and self._start is not None and not self._complete:
            await self._send_body(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise InvalidResponse(f"{kind!r} is not allowed here")

    async def _send_body(self, data: bytes, *, more: bool) -> None:
        if self._remaining is not None:
            self._remaining -= len(data)
            if self._remaining < 0 or (self._remaining and not more):
                await self._protocol.reset(self._id, "INTERNAL_ERROR")
                raise InvalidResponse("the body does not have the length of its Content-Length")
        with trio.CancelScope(deadline=trio.current_time() + self._config.write_timeout) as self._progress:
            if not self._started:
                self._started = True
                await self._protocol.forward(self._id, self._start)
            self._complete = not more
            await self._protocol.forward(
                self._id, {"type": "http.response.body", "body": bytes(data), "more_body": more}
            )
        stalled, self._progress = self._progress.cancelled_caught, None
        if stalled and not self._disconnected:
            await self._protocol.reset(self._id, "CANCEL")
        if stalled or (more and self._disconnected):
            self._disconnected = True
            raise ClientDisconnected("the client has closed the stream, or has stopped reading from it")

    # Called by the connection, instead of the application or after it.

    async def send_error(self, error: RequestError) -> None:
        self._start, self._remaining = None, None
        headers, body = self._config.error_response(error.status, error.message)
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    async def finish(self) -> None:
        """Close the stream and free its buffer after the application has returned."""
        self._inbox.clear()
        await self._consume()
        if not self._disconnected and not self._started:
            await self.send_error(RequestError(500, "The server failed to handle this request."))
        if not self._complete:
            await self._protocol.reset(self._id, "INTERNAL_ERROR")
            return
        await self._protocol.sent(self._id)
        if not self._ended:
            # RFC 9113 section 8.1: the rest of the request is not needed
            await self._protocol.reset(self._id, "NO_ERROR")


def check_request(scope: Scope) -> RequestError | None:
    """Check a request by the rules that HTTP/1.1 has here and HTTP/2 itself has not."""
    if not scope["raw_path"].startswith(b"/"):
        return RequestError(400, "The path has to begin with '/'.")
    for name, value in scope["headers"]:
        if name == b"host" and not HOST.fullmatch(value):
            return RequestError(400, "The authority is malformed.")
        if name == b"expect" and value.lower() != b"100-continue":
            return RequestError(417, "Only 'Expect: 100-continue' is supported.")
    return None
