"""One connection to an upstream, and the exchanges that it carries one after the other.

A request that fits into one write is sent without a task of its own. A longer one is sent beside the wait for the
response, because an upstream may answer early (with a 413, say) and read no further: then sending stops, the response
is delivered and the connection is not used again (RFC 9112 §9.3).

However an exchange fails or is cancelled, the socket is closed before the exception leaves this module.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Final

import trio
from attrs import define

from llm_proxy.proxy.upstream.failures import Disconnected, HeaderTimeout, IdleTimeout, UpstreamFailure
from llm_proxy.proxy.upstream.parser import ResponseParser
from llm_proxy.proxy.upstream.request import LAST_CHUNK, chunk
from llm_proxy.proxy.upstream.wire import words

if TYPE_CHECKING:
    from llm_proxy.proxy.upstream.interface import Dispatch, RequestBody
    from llm_proxy.proxy.upstream.watch import Watch
    from llm_proxy.proxy.upstream.wire import Wire

#: A body up to this many bytes goes out in one write with its head.
SMALL_BODY: Final = 65536


class Connection:
    """A wire, the parser of what it brings, and the deadlines that hold for it.

    Attributes:
        parser: what is known of the current response.
        request_done: the current request was sent whole.
        best_before: trio time after which the idle connection is not used again.
    """

    __slots__ = (
        "_failure",
        "_header_watch",
        "_idle_watch",
        "_pulling",
        "_wire",
        "best_before",
        "parser",
        "request_done",
    )

    def __init__(self, wire: Wire, header_watch: Watch, idle_watch: Watch) -> None:
        """Take over a connected wire."""
        self._wire = wire
        self._header_watch = header_watch
        self._idle_watch = idle_watch
        self._failure: UpstreamFailure | None = None
        self._pulling = False
        self.parser = ResponseParser()
        self.request_done = False
        self.best_before = 0.0

    @property
    def is_reusable(self) -> bool:
        """Has the exchange ended cleanly on both sides, with the connection fit for the next?"""
        parser = self.parser
        return parser.complete and parser.reusable and self.request_done and self._failure is None

    def is_quiet(self) -> bool:
        """Is the idle connection still there, with nothing to read on it?"""
        return self._wire.is_quiet()

    def close(self) -> None:
        """Close the socket at once. Idempotent."""
        self._header_watch.stop(self)
        self._idle_watch.stop(self)
        self._wire.close()

    def expire(self, watch: Watch) -> None:
        """A deadline has passed: whoever waits on this connection gets the failure."""
        seconds = f"{watch.seconds:g} s"
        if watch is self._header_watch:
            self._failure = HeaderTimeout(f"the upstream did not answer within {seconds}", sent=True)
        elif self._pulling:
            self._failure = IdleTimeout(
                f"the client sent nothing of its request body for {seconds}", sent=True, waiting_for="body"
            )
        else:
            self._failure = IdleTimeout(f"no byte went to or came from the upstream for {seconds}", sent=True)
        self._wire.close()

    async def exchange(
        self, head: bytes, body: bytes | RequestBody | None, dispatch: Dispatch, *, head_only: bool
    ) -> None:
        """Send a request and wait for the head of its final response; `parser` has it then.

        Args:
            head: request line and header section.
            body: content; its framing is said in `head`.
            dispatch: learns whether a byte went out.
            head_only: the method is HEAD.

        Raises:
            UpstreamFailure: with `sent` false only if not a byte went out and nothing of the body was taken.
        """
        self.parser.begin(bodiless=head_only)
        self.request_done = False
        stream: RequestBody | None = None
        if body is None:
            data = head
        elif not isinstance(body, bytes):
            data, stream = head, body
        elif len(body) <= SMALL_BODY:
            data, body = head + body, None
        else:
            data = head
        try:
            gone = self._send_first(data, dispatch)
            if gone == len(data) and body is None:
                self.request_done = True
                self._header_watch.start(self)
                await self._read_head()
            else:
                rest = [memoryview(data)[gone:]]
                if isinstance(body, bytes):
                    rest.append(memoryview(body))
                await self._converse(rest, stream)
        except BaseException:
            self.close()
            raise
        self._header_watch.stop(self)
        self._idle_watch.stop(self)

    def _send_first(self, data: bytes, dispatch: Dispatch) -> int:
        """Start sending. A plain socket that refuses has sent nothing; of TLS that cannot be said."""
        before = dispatch.sent
        dispatch.sent = True
        try:
            return self._wire.send_now(data)
        except OSError as error:
            dispatch.sent = before or self._wire.is_tls
            raise _lost(error, sent=dispatch.sent) from error

    async def _read_head(self) -> None:
        parser = self.parser
        while not parser.head_complete:
            await self._read()

    async def _read(self) -> None:
        """Wait for one read and feed it to the parser."""
        try:
            data = await self._wire.receive()
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

    async def read_body(self) -> None:
        """Read until there is content in the parser, or the response is complete.

        Raises:
            UpstreamFailure: the body broke off, stalled or is malformed; the connection is closed.
        """
        parser = self.parser
        try:
            while not parser.pieces and not parser.complete:
                self._idle_watch.start(self)
                await self._read()
        except BaseException:
            self.close()
            raise
        self._idle_watch.stop(self)

    async def _converse(self, rest: list[memoryview], stream: RequestBody | None) -> None:
        """Send what is left of the request while waiting for the head of the response."""
        parser = self.parser
        failure: UpstreamFailure | None = None
        upload = _Upload(rest, stream)
        self._idle_watch.start(self)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._upload, upload, nursery.cancel_scope)
            try:
                while not parser.head_complete:
                    await self._read()
                    if not self.request_done:
                        self._idle_watch.start(self)
            except UpstreamFailure as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if not parser.head_complete and upload.error is not None:
            raise upload.error

    async def _upload(self, upload: _Upload, scope: trio.CancelScope) -> None:
        try:
            whole = await self._send_rest(upload)
        except Exception as error:  # noqa: BLE001 - the caller's body may raise anything, and gets it back
            upload.error = error
            scope.cancel()
            return
        if whole:
            self.request_done = True
            self._idle_watch.stop(self)
            self._header_watch.start(self)

    async def _send_rest(self, upload: _Upload) -> bool:
        """Send everything; False where the upstream takes no more."""
        for data in upload.rest:
            if not await self._send(data):
                return False
        if upload.stream is None:
            return True
        pieces = aiter(upload.stream)
        try:
            return await self._send_pieces(pieces, upload.stream.content_length)
        finally:
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()

    async def _send_pieces(self, pieces: AsyncIterator[bytes], length: int | None) -> bool:
        left = length
        while piece := await self._pull(pieces):
            if left is None:
                data = chunk(piece)
            elif len(piece) <= left:
                left -= len(piece)
                data = piece
            else:
                raise ValueError(f"the request body is longer than the {length} bytes that it announced")
            if not await self._send(memoryview(data)):
                return False
        if left is None:
            return await self._send(memoryview(LAST_CHUNK))
        if left:
            raise ValueError(f"the request body ended {left} bytes before the {length} that it announced")
        return True

    async def _pull(self, pieces: AsyncIterator[bytes]) -> bytes:
        """The caller's next piece that is not empty; empty at the end."""
        self._pulling = True
        try:
            async for piece in pieces:
                if piece:
                    return piece
            return b""
        finally:
            self._pulling = False

    async def _send(self, data: memoryview) -> bool:
        """Send `data`; False where the upstream takes no more.

        It may have answered before it stopped reading, so what matters then is what there is to read.
        """
        try:
            while data:
                data = data[await self._wire.send(data) :]
                self._idle_watch.start(self)
        except (OSError, trio.ClosedResourceError):
            return False
        return True


@define
class _Upload:
    """What is to be sent, and what became of it."""

    rest: list[memoryview]
    stream: RequestBody | None
    error: Exception | None = None


def _lost(error: OSError, *, sent: bool) -> Disconnected:
    return Disconnected(f"the connection to the upstream was lost: {words(error)}", sent=sent)
