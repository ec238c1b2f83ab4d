"""Writing a request down (RFC 9112 §3, §5): the head, and the framing of its body."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Final, Self

from attrs import define

from llm_proxy.gateway.upstream.interface import RequestBody

#: Methods whose requests usually have a body: without one they say so (RFC 9110 §8.6).
_ANTICIPATE_CONTENT: Final = frozenset({b"POST", b"PUT", b"PATCH"})

_OURS: Final = (b"\r\nhost:", b"\r\ncontent-length:", b"\r\ntransfer-encoding:")

#: The end of a chunked body without trailers (RFC 9112 §7.1).
LAST_CHUNK: Final = b"0\r\n\r\n"


@define
class Request:
    """One request, ready to be sent.

    Attributes:
        method, target, headers: as the caller gave them; `headers` without Host and framing.
        body: the whole body, a stream of it, or None.
        length: bytes of the body; None where there is none, or where it is sent chunked.
        head: request line and header section as HTTP/1.1 writes them, blank line included.
    """

    method: bytes
    target: bytes
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes | RequestBody | None
    length: int | None
    head: bytes


def write_down(
    method: bytes,
    target: bytes,
    authority: bytes,
    headers: Sequence[tuple[bytes, bytes]],
    body: bytes | RequestBody | None,
) -> Request:
    """Check the parts of a request and put its head together.

    Args:
        method: the method.
        target: the request target, in origin form.
        authority: the value of Host.
        headers: all other fields, those of the framing excepted.
        body: the content.

    Raises:
        ValueError: the parts would not read back as exactly this one request: a line break, a NUL, a blank in the
            request line, or a field of the framing among `headers`. The words never hold a value.
    """
    length: int | None
    if body is None:
        length = None
        framing = b"Content-Length: 0\r\n\r\n" if method in _ANTICIPATE_CONTENT else b"\r\n"
    else:
        length = len(body) if isinstance(body, bytes) else body.content_length
        framing = b"Transfer-Encoding: chunked\r\n\r\n" if length is None else b"Content-Length: %d\r\n\r\n" % length
    return Request(method, target, headers, body, length, _head(method, target, authority, headers) + framing)


def _head(method: bytes, target: bytes, authority: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    fields = b"".join([b"%b: %b\r\n" % pair for pair in headers])
    # One look over the joined section is cheaper than one per field, and sees the same.
    if fields.count(b"\n") != len(headers) or fields.count(b"\r") != len(headers) or b"\0" in fields:
        raise ValueError("a header field of the request holds a line break or a NUL")
    lowered = b"\r\n" + fields.lower()
    for name in _OURS:
        if name in lowered:
            raise ValueError("Host and framing of a request are set by the upstream client alone")
    line = b"%b %b HTTP/1.1\r\nHost: %b\r\n" % (method, target, authority)
    if line.count(b" ") != 3 or line.count(b"\n") != 2 or line.count(b"\r") != 2 or b"\0" in line or not target:
        raise ValueError("the method or the target of the request does not fit into a request line")
    return line + fields


class BodyReader:
    """Reads a caller's body piece by piece, and holds it to the length that it announced.

    Attributes:
        pulling: the caller is being waited for, or was when it failed or was cancelled.
    """

    __slots__ = ("_left", "_length", "_pieces", "pulling")

    def __init__(self, body: RequestBody) -> None:
        """Begin to iterate over `body`."""
        self._length = self._left = body.content_length
        self._pieces = aiter(body)
        self.pulling = False

    def __aiter__(self) -> Self:
        """Pieces are read once only."""
        return self

    async def __anext__(self) -> bytes:
        """The next piece that is not empty. Once the announced length is reached, nothing more is asked for.

        Raises:
            ValueError: the body is longer or shorter than it said, and its request can only be broken off.
        """
        left = self._left
        piece = b"" if left == 0 else await self._pull()
        if left is not None:
            if len(piece) > left:
                raise ValueError(f"the request body is longer than the {self._length} bytes that it announced")
            if left and not piece:
                raise ValueError(f"the request body ended {left} bytes before the {self._length} that it announced")
            self._left = left - len(piece)
        if not piece:
            raise StopAsyncIteration
        return piece

    async def _pull(self) -> bytes:
        self.pulling = True
        found = b""
        async for piece in self._pieces:
            if piece:
                found = piece
                break
        self.pulling = False
        return found

    async def aclose(self) -> None:
        """Let an async generator clean up now, rather than when it is garbage."""
        if isinstance(self._pieces, AsyncGenerator):
            await self._pieces.aclose()


def chunk(piece: bytes) -> bytes:
    """One chunk (RFC 9112 §7.1). `piece` must not be empty: an empty chunk is the end."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)
