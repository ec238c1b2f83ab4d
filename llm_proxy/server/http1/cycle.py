"""One request and its response, as the application sees them: `receive` and `send`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import attrs
import trio

from llm_proxy.net.disconnect import ClientDisconnected
from llm_proxy.server.asgi import Message
from llm_proxy.server.http1.request import Head, RequestError
from llm_proxy.server.http1.response import CONTINUE, InvalidResponse, ResponseWriter
from llm_proxy.server.transport import RECEIVE_SIZE

if TYPE_CHECKING:
    from llm_proxy.server.http1.connection import Http1Connection

PIPELINE_LIMIT: Final = 64 * 1024
"""Bytes after the current request that are read while the application waits for the client to disconnect."""
DISCARD_LIMIT: Final = 16 * 1024
"""Octets of an unread request body that are read and discarded to keep the connection alive."""
DISCARD_TIMEOUT: Final = 2.0
YIELD_EVERY: Final = 16
"""Pieces of a body that are sent in a row before other tasks run, if the application does not wait."""


@attrs.define(eq=False, repr=False)
class RequestCycle:
    """The two ASGI callables of one request.

    `receive` reads from the client when the application asks for more than has arrived, so the application's own pace
    is the back-pressure. After the body it waits until the client disconnects. If disconnects are watched, a client
    that has only closed its own side is still connected: it may wait for its response. `send` writes to the client, the
    head together with the first piece of the body, as ASGI specifies: an application that wants its headers sent before
    it has a body sends an empty piece with `more_body`. The two may be used from two tasks at once, one each.
    """

    _connection: Http1Connection
    _head: Head
    _continue_due: bool
    _body_read: bool = False  # the application has the last piece of the body
    _writer: ResponseWriter | None = None
    _unsent_head: bytes = b""
    _sent: bool = False  # a part of the response was sent
    _complete: bool = False  # all of it was sent
    _disconnected: bool = False  # nothing can reach the client any more
    _pieces: int = 0
    _rejected: bool = False  # the server has answered instead of the application
    _waiting: trio.CancelScope | None = None
    _probed: bool = False
    parked: bool = False  # `receive` waits only for `disconnect`: nothing more can be read

    def probe_client(self) -> None:
        """Find out if a client that has closed its side is still there, by sending bytes without a meaning.

        A client that waits for its response ignores an interim response (RFC 9110 section 15.2), or a zero before the
        size of the next chunk (RFC 9112 section 7.1). If the client has closed its socket, its machine answers with a
        reset, and ours reports that. In other responses the next piece has the same effect.
        """
        if self._probed or self._disconnected or self._complete:
            return
        self._probed = True
        if not self._sent:
            data = CONTINUE if self._head.version == "1.1" else b""
        else:
            data = b"" if self._writer is None else self._writer.probe
        self._connection.transport.send_if_ready(data)

    def disconnect(self) -> None:
        self._disconnected = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def receive(self) -> Message:
        """Return the next piece of the body; after it, and when the client has disconnected, `http.disconnect`."""
        if not self._disconnected and not self._complete:
            reader = self._connection.reader
            if not self._body_read:
                while True:
                    data = reader.take_body()
                    if data or reader.complete:
                        self._body_read = reader.complete
                        return {"type": "http.request", "body": data, "more_body": not reader.complete}
                    if self._continue_due and not self._sent:
                        # An application that has given the body up may still answer.
                        await trio.lowlevel.checkpoint_if_cancelled()
                        self._continue_due = False
                        with trio.CancelScope(shield=True):
                            await self._write(CONTINUE)
                    if not await self._read(self._connection.context.config.body_idle_timeout):
                        break
            else:
                while await self._read(math.inf):
                    pass
        else:
            await trio.lowlevel.checkpoint()
        return {"type": "http.disconnect"}

    async def _read(self, timeout: float) -> bool:  # noqa: ASYNC109 - `receive` may cancel the same scope
        """Read once from the client; False if nothing more will arrive for this request."""
        connection = self._connection
        reader = connection.reader
        data: bytes | bytearray = b""
        with trio.CancelScope(deadline=trio.current_time() + timeout) as self._waiting:
            try:
                watched = connection.context.sees_disconnects and self._body_read
                if reader.pending <= PIPELINE_LIMIT:
                    data = await connection.stream.receive_some(RECEIVE_SIZE)
                elif not watched:
                    await connection.transport.wait_closed_by_peer()
                if not data and watched:
                    self.parked = True
                    connection.check_client()
                    await trio.sleep_forever()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
        timed_out, self._waiting = self._waiting.cancelled_caught, None
        if data:
            try:
                reader.feed(bytes(data))
            except RequestError as error:
                await self._reject(error)
        elif not timed_out:
            self._disconnected = True
        elif not self._complete and not self._disconnected:
            await self._reject(RequestError(408, "The body of the request did not arrive in time."))
        return not self._disconnected and not self._complete

    async def _reject(self, error: RequestError) -> None:
        """Answer instead of the application, if it has not begun to. For the application the client disconnects."""
        if not self._disconnected:
            self._disconnected = True
            self._rejected = not self._sent
            if self._rejected:
                await self._connection.send_error(error)

    async def send(self, message: Message) -> None:
        """Send the head or a piece of the body of the response.

        Raises:
            ClientDisconnected: the client has disconnected, or read nothing for `write_timeout` seconds.
            InvalidResponse: the message cannot be sent.
        """
        if self._disconnected:
            raise ClientDisconnected
        kind = message["type"]
        writer = self._writer
        if kind == "http.response.body":
            if writer is None or self._complete:
                raise InvalidResponse("a response body must be between the start and the end of a response")
            more = message.get("more_body", False)
            try:
                data = writer.body(message.get("body", b""), more=more)
            except InvalidResponse:
                self._disconnected = self._sent
                self._writer = None if not self._sent else writer
                raise
            if not self._sent:
                self._sent = True
                data = self._unsent_head + data
            if data:
                await self._write(data)
            if more:
                # Other tasks run now and then. A checkpoint for each piece would cost more than sending a small one.
                self._pieces += 1
                rests = self._pieces % YIELD_EVERY == 0
                checkpoint = trio.lowlevel.checkpoint if rests else trio.lowlevel.checkpoint_if_cancelled
                await checkpoint()
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
            raise InvalidResponse(f"{kind!r} is not a message of an HTTP response")

    def _may_keep_alive(self) -> bool:
        connection = self._connection
        if not self._head.keep_alive or connection.context.connections.draining:
            return False
        # A client that was not told to continue may send its body or not: the next bytes are ambiguous.
        return connection.reader.complete or not (
            self._continue_due or (connection.reader.remaining or 0) > DISCARD_LIMIT
        )

    async def _write(self, data: bytes) -> None:
        try:
            await self._connection.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.disconnect()
            raise ClientDisconnected from error
        except BaseException:
            self._disconnected = True  # cancelled: half a message may be sent
            raise

    async def finish(self) -> bool:
        """End the cycle after the application has returned; True if another request may follow.

        Raises RequestError if the application has not answered.
        """
        if not self._complete:
            if not self._sent and not self._disconnected:
                raise RequestError(500, "The server failed to handle this request.")
            if not self._rejected:
                self.abort()
            return False
        if self._writer is None or not self._writer.keep_alive:
            return False
        return self._connection.reader.complete or await self._discard()

    def abort(self) -> None:
        """Unless the response is complete, close the connection so that the client cannot take it for complete."""
        if self._complete:
            return
        if self._writer is None or self._writer.delimited:
            self._connection.transport.close()
        else:
            self._connection.transport.abort()

    async def _discard(self) -> bool:
        """Read and discard the rest of the body; False if it is too long, too slow, or malformed."""
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
                except RequestError:
                    return False
                budget -= len(reader.take_body())
        return reader.complete
