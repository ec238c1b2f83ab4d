"""One connection to an upstream. It carries one exchange after the other.

A request that fits into one write is sent without a task of its own. A longer one is sent by a second task while this
one waits for the response: an upstream may answer early (for example with 413) and stop reading. Then sending stops,
the response is delivered, and the connection is not used again (RFC 9112 §9.3).

If an exchange fails or is cancelled, its socket is closed before the caller continues: by this class until there is a
response, then by the response, which owns the connection from then on.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Final

import trio
from attrs import define

from llm_proxy.gateway.upstream.failures import Disconnected, HeaderTimeout, ReadTimeout, UpstreamFailure
from llm_proxy.gateway.upstream.parser import ResponseParser
from llm_proxy.gateway.upstream.request import LAST_CHUNK, BodyReader, chunk
from llm_proxy.net.client_socket import describe_error

if TYPE_CHECKING:
    from llm_proxy.gateway.upstream.request import Dispatch, Request, RequestBody
    from llm_proxy.net.client_socket import ClientSocket
    from llm_proxy.net.timeouts import TimeoutWheel

#: A body of up to this many bytes is sent in one write with its head.
SMALL_BODY: Final = 65536


class Connection:
    """A socket, the parser of its responses, and its timeouts.

    Attributes:
        parser: what is known of the current response.
        request_done: the current request was sent completely.
        expires: trio time after which the idle connection is not used again.
        fileno, is_quiet, watch: of the socket, see `ClientSocket`.
    """

    def __init__(self, connected: ClientSocket, header_timeout: TimeoutWheel, read_timeout: TimeoutWheel) -> None:
        self._socket = connected
        self.fileno = connected.fileno
        self.is_quiet = connected.is_quiet
        self.watch = connected.watch
        self._header_timeout = header_timeout
        self._read_timeout = read_timeout
        self._failure: UpstreamFailure | None = None
        self._reader: BodyReader | None = None
        self.parser = ResponseParser()
        self.request_done = False
        self.expires = 0.0

    @property
    def is_reusable(self) -> bool:
        parser = self.parser
        return parser.complete and parser.reusable and self.request_done and self._failure is None

    def close(self) -> None:
        self._header_timeout.stop(self)
        self._read_timeout.stop(self)
        self._socket.close()

    def expire(self, wheel: TimeoutWheel) -> None:
        """A timeout has passed: tasks that wait for this connection get the failure."""
        seconds = f"{wheel.seconds:g} s"
        if wheel is self._header_timeout:
            self._failure = HeaderTimeout(f"the upstream did not answer within {seconds}", sent=True)
        elif self._reader is not None and self._reader.waiting:
            self._failure = ReadTimeout(
                f"the client sent nothing of its request body for {seconds}", sent=True, waiting_for="body"
            )
        else:
            self._failure = ReadTimeout(f"no byte was sent to or received from the upstream for {seconds}", sent=True)
        self._socket.close()

    async def exchange(self, request: Request, dispatch: Dispatch) -> None:
        """Send a request and wait for the head of its final response, which `parser` then has.

        Raises any exception of the request's body, and `UpstreamFailure`; its `sent` is false only if no byte was sent
        and nothing of the body was read.
        """
        parser = self.parser
        parser.begin(bodiless=request.is_head)
        self.request_done = False
        self._reader = None
        body = request.body
        data = request.head
        if isinstance(body, bytes) and len(body) <= SMALL_BODY:
            data += body
            body = None
        before = dispatch.sent
        dispatch.sent = True
        try:
            try:
                sent = self._socket.send_now(data)
            except OSError as error:
                # A plain socket has sent nothing; TLS may have.
                dispatch.sent = before or self._socket.is_tls
                raise _lost(error, sent=dispatch.sent) from error
            if body is None and sent == len(data):
                self.request_done = True
                self._header_timeout.start(self)
                while not parser.head_complete:
                    await self._read()
            else:
                await self._send_and_read(_Upload(memoryview(data)[sent:], body))
        except BaseException:
            self.close()
            raise
        self._header_timeout.stop(self)
        self._read_timeout.stop(self)
        if self._failure is not None:
            # A timeout has passed, and closed the socket, just when the last byte arrived.
            raise self._failure

    async def _read(self) -> None:
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
        """Return the next piece of the body, or raise an error, as `UpstreamResponse.receive` does."""
        parser = self.parser
        pieces = parser.pieces
        if not pieces and not parser.complete:
            while not pieces and not parser.complete:
                self._read_timeout.start(self)
                await self._read()
            self._read_timeout.stop(self)
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return data

    async def _send_and_read(self, upload: _Upload) -> None:
        parser = self.parser
        failure: UpstreamFailure | None = None
        self._read_timeout.start(self)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._upload, upload, nursery.cancel_scope)
            try:
                while not parser.head_complete:
                    await self._read()
                    if not self.request_done:
                        self._read_timeout.start(self)
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
        except Exception as error:  # noqa: BLE001 - the caller's body may raise anything, and the caller gets it
            upload.error = error
            scope.cancel()

    async def _send_rest(self, upload: _Upload) -> None:
        """Send everything, as long as the upstream reads it."""
        body = upload.body
        if not await self._send(upload.head):
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
            # There is no checkpoint after the last byte, or a quick response would look like an early one.
            if not chunked or await self._send(memoryview(LAST_CHUNK)):
                self._finish_request()

    def _finish_request(self) -> None:
        self.request_done = True
        self._read_timeout.stop(self)
        self._header_timeout.start(self)

    async def _send(self, data: memoryview) -> bool:
        """Send `data`; False if the upstream reads no more. It may have answered, so the caller continues to read."""
        try:
            while data:
                # An upstream that reads very fast must not delay other requests, or its own response.
                await trio.lowlevel.checkpoint()
                data = data[await self._socket.send(data) :]
                self._read_timeout.start(self)
        except (OSError, trio.ClosedResourceError):
            return False
        return True


@define
class _Upload:
    """The rest of the first write, what follows it, and the exception of the caller's body."""

    head: memoryview
    body: bytes | RequestBody | None
    error: Exception | None = None


def _lost(error: OSError, *, sent: bool) -> Disconnected:
    return Disconnected(f"the connection to the upstream was lost: {describe_error(error)}", sent=sent)
