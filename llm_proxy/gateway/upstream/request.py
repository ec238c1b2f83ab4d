"""Requests to bytes (RFC 9112 sections 3 and 5): the head, and the framing of the body."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Final, Protocol, Self

from attrs import define

#: Methods whose requests usually have a body. Without one they say so (RFC 9110 section 8.6).
_ANTICIPATE_CONTENT: Final = frozenset({b"POST", b"PUT", b"PATCH"})

#: It begins with a literal, for which the search skips most of a text.
_FRAMING: Final = re.compile(rb"\n(?:host|content-length|transfer-encoding):")

#: The end of a chunked body without trailers (RFC 9112 section 7.1).
LAST_CHUNK: Final = b"0\r\n\r\n"


class RequestBody(Protocol):
    """A request body that is too long or too slow to be kept in memory. It is iterated at most once."""

    @property
    def content_length(self) -> int | None:
        """Size in bytes; None if it is unknown, and the body is sent chunked."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over pieces of any size."""


@define
class Dispatch:
    """Says whether the upstream may have received a byte of the request, also if `UpstreamPool.send` was cancelled.

    Pass a new one to each `send`. `sent` becomes true just before the first byte may leave this machine.
    """

    sent: bool = False


@define
class Request:
    """One request, ready to be sent.

    Attributes:
        head: request line and header section as HTTP/1.1 writes them, blank line included.
        body: the whole body, a stream of it, or None.
        is_head: the method is HEAD, so the response has no body.
    """

    head: bytes
    body: bytes | RequestBody | None
    is_head: bool


def write_request(
    method: bytes,
    target: bytes,
    authority: bytes,
    headers: Sequence[tuple[bytes, bytes]],
    body: bytes | RequestBody | None,
) -> Request:
    """Check the parts of a request and write its head; `authority` is the value of Host.

    Raises `ValueError` if they would not be read as exactly this one request: a line break, a NUL, a blank in the
    request line, or a framing field among `headers`. The message never contains a value.
    """
    fields = b"\r\n".join([*map(b": ".join, headers), b""])
    # One search in the joined section is cheaper than one per field.
    if fields.count(b"\n") != len(headers) or fields.count(b"\r") != len(headers) or b"\0" in fields:
        raise ValueError("a header field of the request contains a line break or a NUL")
    if _FRAMING.search(b"\n" + fields.lower()):
        raise ValueError("the headers of a request must not include Host, Content-Length or Transfer-Encoding")
    line = b"%b %b HTTP/1.1\r\nHost: %b\r\n" % (method, target, authority)
    if line.count(b" ") != 3 or line.count(b"\n") != 2 or line.count(b"\r") != 2 or b"\0" in line or not target:
        raise ValueError("the method or the target of the request does not fit into a request line")
    if body is None:
        framing = b"Content-Length: 0\r\n\r\n" if method in _ANTICIPATE_CONTENT else b"\r\n"
    else:
        length = len(body) if isinstance(body, bytes) else body.content_length
        framing = b"Transfer-Encoding: chunked\r\n\r\n" if length is None else b"Content-Length: %d\r\n\r\n" % length
    return Request(line + fields + framing, body, method == b"HEAD")


class BodyReader:
    """Reads a caller's body piece by piece, and checks its announced length.

    Attributes:
        waiting: it waits for the caller's body, or did when that failed or was cancelled.
    """

    __slots__ = ("_length", "_pieces", "_remaining", "waiting")

    def __init__(self, body: RequestBody) -> None:
        self._length = self._remaining = body.content_length
        self._pieces = aiter(body)
        self.waiting = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """The next piece that is not empty. After the announced length, nothing more is read.

        Raises `ValueError` if the body is longer or shorter than announced, so that the request has to be aborted.
        """
        remaining = self._remaining
        piece = b""
        if remaining != 0:
            self.waiting = True
            async for piece in self._pieces:
                if piece:
                    break
            self.waiting = False
        if remaining is not None:
            if len(piece) > remaining:
                raise ValueError(f"the request body is longer than the {self._length} announced bytes")
            if remaining and not piece:
                raise ValueError(f"the request body ended {remaining} bytes before the {self._length} announced")
            self._remaining = remaining - len(piece)
        if not piece:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """Close an async generator now, not when it is garbage-collected."""
        if isinstance(self._pieces, AsyncGenerator):
            await self._pieces.aclose()


def chunk(piece: bytes) -> bytes:
    """One chunk (RFC 9112 section 7.1). `piece` must not be empty: an empty chunk is the end."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)
