"""Where an answer ends (RFC 9112 section 6), sans-I/O: bytes in, however they are cut, and the same answer out.

Most answers have a Content-Length and come in one piece; for those a few searches within the head are all it takes.
llhttp reads the chunked ones.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import httptools

#: Of the body of an error, how much is kept to read its code and message from.
_KEPT: Final = 65_536
_LONGEST_HEAD: Final = 1_048_576
_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = b"\r\ncontent-length:"
_BEHIND: Final = "the answer goes on behind its end"
_NO_BODY: Final = frozenset({204, 304})


class BadAnswer(Exception):
    """The bytes are no HTTP/1 answer, or go on behind its end."""


class Truncated(BadAnswer):
    """The connection ended before the answer did."""


class Answer:
    """One answer as it arrives.

    Attributes:
        status: of the answer; 0 until its head is complete.
        complete: it has ended as it should.
        keeps: the connection may be used again.
        stream: its length was not said beforehand, so that it comes in pieces.
        pieces: chunks that were complete; in a stream without chunks, arrivals.
        size: bytes so far, the head included.
        received: bytes of the body so far, in whatever framing, as far as they are known.
        body: the beginning of an error's body; empty for all other answers.
    """

    # Defaults of the class, so that an answer sets only what it changes: there is one for each request.
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
        """Wait for the answer to one request; `bodiless` if that was HEAD."""
        self._bodiless = bodiless

    def feed(self, data: bytes) -> None:
        """Take bytes as they came. Raises BadAnswer."""
        self.size += len(data)
        if self._parser is not None:
            self._parse(data)
        elif self.status:
            self._take(data)
        else:
            self._read_head(data)

    def end(self) -> None:
        """The connection has ended. Raises Truncated unless that is the answer's own end."""
        if self._missing is None:
            self.complete = True
        if not self.complete:
            raise Truncated("closed before the answer was complete")

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
            # An interim answer announces the one that counts.
            data = data[end + 4 :]
            end = data.find(_HEAD_END)
        if len(data) > _LONGEST_HEAD:
            raise BadAnswer("the head does not end")
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
        """Take bytes of a body that has a length, or ends with the connection."""
        self.received += len(data)
        if self.status >= 400:
            self._keep(data)
        if self._missing is None:
            self.pieces += bool(data)
            return
        self._missing -= len(data)
        if self._missing < 0:
            raise BadAnswer(_BEHIND)
        self.complete = not self._missing

    def _keep(self, data: bytes) -> None:
        self.body = (self.body + data)[:_KEPT]

    def _parse(self, data: bytes) -> None:
        if self.complete:
            raise BadAnswer(_BEHIND)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise BadAnswer(str(error)) from None

    # What llhttp calls.

    def on_message_begin(self) -> None:
        """Refuse a second answer to one request."""
        if self.complete:
            raise BadAnswer(_BEHIND)

    def on_body(self, data: bytes) -> None:
        """Take the payload of a chunk, or a part of it."""
        self.received += len(data)
        if self.status >= 400:
            self._keep(data)

    def on_chunk_complete(self) -> None:
        """Count a chunk."""
        self.pieces += 1

    def on_message_complete(self) -> None:
        """Take note of the end; the chunk that says so is no piece."""
        self.complete = True
        self.pieces -= 1


@lru_cache(maxsize=1024)
def _status(line: bytes) -> int:
    """The status in the beginning of a head, in lower case; a server's answers have few different ones."""
    if not line.startswith((b"http/1.1 ", b"http/1.0 ")) or line[12:] not in (b" ", b"\r", b""):
        raise BadAnswer("the answer is not HTTP/1")
    return _number(line[9:12])


def _length(text: bytes) -> int:
    return _number(text.strip(b" \t"))


def _number(text: bytes) -> int:
    if not text.isdigit():
        raise BadAnswer("a number in the head is none")
    return int(text)
