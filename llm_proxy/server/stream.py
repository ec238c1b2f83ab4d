"""One HTTP/2 request and its response, as the application sees them; knows flow control, but no frames."""

from __future__ import annotations

from typing import Any, Final, Protocol

import trio

from llm_proxy.server.asgi import Message, Scope
from llm_proxy.server.exchange import ClientGone
from llm_proxy.server.refusal import Refusal
from llm_proxy.server.request import HOST
from llm_proxy.server.response import InvalidResponse, checked_fields

_BODILESS: Final = frozenset({204, 304})


class Line(Protocol):
    """What a stream needs of its connection."""

    async def forward(self, stream_id: int, message: Any) -> None:
        """Send an ASGI message of a response; waits for flow control."""

    async def send_continue(self, stream_id: int) -> None:
        """Send the interim response 100 (RFC 9110 section 15.2.1)."""

    async def consumed(self, stream_id: int, octets: int, *, more: bool) -> None:
        """Note that so much of the request was used up; the client may send as much again, where more is due."""

    async def reset(self, stream_id: int, reason: str) -> None:
        """End the stream with an error code of RFC 9113 section 7."""

    async def sent(self, stream_id: int) -> None:
        """Wait until the end of the response has gone out."""


class Http2Stream:
    """The ASGI callables of one stream, and what its connection tells it.

    What the client sends waits here, no more than its flow-control window allows; it gets new room as the application
    takes the data, so one slow reader does not hold up the other streams of a connection.
    """

    def __init__(self, line: Line, stream_id: int, scope: Scope, *, write_timeout: float, body_timeout: float) -> None:
        """Begin a stream; the timeouts are `ServeConfig.write_timeout` and `body_idle_timeout`."""
        self._line = line
        self._id = stream_id
        self._head_only = scope["method"] == "HEAD"
        self._continue_due = any(name == b"expect" for name, _ in scope["headers"])
        self._write_timeout = write_timeout
        self._body_timeout = body_timeout
        self._inbox: list[bytes] = []
        self.owed = 0  # octets of flow control that the client has used up and not got back
        self._ended = False  # the client has sent its whole request
        self._body_read = False  # the application was given the last piece of the body
        self._gone = False  # nothing can reach the client any more
        self._arrival = trio.Event()
        self._start: Message | None = None
        self._started = False
        self._complete = False
        self._remaining: int | None = None
        self._progress: trio.CancelScope | None = None

    # What the connection tells.

    def data_arrived(self, data: bytes, octets: int) -> None:
        """Take a piece of the request's body, which used `octets` of flow control."""
        self._inbox.append(data)
        self._continue_due = False
        self.owed += octets
        self._arrival.set()

    def request_ended(self) -> None:
        """Note that the client has sent everything."""
        self._ended = True
        self._arrival.set()

    def closed(self) -> None:
        """Note that the stream is over, by completion, by a reset, or with its connection."""
        self._gone = True
        self._arrival.set()
        if self._progress is not None and not self._complete:
            self._progress.cancel()

    def progressed(self) -> None:
        """Note that the client has taken something of the response."""
        if self._progress is not None:
            self._progress.deadline = trio.current_time() + self._write_timeout

    # What the application calls.

    async def receive(self) -> Message:
        """Return the next piece of the body; behind it, and when the client has left, `http.disconnect`."""
        if not self._gone and not self._body_read and (self._inbox or self._ended):
            # At once, for applications that want no more than what is here.
            return await self._take()
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(self._body_timeout) as patience:
            while not self._gone:
                if not self._body_read and (self._inbox or self._ended):
                    return await self._take()
                if self._body_read:
                    patience.deadline = float("inf")
                self._arrival = trio.Event()
                if self._continue_due and not self._body_read and self._start is None:
                    self._continue_due = False
                    await self._line.send_continue(self._id)
                    continue
                await self._arrival.wait()
        if patience.cancelled_caught and not self._gone:
            await self._overdue()
        return {"type": "http.disconnect"}

    async def _take(self) -> Message:
        data = b"".join(self._inbox)
        self._inbox.clear()
        self._body_read = self._ended
        await self._consume()
        return {"type": "http.request", "body": data, "more_body": not self._body_read}

    async def _consume(self) -> None:
        if self.owed:
            owed, self.owed = self.owed, 0
            await self._line.consumed(self._id, owed, more=not self._ended)

    async def _overdue(self) -> None:
        if self._start is None:
            await self.answer(Refusal(408, "The body of the request did not arrive in time."))
        self._gone = True

    async def send(self, message: Message) -> None:
        """Send the head or a piece of the body of the response.

        Raises:
            ClientGone: the client has left, or took nothing for `write_timeout` seconds.
            InvalidResponse: the message cannot be sent as it is.
        """
        if self._gone:
            raise ClientGone("the client has closed the stream")
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
            raise InvalidResponse(f"{kind!r} is out of place here")

    async def _send_body(self, data: bytes, *, more: bool) -> None:
        if self._remaining is not None:
            self._remaining -= len(data)
            if self._remaining < 0 or (self._remaining and not more):
                await self._line.reset(self._id, "INTERNAL_ERROR")
                raise InvalidResponse("the body does not have the length that its Content-Length says")
        with trio.CancelScope(deadline=trio.current_time() + self._write_timeout) as self._progress:
            if not self._started:
                self._started = True
                await self._line.forward(self._id, self._start)
            self._complete = not more
            await self._line.forward(self._id, {"type": "http.response.body", "body": bytes(data), "more_body": more})
        stalled, self._progress = self._progress.cancelled_caught, None
        if stalled and not self._gone:
            await self._line.reset(self._id, "CANCEL")
        if stalled or (more and self._gone):
            self._gone = True
            raise ClientGone("the client has closed the stream, or has stopped reading from it")

    # What the connection does for the application.

    async def answer(self, refusal: Refusal) -> None:
        """Answer in the application's place."""
        self._start, self._remaining = None, None
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": refusal.headers})
        await self.send({"type": "http.response.body", "body": refusal.body})

    async def finish(self) -> None:
        """Leave no stream open, and nothing of its request in memory, after the application has returned."""
        self._inbox.clear()
        await self._consume()
        if not self._gone and not self._started:
            await self.answer(Refusal(500, "The server failed to handle this request."))
        if not self._complete:
            await self._line.reset(self._id, "INTERNAL_ERROR")
            return
        await self._line.sent(self._id)
        if not self._ended:
            await self._line.reset(self._id, "NO_ERROR")  # RFC 9113 section 8.1: the rest of the request is not needed


def refusal_of(scope: Scope) -> Refusal | None:
    """Judge a request by the rules that HTTP/1.1 has here and HTTP/2 itself has not."""
    if not scope["raw_path"].startswith(b"/"):
        return Refusal(400, "The path has to begin with '/'.")
    for name, value in scope["headers"]:
        if name == b"host" and not HOST.fullmatch(value):
            return Refusal(400, "The authority is malformed.")
        if name == b"expect" and value.lower() != b"100-continue":
            return Refusal(417, "Only 'Expect: 100-continue' is supported.")
    return None
