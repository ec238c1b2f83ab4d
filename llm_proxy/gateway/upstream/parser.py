"""Responses from bytes without I/O: llhttp, and the rules of RFC 9112 that it leaves to its caller.

A parser serves one connection. For each request, `begin` says whether a body can follow; `feed` takes bytes as they
arrive, and `end` the end of the stream. The attributes have the result so far. After an error the connection cannot be
used: a response whose framing is ambiguous is refused, never repaired.

    begin → feed … → head_complete → feed … → complete → begin → …

Framing (RFC 9112 §6.3) in the order of its rules: no body after HEAD, 204, 304; `Transfer-Encoding: chunked`, and no
other coding; one `Content-Length`; else until the connection closes.
"""

from __future__ import annotations

import re
from typing import Final

import httptools

from llm_proxy.gateway.upstream.failures import Disconnected, MalformedResponse, UnexpectedUpgrade

#: Maximum number of bytes in the heads of one exchange, interim responses included.
HEAD_LIMIT: Final = 65536

#: Maximum number of bytes of chunk sizes, extensions and trailers in a row, without a byte of content.
OVERHEAD_LIMIT: Final = 65536

#: Maximum number of interim responses to one request.
INTERIM_LIMIT: Final = 64

_LONG_HEAD: Final = f"the response head is longer than {HEAD_LIMIT} bytes"

_SPECIAL: Final = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"content-length"})

_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

_KEEP_ALIVE_TIMEOUT: Final = re.compile(rb"(?:^|[,\s])timeout\s*=\s*\"?(\d{1,6})", re.IGNORECASE)


class ResponseParser:
    """Reads the responses of one connection, one after the other.

    Attributes:
        status, reason, headers: the final response's, once `head_complete`. Names are in lower case.
        pieces: content that was received and not taken yet; the caller clears the list when it takes them.
        complete: the response has ended.
        reusable: by its headers, another response may follow on this connection.
        keep_alive: seconds that the server keeps an idle connection (`Keep-Alive: timeout`); None if it does not say.
    """

    def __init__(self) -> None:
        self._midway = True
        self.begin(bodiless=False)

    def begin(self, *, bodiless: bool) -> None:
        """Expect the response to a request; `bodiless` if its method was HEAD (RFC 9110 §9.3.2)."""
        if self._midway:
            # llhttp still waits for content: it does not know about HEAD.
            self._llhttp = httptools.HttpResponseParser(self)
        self._midway = True
        self._bodiless = bodiless
        self._fault: MalformedResponse | None = None
        self._head_size = 0
        self._overhead = 0
        self._interims = 0
        self.pieces: list[bytes] = []
        self.head_complete = False
        self.complete = False
        self.reusable = False
        self.keep_alive: int | None = None
        self._reset_head()

    def _reset_head(self) -> None:
        self.status = 0
        self.reason = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self._interim = False
        self._chunked = False
        self._until_close = False
        self._keep = False
        self._close = False
        self._encodings = 0
        self._length: bytes | None = None

    def feed(self, data: bytes) -> None:
        """Take at least one byte; raises `MalformedResponse` if they are not (the rest of) the response, or more."""
        if self.head_complete:
            self._feed_body(data)
        else:
            self._feed_head(data)

    def _feed_head(self, data: bytes) -> None:
        if not self._head_size and data[0] != 0x48:
            # llhttp would skip line breaks, and accepts RTSP.
            raise _malformed("the response does not begin with 'HTTP/'")
        if self._bodiless:
            self._feed_bodiless(data)
            return
        room = HEAD_LIMIT - self._head_size
        if len(data) <= room:
            self._head_size += len(data)
            self._execute(data)
            return
        self._head_size = HEAD_LIMIT
        if room:
            self._execute(data[:room])
        if not self.head_complete:
            raise _malformed(_LONG_HEAD)
        self._feed_body(data[room:])

    def _feed_body(self, data: bytes) -> None:
        if self.complete and self._bodiless:
            self._excess()
            return
        taken = len(self.pieces)
        self._execute(data)
        if len(self.pieces) != taken:
            self._overhead = 0
        elif not self.complete:
            self._overhead += len(data)
            if self._overhead > OVERHEAD_LIMIT:
                raise _malformed("the chunk extensions or trailers are too long")

    def _feed_bodiless(self, data: bytes) -> None:
        """Find the exact end of the head of a response to HEAD: llhttp would read what follows as its content."""
        for position in range(len(data)):
            if self.complete:
                self._excess()
                return
            self._head_size += 1
            if self._head_size > HEAD_LIMIT:
                raise _malformed(_LONG_HEAD)
            self._execute(data[position : position + 1])

    def end(self) -> None:
        """Take the orderly end of the stream; raises `Disconnected` in the middle of a response, or before one."""
        if self.head_complete and self._until_close:
            self.complete = True
        if self.complete:
            return
        if self.head_complete:
            where = "in the middle of a response body"
        else:
            where = "in the middle of a response head" if self._head_size else "before it answered"
        raise Disconnected(f"the upstream closed the connection {where}", sent=True)

    def _execute(self, data: bytes) -> None:
        try:
            self._llhttp.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self._fault is None:
                if not self.complete:
                    raise _malformed(str(error).lower() or "unreadable") from None
                self._excess()
        if self._fault is not None:
            raise self._fault

    def _excess(self) -> None:
        """Bytes came after the end of the response, maybe a forged response: the connection is not used again.

        If the response has a length, that length may be wrong, so it is malformed (RFC 9112 §6.3).
        """
        self.reusable = False
        if not self._bodiless and self._fault is None:
            self._fault = _malformed("there is more data than the response announced")

    # llhttp calls the following methods. An exception would lose its reason there, so faults are kept until it returns.

    def on_message_begin(self) -> None:
        if self.complete:
            self._excess()

    def on_status(self, reason: bytes) -> None:
        if not self.complete:
            self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field. Trailer fields are dropped (RFC 9112 §7.1.2)."""
        if self.head_complete:
            return
        name = name.lower()
        value = value.rstrip()
        self.headers.append((name, value))
        if name not in _SPECIAL:
            return
        if name == b"content-length":
            self._length = value
        elif name == b"transfer-encoding":
            self._encodings += 1
            self._chunked = value.lower() == b"chunked"
        elif name == b"connection":
            options = [option.strip() for option in value.lower().split(b",")]
            self._close |= b"close" in options
            self._keep |= b"keep-alive" in options
        elif match := _KEEP_ALIVE_TIMEOUT.search(value):
            self.keep_alive = int(match[1])

    def on_headers_complete(self) -> None:
        if self.head_complete:
            return
        status = self.status = self._llhttp.get_status_code()
        version = self._llhttp.get_http_version()
        fault: str | None = None
        if version not in {"1.1", "1.0"}:
            fault = f"HTTP version {version}"
        elif status < 100:
            fault = "the status code is below 100"
        elif self.reason != b"OK" and _CONTROL.search(self.reason):
            fault = "control characters in the reason phrase"
        elif self._encodings and (self._encodings > 1 or not self._chunked):
            fault = "a transfer coding other than 'chunked'"
        elif self._encodings and version == "1.0":
            fault = "a transfer coding in HTTP/1.0"
        elif status < 200:
            fault = self._check_interim()
        if fault is not None:
            if self._fault is None:
                self._fault = _malformed(fault)
            return
        if status < 200:
            return
        self.head_complete = True
        bodiless = self._bodiless = self._bodiless or status in {204, 304}
        self._until_close = not (bodiless or self._chunked or self._length is not None)
        self.reusable = not (self._close or self._until_close) and (version == "1.1" or self._keep)
        self.complete = bodiless

    def _check_interim(self) -> str | None:
        """An interim response has no content (RFC 9110 §15.2); 101 would end HTTP on this connection."""
        self._interim = True
        self._interims += 1
        if self.status == 101:
            self._fault = UnexpectedUpgrade("the upstream switched protocols (101) unasked", sent=True)
        if self._chunked or (self._length or b"0").strip(b"0"):
            return "an interim response with content"
        if self._interims > INTERIM_LIMIT:
            return f"more than {INTERIM_LIMIT} interim responses"
        return None

    def on_body(self, piece: bytes) -> None:
        if self.complete:
            self._excess()
        else:
            self.pieces.append(piece)

    def on_message_complete(self) -> None:
        if self._interim:
            self._reset_head()
            return
        self._midway = False
        self.complete = True


def _malformed(what: str) -> MalformedResponse:
    return MalformedResponse(f"the upstream's response is malformed: {what}", sent=True)
