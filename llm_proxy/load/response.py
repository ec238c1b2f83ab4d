"""Parser of HTTP/1 responses (RFC 9112 section 6), sans-I/O: the result does not depend on how the bytes are cut.

Most responses have a Content-Length and arrive in one piece: a few searches in the head are enough for them. llhttp
parses the chunked ones.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import httptools

#: Bytes of an error body that are kept, for its code and message.
_KEPT: Final = 65_536
_MAX_HEAD: Final = 1_048_576
_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = b"\r\ncontent-length:"
_AFTER_END: Final = "bytes after the end of the response"
_NO_BODY: Final = frozenset({204, 304})


class BadAnswer(Exception):
    """The bytes are not an HTTP/1 response, or continue after its end."""


class Truncated(BadAnswer):
    """The connection was closed before the response was complete."""


class Answer:
    """One response as it arrives.

    Attributes:
        status: 0 until the head is complete.
        complete: the response has its correct end.
        keeps: the connection may be used again.
        stream: its head does not announce its length.
        pieces: complete chunks; in a stream without chunks, arrivals.
        size: bytes so far, with the head.
        received: bytes of the body so far.
        body: the first bytes of an error body; empty for all other responses.
    """

    # Defaults of the class, so that a response sets only what differs: there is one for each request.
    status = 0
    complete = False
    keeps = True
    stream = False
    pieces = 0
    size = 0
    received = 0
    body = b""
    _buffer = b""
    _missing: int | None = 0
    _parser: Any = None

    def __init__(self, *, bodiless: bool = False) -> None:
        """Parse the response to one request; `bodiless` if its method was HEAD."""
        self._bodiless = bodiless

    def feed(self, data: bytes) -> None:
        """Parse bytes. Raises BadAnswer."""
        self.size += len(data)
        if self._parser is not None:
            self._parse(data)
        elif self.status:
            self._take(data)
        else:
            self._read_head(data)

    def end(self) -> None:
        """The connection was closed. Raises Truncated unless that is the end of the response."""
        if self._missing is None:
            self.complete = True
        if not self.complete:
            raise Truncated("closed before the response was complete")

    def _read_head(self, data: bytes) -> None:
        seen = len(self._buffer)
        if seen:
            data = self._buffer + data
        end = data.find(_HEAD_END, max(0, seen - 3))
        while end >= 0:
            head = data[:end].lower()
            status = _status(head[:13])
            if status >= 200:
                self.status = status
                self.keeps = head.startswith(b"http/1.1") and b"\r\nconnection: close" not in head
                self._begin_body(head, data, end + 4)
                return
            if status == 101:
                raise BadAnswer("the server changed protocols")
            # The final response follows an interim one.
            data = data[end + 4 :]
            end = data.find(_HEAD_END)
        if len(data) > _MAX_HEAD:
            raise BadAnswer("the head is too long")
        self._buffer = data

    def _begin_body(self, head: bytes, data: bytes, start: int) -> None:
        if self._bodiless or self.status in _NO_BODY:
            self._take(data[start:])
        elif b"\r\ntransfer-encoding:" in head:
            self.stream = True
            self._parser = httptools.HttpResponseParser(self)
            self._parse(data)
        elif (mark := head.find(_LENGTH)) >= 0:
            self._missing = _length(head[mark + len(_LENGTH) :].partition(b"\r")[0])
            self._take(data[start:])
        else:
            self.stream = True
            self.keeps = False
            self._missing = None
            self._take(data[start:])

    def _take(self, data: bytes) -> None:
        """Parse bytes of a body that has a length, or ends with the connection."""
        self.received += len(data)
        if self.status >= 400:
            self._keep(data)
        if self._missing is None:
            self.pieces += bool(data)
            return
        self._missing -= len(data)
        if self._missing < 0:
            raise BadAnswer(_AFTER_END)
        self.complete = not self._missing

    def _keep(self, data: bytes) -> None:
        self.body = (self.body + data)[:_KEPT]

    def _parse(self, data: bytes) -> None:
        if self.complete:
            raise BadAnswer(_AFTER_END)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise BadAnswer(str(error)) from None

    # Called by llhttp.

    def on_message_begin(self) -> None:
        """Refuse a second response to one request."""
        if self.complete:
            raise BadAnswer(_AFTER_END)

    def on_body(self, data: bytes) -> None:
        """Count the payload of a chunk, or a part of it."""
        self.received += len(data)
        if self.status >= 400:
            self._keep(data)

    def on_chunk_complete(self) -> None:
        """Count a chunk."""
        self.pieces += 1

    def on_message_complete(self) -> None:
        """Mark the end. The last chunk is not a piece."""
        self.complete = True
        self.pieces -= 1


@lru_cache(maxsize=1024)
def _status(line: bytes) -> int:
    """The status in the first bytes of a head, in lower case. A server uses few different ones."""
    if not line.startswith((b"http/1.1 ", b"http/1.0 ")) or line[12:] not in (b" ", b"\r", b""):
        raise BadAnswer("the response is not HTTP/1")
    return _number(line[9:12])


def _length(text: bytes) -> int:
    return _number(text.strip(b" \t"))


def _number(text: bytes) -> int:
    if not text.isdigit():
        raise BadAnswer("invalid number in the head")
    return int(text)
