"""One request and its response, as the application sees them: `receive` and `send`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import trio

from llm_proxy.server.asgi import Message
from llm_proxy.server.refusal import Refusal
from llm_proxy.server.request import Head
from llm_proxy.server.response import CONTINUE, InvalidResponse, ResponseWriter
from llm_proxy.server.transport import RECEIVE_SIZE

if TYPE_CHECKING:
    from llm_proxy.server.http1 import Http1Connection

PIPELINE_LIMIT: Final = 64 * 1024
"""Bytes behind the current request that are read ahead while the application waits for the client to leave."""
DISCARD_LIMIT: Final = 16 * 1024
"""Octets of an unread request body that are read and forgotten to keep the connection alive."""
DISCARD_TIMEOUT: Final = 2.0
YIELD_EVERY: Final = 16
"""Pieces of a body that are sent in a row before other tasks get their turn, where the application does not wait."""


class ClientGone(OSError):
    """What `send` raises once nothing can reach the client any more."""


def report_each(errors: BaseExceptionGroup[Exception], report: Callable[[BaseException], None]) -> None:
    """Report the exceptions of a group one by one; a fault of `report` itself must not hurt the server."""
    for error in errors.exceptions:
        with contextlib.suppress(Exception):
            report(error)


class Exchange:
    """The two ASGI callables of one request.

    `receive` reads from the client when the application asks for more than has arrived, so the application's own pace
    is the back-pressure. After the body it waits until the client disconnects. If disconnects are watched, a client
    that has only closed its own side is still connected: it may wait for its response. `send` writes to the client, the
    head together with the first piece of the body, as ASGI specifies: an application that wants its headers sent before
    it has a body sends an empty piece with `more_body`. The two may be used from two tasks at once, one each.
    """

    __slots__ = (
        "_body_read",
        "_complete",
        "_connection",
        "_continue_due",
        "_gone",
        "_head",
        "_pieces",
        "_probed",
        "_refused",
        "_sent",
        "_unsent_head",
        "_waiting",
        "_writer",
        "parked",
    )

    def __init__(self, connection: Http1Connection, head: Head) -> None:
        """Begin the exchange for the request with this head, which `connection` has just read."""
        self._connection = connection
        self._head = head
        self._continue_due = head.expects_continue and not connection.reader.has_body
        self._body_read = False  # the application was given the last piece of the body
        self._writer: ResponseWriter | None = None
        self._unsent_head = b""
        self._sent = False  # something of the response has gone to the client
        self._complete = False  # all of it has
        self._gone = False  # nothing can reach the client any more
        self._pieces = 0
        self._refused = False  # the server has answered in the application's place
        self._waiting: trio.CancelScope | None = None
        self._probed = False
        self.parked = False  # `receive` waits for `leave` alone: nothing more can be read

    def probe(self) -> None:
        """Find out whether a client that has ended its side is still there, by sending what changes nothing.

        One that waits for its answer passes over an interim response (RFC 9110 section 15.2), or a zero in front of the
        size of the next chunk (RFC 9112 section 7.1). The system of one that has closed its socket answers with a
        reset, of which `DisconnectWatcher` tells. In other responses the next piece does the same.
        """
        if self._probed or self._gone or self._complete:
            return
        self._probed = True
        if not self._sent:
            data = CONTINUE if self._head.version == "1.1" else b""
        else:
            data = b"" if self._writer is None else self._writer.probe
        self._connection.transport.offer(data)

    def leave(self) -> None:
        """Take note that the client has left: nothing can reach it any more."""
        self._gone = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def receive(self) -> Message:
        """Return the next piece of the body; behind it, and when the client has left, `http.disconnect`."""
        if not self._gone and not self._complete:
            reader = self._connection.reader
            if not self._body_read:
                while True:
                    data = reader.take_body()
                    if data or reader.complete:
                        self._body_read = reader.complete
                        return {"type": "http.request", "body": data, "more_body": not reader.complete}
                    if self._continue_due and not self._sent:
                        self._continue_due = False
                        await self._write(CONTINUE)
                    if not await self._read(self._connection.site.config.body_idle_timeout):
                        break
            else:
                while await self._read(math.inf):
                    pass
        else:
            await trio.lowlevel.checkpoint()
        return {"type": "http.disconnect"}

    async def _read(self, patience: float) -> bool:
        """Read once from the client; False when nothing more will come for this request."""
        connection = self._connection
        reader = connection.reader
        data: bytes | bytearray = b""
        with trio.CancelScope(deadline=trio.current_time() + patience) as self._waiting:
            try:
                told = connection.site.disconnects is not None and self._body_read
                if reader.pending <= PIPELINE_LIMIT:
                    data = await connection.stream.receive_some(RECEIVE_SIZE)
                elif not told:
                    await connection.transport.wait_hang_up()
                if not data and told:
                    self.parked = True
                    connection.check_client()
                    await trio.sleep_forever()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
        overdue, self._waiting = self._waiting.cancelled_caught, None
        if data:
            try:
                reader.feed(bytes(data))
            except Refusal as refusal:
                await self._refuse(refusal)
        elif not overdue:
            self._gone = True
        elif not self._complete and not self._gone:
            await self._refuse(Refusal(408, "The body of the request did not arrive in time."))
        return not self._gone and not self._complete

    async def _refuse(self, refusal: Refusal) -> None:
        """Answer in the application's place, as far as it has not begun to; it sees a client that has left."""
        if not self._gone:
            self._gone = True
            self._refused = not self._sent
            if self._refused:
                await self._connection.answer(refusal)

    async def send(self, message: Message) -> None:
        """Send the head or a piece of the body of the response.

        Raises:
            ClientGone: the client has left, or took nothing for `write_timeout` seconds.
            InvalidResponse: the message cannot be sent as it is.
        """
        if self._gone:
            raise ClientGone("the client has closed the connection")
        kind = message["type"]
        writer = self._writer
        if kind == "http.response.body":
            if writer is None or self._complete:
                raise InvalidResponse("a response body belongs between the start and the end of a response")
            more = message.get("more_body", False)
            try:
                data = writer.body(message.get("body", b""), more=more)
            except InvalidResponse:
                self._gone = self._sent
                self._writer = None if not self._sent else writer
                raise
            if not self._sent:
                self._sent = True
                data = self._unsent_head + data
            if data:
                await self._write(data)
            if more:
                await self._yield()
                return
            self._complete = True
            if self._waiting is not None:
                self._waiting.cancel()
        elif kind == "http.response.start":
            if writer is not None:
                raise InvalidResponse("a response has one start")
            writer = ResponseWriter(
                method=self._head.method, version=self._head.version, keep_alive=self._may_keep_alive()
            )
            self._unsent_head = writer.start(message["status"], message.get("headers", ()))
            self._writer = writer
        else:
            raise InvalidResponse(f"{kind!r} is no message of an HTTP response")

    async def _yield(self) -> None:
        """Let others have a turn now and then: an application that waits for its next piece yields by itself.

        Being rescheduled costs more than sending a small piece does.
        """
        self._pieces += 1
        if self._pieces % YIELD_EVERY:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()

    def _may_keep_alive(self) -> bool:
        connection = self._connection
        if not self._head.keep_alive or connection.site.traffic.draining:
            return False
        # A client that has not been told to continue may send its body or not: what follows cannot be told apart.
        return connection.reader.complete or not (
            self._continue_due or (connection.reader.remaining or 0) > DISCARD_LIMIT
        )

    async def _write(self, data: bytes) -> None:
        try:
            await self._connection.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.leave()
            raise ClientGone("the client has closed the connection") from error
        except BaseException:
            self._gone = True  # cancelled: half a message may be on its way
            raise

    async def finish(self) -> bool:
        """Bring the exchange to an end after the application has returned; True when another request may follow.

        Raises:
            Refusal: the application has left the request without an answer.
        """
        if not self._complete:
            if not self._sent and not self._gone:
                raise Refusal(500, "The server failed to handle this request.")
            if not self._refused:
                self.tear()
            return False
        if self._writer is None or not self._writer.keep_alive:
            return False
        return self._connection.reader.complete or await self._discard()

    def tear(self) -> None:
        """End the connection so that the client cannot take what it has got for the whole response."""
        if self._complete:
            return
        if self._writer is None or self._writer.delimited:
            self._connection.transport.close()
        else:
            self._connection.transport.abort()

    async def _discard(self) -> bool:
        """Read the rest of the body and forget it; False when it is too long, too slow, or broken."""
        connection = self._connection
        reader = connection.reader
        budget = DISCARD_LIMIT
        with trio.move_on_after(DISCARD_TIMEOUT):
            while not reader.complete and budget > 0:
                data = await connection.stream.receive_some(RECEIVE_SIZE)
                if not data:
                    return False
                try:
                    reader.feed(bytes(data))
                except Refusal:
                    return False
                budget -= len(reader.take_body())
        return reader.complete
