"""Serializer of responses: ASGI messages in, bytes out, without I/O."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Final

TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROLS: Final = bytes([*range(0x09), *range(0x0A, 0x20), 0x7F])
_DIGITS: Final = re.compile(rb"[0-9]{1,19}")
_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode("ascii") for status in HTTPStatus
}
_KNOWN_NAMES: Final[set[bytes]] = set()
"""Valid header names, in the spelling of the application, without those of `_FRAMING`; at most 512."""
_KNOWN_NAMES_LIMIT: Final = 512
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"date"})
_CONNECTION_SPECIFIC: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


@lru_cache(maxsize=1)
def _date_line(now: int) -> bytes:
    """Return the `Date` header line of this second (RFC 9110 section 6.6.1)."""
    return f"date: {formatdate(now, usegmt=True)}\r\n".encode("ascii")


class InvalidResponse(Exception):
    """The application sent a message that is not a valid part of a response."""


class ResponseWriter:
    """Frames one response (RFC 9112 sections 6 and 7).

    Attributes:
        keep_alive: whether another request may follow on the connection.
        delimited: whether the client can detect an incomplete response when the connection is closed; false only if
            the end of the connection is the end of the body.
    """

    __slots__ = ("_bodiless", "_chunked", "_modern", "_remaining", "_upgrade", "delimited", "keep_alive")

    def __init__(self, *, method: str, version: str, keep_alive: bool) -> None:
        self.keep_alive = keep_alive
        self.delimited = True
        self._modern = version == "1.1"
        self._bodiless = method == "HEAD"
        self._chunked = False
        self._upgrade = b""
        self._remaining: int | None = None

    def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """Return the status line and header section. Raises InvalidResponse if one of them is invalid."""
        _check_status(status)
        lines = []
        length: int | None = None
        dated = False
        for name, value in headers:
            if name in _KNOWN_NAMES:
                lines.append(b"%b: %b\r\n" % (name, value))
                continue
            lower = name.lower()
            if lower in _FRAMING:
                if lower == b"content-length":
                    length = _length(value, length)
                    continue
                if lower != b"date":
                    self._note_framing(lower, value)
                    continue
                dated = True
            else:
                _check_name(name)
            lines.append(b"%b: %b\r\n" % (name, value))
        block = b"".join(lines)
        if len(block.translate(None, _CONTROLS)) != len(block) - 2 * len(lines):
            raise InvalidResponse("a header value holds a control character")
        return b"".join(
            (
                _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status,
                block,
                b"" if dated else _date_line(int(time.time())),
                self._frame(status, length),
            )
        )

    def _note_framing(self, name: bytes, value: bytes) -> None:
        if name == b"connection":
            options = [option.strip().lower() for option in value.split(b",")]
            if b"close" in options:
                self.keep_alive = False
            if b"upgrade" in options:  # RFC 9110 section 7.8: without it, `Upgrade` says nothing
                self._upgrade = b"connection: upgrade\r\n"
        elif name == b"transfer-encoding" and value.strip().lower() != b"chunked":
            raise InvalidResponse(f"cannot send the transfer coding {bytes(value)!r}")

    def _frame(self, status: int, length: int | None) -> bytes:
        """Decide how the client finds the end of the body (RFC 9112 section 6.3)."""
        framing = self._upgrade
        self._bodiless = self._bodiless or status in {204, 304}
        self._remaining = length
        if length is not None and status != 204:
            framing += b"content-length: %d\r\n" % length
        elif self._modern and not self._bodiless:
            self._chunked = True
            framing += b"transfer-encoding: chunked\r\n"
        elif not self._bodiless:
            self.delimited = False
            self.keep_alive = False
        if not self.keep_alive:
            return framing + b"connection: close\r\n\r\n"
        return framing + (b"\r\n" if self._modern else b"connection: keep-alive\r\n\r\n")

    @property
    def probe(self) -> bytes:
        """Bytes that may be sent between two pieces of the body without a meaning: a zero before a chunk's size."""
        return b"0" if self._chunked else b""

    def body(self, data: bytes, *, more: bool) -> bytes:
        """Return a piece with its framing. Raises InvalidResponse if `Content-Length` and the body differ in length."""
        if self._bodiless:
            return b""
        if self._chunked:
            if not data:
                return b"" if more else b"0\r\n\r\n"
            return b"%x\r\n%b\r\n" % (len(data), data) if more else b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)
        if self._remaining is not None:
            self._remaining -= len(data)
            if self._remaining < 0 or (self._remaining and not more):
                raise InvalidResponse("the body does not have the length of its Content-Length")
        return data


def checked_fields(status: int, headers: Iterable[tuple[bytes, bytes]]) -> tuple[list[tuple[bytes, bytes]], int | None]:
    """Return response headers for HTTP/2, and their content length.

    Names are in lower case, connection-specific headers are removed (RFC 9113 section 8.2.2), and `date` is added.
    Raises as `ResponseWriter.start`.
    """
    _check_status(status)
    fields = []
    length: int | None = None
    dated = False
    for name, value in headers:
        lower = bytes(name).lower()
        if lower in _CONNECTION_SPECIFIC:
            continue
        if lower not in _KNOWN_NAMES:
            _check_name(lower)
        if len(bytes(value).translate(None, _CONTROLS)) != len(value):
            raise InvalidResponse("a header value holds a control character")
        if lower == b"content-length":
            length = _length(value, length)
        dated = dated or lower == b"date"
        fields.append((lower, bytes(value).strip(b" \t")))
    if not dated:
        fields.append((b"date", _date_line(int(time.time()))[6:-2]))
    return fields, length


def _check_status(status: int) -> None:
    if not 200 <= status <= 999:
        raise InvalidResponse(f"{status} is not the status of a final response")


def _length(value: bytes, before: int | None) -> int:
    if not _DIGITS.fullmatch(value) or before not in {None, int(value)}:
        raise InvalidResponse(f"bad Content-Length {bytes(value)!r}")
    return int(value)


def _check_name(name: bytes) -> None:
    if not TOKEN.fullmatch(name):
        raise InvalidResponse(f"{bytes(name)!r} is not a header name")
    if len(_KNOWN_NAMES) < _KNOWN_NAMES_LIMIT and name.lower() not in _FRAMING:
        _KNOWN_NAMES.add(bytes(name))
