"""Parser of HTTP/1 responses, sans-I/O: llhttp, and the rules of RFC 9112 section 6 that it leaves to its user."""

from __future__ import annotations

from typing import Final

import httptools

#: Bytes of an error body that are kept, for its code and message.
_KEPT: Final = 65_536
_MAX_HEAD: Final = 1_048_576


class BadAnswer(Exception):
    """The bytes are not an HTTP/1 response, or continue after its end."""


class Truncated(BadAnswer):
    """The connection was closed before the response was complete."""


class Answer:
    """One response as it arrives."""

    # Defaults of the class, so that a response sets only what differs: there is one for each request.
    status = 0  # until the head is complete
    complete = False  # the response has its correct end
    keeps = True  # the connection may be used again
    stream = False  # the head does not announce the length
    pieces = 0  # complete chunks; in a stream without chunks, arrivals
    size = 0  # bytes so far, with the head
    received = 0  # bytes of the body so far
    body = b""  # the first bytes of an error body; empty for all other responses
    _has_length = False
    _chunked = False

    def __init__(self, *, bodiless: bool = False) -> None:
        self._bodiless = bodiless
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Parse bytes. Raises BadAnswer."""
        self.size += len(data)
        if self.complete and data:
            raise BadAnswer("bytes after the end of the response")
        received = self.received
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise BadAnswer(str(error)) from None
        if not self.status and self.size > _MAX_HEAD:
            raise BadAnswer("the head is too long")
        if self.stream and not self._chunked:
            self.pieces += self.received > received

    def end(self) -> None:
        """The connection was closed. Raises Truncated unless that is the end of the response."""
        if self.stream and not self._chunked:
            self.complete = True
        if not self.complete:
            raise Truncated("closed before the response was complete")

    # Called by llhttp.

    def on_message_begin(self) -> None:
        if self.complete:
            raise BadAnswer("bytes after the end of the response")

    def on_header(self, name: bytes, _value: bytes) -> None:
        name = name.lower()
        if name == b"content-length":
            self._has_length = True
        elif name == b"transfer-encoding":
            self._chunked = True

    def on_headers_complete(self) -> None:
        """Read the status; an interim response is followed by the final one."""
        status = self._parser.get_status_code()
        if status == 101 or self._parser.get_http_version() not in {"1.1", "1.0"}:
            raise BadAnswer("not a response of HTTP/1")
        if status >= 200:
            self.status = status
            self.keeps = self._parser.should_keep_alive()
            self.complete = self._bodiless = self._bodiless or status in {204, 304}
            self.stream = not self._has_length and not self._bodiless

    def on_body(self, data: bytes) -> None:
        if self.complete:
            raise BadAnswer("a body that must not be there")
        self.received += len(data)
        if self.status >= 400:
            self.body = (self.body + data)[:_KEPT]

    def on_chunk_complete(self) -> None:
        """Count a chunk. The last one is not a piece."""
        self.pieces += 1

    def on_message_complete(self) -> None:
        if self.status:
            self.complete = True
            self.pieces -= self._chunked
