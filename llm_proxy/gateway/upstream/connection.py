"""One connection to an upstream, and the exchanges that it carries one after the other.

A request that fits into one write is sent without a task of its own. A longer one is sent beside the wait for the
response, because an upstream may answer early (with a 413, say) and read no further: then sending stops, the response
is delivered and the connection is not used again (RFC 9112 §9.3).

However an exchange fails or is cancelled, its socket is closed before the caller learns of it: here until there is a
response, afterwards by the response, which owns the connection from then on.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Final

import trio
from attrs import define

from llm_proxy.gateway.upstream.failures import Disconnected, HeaderTimeout, IdleTimeout, UpstreamFailure
from llm_proxy.gateway.upstream.parser import ResponseParser
from llm_proxy.gateway.upstream.request import LAST_CHUNK, BodyReader, chunk
from llm_proxy.net.client_socket import describe_error

if TYPE_CHECKING:
    from llm_proxy.gateway.upstream.interface import Dispatch, RequestBody
    from llm_proxy.gateway.upstream.request import Request
    from llm_proxy.gateway.upstream.response import Head
    from llm_proxy.net.client_socket import ClientSocket
    from llm_proxy.net.timeouts import TimeoutWheel

#: A body up to this many bytes goes out in one write with its head.
SMALL_BODY: Final = 65536


class Connection:
    """A socket, the parser of what it brings, and the deadlines that hold for it.

    Attributes:
        parser: what is known of the current response.
        request_done: the current request was sent whole.
        best_before: trio time after which the idle connection is not used again.
    """

    __slots__ = (
        "_failure",
        "_header_timeout",
        "_idle_timeout",
        "_reader",
        "_socket",
        "best_before",
        "parser",
        "request_done",
    )

    def __init__(self, connected: ClientSocket, header_timeout: TimeoutWheel, idle_timeout: TimeoutWheel) -> None:
        """Take over a connected socket."""
        self._socket = connected
        self._header_timeout = header_timeout
        self._idle_timeout = idle_timeout
        self._failure: UpstreamFailure | None = None
        self._reader: BodyReader | None = None
        self.parser = ResponseParser()
        self.request_done = False
        self.best_before = 0.0

    @property
    def lifetime(self) -> int | None:
        """Seconds for which the server promises to keep the idle connection, None where it does not say."""
        return self.parser.lifetime

    @property
    def is_reusable(self) -> bool:
        """Has the exchange ended cleanly on both sides, with the connection fit for the next?"""
        parser = self.parser
        return parser.complete and parser.reusable and self.request_done and self._failure is None

    @property
    def is_ready(self) -> bool:
        """Would `receive` return without waiting?"""
        return bool(self.parser.pieces) or self.parser.complete

    def fileno(self) -> int:
        """The descriptor of the socket; -1 once it is closed."""
        return self._socket.fileno()

    def is_quiet(self) -> bool:
        """Is the idle connection still there, with nothing to read on it?"""
        return self._socket.is_quiet()

    def close(self) -> None:
        """Close the socket at once. Idempotent."""
        self._header_timeout.stop(self)
        self._idle_timeout.stop(self)
        self._socket.close()

    def expire(self, wheel: TimeoutWheel) -> None:
        """A deadline has passed: whoever waits on this connection gets the failure."""
        seconds = f"{wheel.seconds:g} s"
        if wheel is self._header_timeout:
            self._failure = HeaderTimeout(f"the upstream did not answer within {seconds}", sent=True)
        elif self._reader is not None and self._reader.pulling:
            self._failure = IdleTimeout(
                f"the client sent nothing of its request body for {seconds}", sent=True, waiting_for="body"
            )
        else:
            self._failure = IdleTimeout(f"no byte went to or came from the upstream for {seconds}", sent=True)
        self._socket.close()

    async def exchange(self, request: Request, dispatch: Dispatch) -> Head:
        """Send a request and wait for the head of its final response.

        Raises:
            UpstreamFailure: with `sent` false only if not a byte went out and nothing of the body was taken.
            Exception: whatever iterating over the request's body raises.
        """
        parser = self.parser
        parser.begin(bodiless=request.method == b"HEAD")
        self.request_done = False
        self._reader = None
        body = request.body
        data = request.head
        if isinstance(body, bytes) and len(body) <= SMALL_BODY:
            data += body
            body = None
        try:
            gone = self._send_first(data, dispatch)
            if body is None and gone == len(data):
                self.request_done = True
                self._header_timeout.start(self)
                while not parser.head_complete:
                    await self._read()
            else:
                await self._converse(_Upload(memoryview(data)[gone:], body))
            self._check()
        except BaseException:
            self.close()
            raise
        self._header_timeout.stop(self)
        self._idle_timeout.stop(self)
        return parser

    def _check(self) -> None:
        """A deadline may have passed in the moment in which the last byte came."""
        if self._failure is not None:
            raise self._failure

    def _send_first(self, data: bytes, dispatch: Dispatch) -> int:
        """Start sending. A plain socket that refuses has sent nothing; of TLS that cannot be said."""
        before = dispatch.sent
        dispatch.sent = True
        try:
            return self._socket.send_now(data)
        except OSError as error:
            dispatch.sent = before or self._socket.is_tls
            raise _lost(error, sent=dispatch.sent) from error

    async def _read(self) -> None:
        """Wait for one read and feed it to the parser."""
        try:
            data = await self._socket.receive()
        except (OSError, trio.ClosedResourceError) as error:
            if self._failure is not None:
                raise self._failure from None
            if isinstance(error, trio.ClosedResourceError):
                raise
            raise _lost(error, sent=True) from error
        if data:
            self.parser.feed(data)
        else:
            self.parser.end()

    async def receive(self) -> bytes:
        """Wait for the next piece of the response's body; empty at its clean end. Waits only if it has to.

        Raises:
            UpstreamFailure: the body broke off, stalled or is malformed.
        """
        parser = self.parser
        pieces = parser.pieces
        if not pieces:
            if parser.complete:
                return b""
            while not pieces and not parser.complete:
                self._idle_timeout.start(self)
                await self._read()
            self._idle_timeout.stop(self)
            if not pieces:
                return b""
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return data

    async def _converse(self, upload: _Upload) -> None:
        """Send what is left of the request while waiting for the head of the response."""
        parser = self.parser
        failure: UpstreamFailure | None = None
        self._idle_timeout.start(self)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._upload, upload, nursery.cancel_scope)
            try:
                while not parser.head_complete:
                    await self._read()
                    if not self.request_done:
                        self._idle_timeout.start(self)
            except UpstreamFailure as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if not parser.head_complete and upload.error is not None:
            raise upload.error

    async def _upload(self, upload: _Upload, scope: trio.CancelScope) -> None:
        try:
            await self._send_rest(upload)
        except Exception as error:  # noqa: BLE001 - the caller's body may raise anything, and gets it back
            upload.error = error
            scope.cancel()

    async def _send_rest(self, upload: _Upload) -> None:
        """Send everything, as long as the upstream takes it."""
        body = upload.body
        if not await self._send(upload.started):
            return
        if body is None or isinstance(body, bytes):
            if await self._send(memoryview(body or b"")):
                self._finish_request()
            return
        chunked = body.content_length is None
        async with aclosing(BodyReader(body)) as reader:
            self._reader = reader
            async for piece in reader:
                if not await self._send(memoryview(chunk(piece) if chunked else piece)):
                    return
            # No checkpoint lies between the last byte and this, or a quick answer would pass for an early one.
            if not chunked or await self._send(memoryview(LAST_CHUNK)):
                self._finish_request()

    def _finish_request(self) -> None:
        self.request_done = True
        self._idle_timeout.stop(self)
        self._header_timeout.start(self)

    async def _send(self, data: memoryview) -> bool:
        """Send `data`; False where the upstream takes no more.

        It may have answered before it stopped reading, so what matters then is what there is to read.
        """
        try:
            while data:
                # An upstream that takes everything at once must not keep other requests, or its answer, waiting.
                await trio.lowlevel.checkpoint()
                data = data[await self._socket.send(data) :]
                self._idle_timeout.start(self)
        except (OSError, trio.ClosedResourceError):
            return False
        return True


@define
class _Upload:
    """The rest of what was begun to be sent, what comes after it, and what the caller's body raised."""

    started: memoryview
    body: bytes | RequestBody | None
    error: Exception | None = None


def _lost(error: OSError, *, sent: bool) -> Disconnected:
    return Disconnected(f"the connection to the upstream was lost: {describe_error(error)}", sent=sent)
