"""Writing a request down (RFC 9112 §3, §5): the head, and the framing of its body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

#: The value of `length` for a body that is sent chunked.
CHUNKED: Final = -1

#: Methods whose requests usually have a body: without one they say so (RFC 9110 §8.6).
_ANTICIPATE_CONTENT: Final = frozenset({b"POST", b"PUT", b"PATCH"})

_OURS: Final = (b"\r\nhost:", b"\r\ncontent-length:", b"\r\ntransfer-encoding:")

#: The end of a chunked body without trailers (RFC 9112 §7.1).
LAST_CHUNK: Final = b"0\r\n\r\n"


def request_head(
    method: bytes, target: bytes, authority: bytes, headers: Sequence[tuple[bytes, bytes]], length: int | None
) -> bytes:
    """The request line and header section, blank line included.

    Args:
        method: the method.
        target: the request target, in origin form.
        authority: the value of Host.
        headers: all other fields.
        length: bytes of the body, CHUNKED, or None for no body.

    Raises:
        ValueError: the parts would not read back as exactly this one request: a line break, a NUL, a blank in the
            request line, or a field of the framing among `headers`. The words never hold a value.
    """
    fields = b"".join([b"%b: %b\r\n" % pair for pair in headers])
    # One look over the joined section is cheaper than one per field, and sees the same.
    if fields.count(b"\n") != len(headers) or fields.count(b"\r") != len(headers) or b"\0" in fields:
        raise ValueError("a header field of the request holds a line break or a NUL")
    lowered = b"\r\n" + fields.lower()
    for name in _OURS:
        if name in lowered:
            raise ValueError("Host, Content-Length and Transfer-Encoding are set by the upstream client alone")
    line = b"%b %b HTTP/1.1\r\nHost: %b\r\n" % (method, target, authority)
    if line.count(b" ") != 3 or line.count(b"\n") != 2 or line.count(b"\r") != 2 or b"\0" in line or not target:
        raise ValueError("the method or the target of the request does not fit into a request line")
    if length is None:
        framing = b"Content-Length: 0\r\n\r\n" if method in _ANTICIPATE_CONTENT else b"\r\n"
    elif length == CHUNKED:
        framing = b"Transfer-Encoding: chunked\r\n\r\n"
    else:
        framing = b"Content-Length: %d\r\n\r\n" % length
    return line + fields + framing


def chunk(piece: bytes) -> bytes:
    """One chunk (RFC 9112 §7.1). `piece` must not be empty: an empty chunk is the end."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)
