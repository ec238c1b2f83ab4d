"""Parser of requests: bytes in, one request at a time out, without I/O.

Theory of operation. llhttp (in httptools) parses; this module decides what llhttp receives, and where it stops:

- A head is collected until its empty line has arrived, and is fed whole. So each limit is exact for any cutting of the
  bytes, `Upgrade` can be hidden from llhttp (RFC 9110 section 7.8 lets a server ignore it; the application sees it
  after the other headers), and what llhttp tolerates is refused first: other protocols and versions, repeated spaces,
  stray line ends.
- A body is fed up to its end and never beyond: `Content-Length` says where that is, and a chunked message always ends
  in CRLF CRLF, so a cut after each such pair makes the end of the message the end of a piece.
- The bytes after it belong to the next request and are not parsed before `next_request`. So responses are always in
  order, and pipelining needs no more memory than the caller has fed.

The rules are those of RFC 9112 ("HTTP/1.1") and RFC 9110 ("HTTP Semantics"), read strictly: a message that two readers
could understand in two ways is refused.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final

import attrs
import httptools

_REQUEST_LINE: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([!-~]+) HTTP/([0-9]\.[0-9])\r\n")
_STRAY: Final = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|\n[ \t]|\x00")
_UPGRADE: Final = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)
HOST: Final = re.compile(rb"(?:[A-Za-z0-9\-._~%!$&'()*+,;=]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
_ABSOLUTE: Final = re.compile(rb"https?://(?!:)([^/?#@]+)(/[^#]*)?(\?[^#]*)?", re.IGNORECASE)
_CHECKED: Final = frozenset({b"host", b"connection", b"content-length", b"transfer-encoding", b"expect"})
_PREFACE: Final = b"PRI * HTTP/2.0\r\n"
_CHUNK_OVERHEAD: Final = 16 * 1024
"""Bytes of chunk extensions and trailers in one body, beyond what its chunks account for."""
_CHUNK_ALLOWANCE: Final = 16
"""Bytes of framing that each chunk accounts for; its data accounts for as many as it has."""


class RequestError(Exception):
    """A request that the server answers itself: it is malformed, too slow, or the application has not answered it.

    The message is one sentence for the client.
    """

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        self.message = message
        super().__init__(f"{status} {HTTPStatus(status).phrase}: {message}")


class PriorKnowledge(Exception):
    """The client began with HTTP/2's preface on a connection that speaks HTTP/1.1 (RFC 9113 section 3.3)."""


@attrs.define(eq=False)
class Head:
    """A request line and its header section.

    Attributes:
        method: as sent; methods are case-sensitive.
        target: the request target, origin-form or `*`, exactly as sent; of absolute-form, what follows the authority.
        version: `1.0` or `1.1`.
        headers: in order, names in lower case, values without surrounding white space. `host` is the authority of an
            absolute-form target.
        keep_alive: the client allows another request on the connection (RFC 9112 section 9.3).
        expects_continue: the client waits for `100 Continue` before it sends its body (RFC 9110 section 10.1.1).
        content_length: octets of the body; None when the body is chunked.
    """

    method: str
    target: bytes
    version: str
    headers: list[tuple[bytes, bytes]]
    keep_alive: bool
    expects_continue: bool = False
    content_length: int | None = 0


class RequestReader:
    """Parses the requests of one connection, one after another.

    `feed` takes bytes in pieces of any size. `head` is set when the head of a request is complete, `take_body` returns
    what has arrived of the body, `complete` is true if that is all, and `next_request` continues with the next one.
    """

    def __init__(self, max_header_size: int) -> None:
        self.head: Head | None = None
        self.complete = False
        self._max_header_size = max_header_size
        self._pending = b""
        self._searched = 0
        self._parser = httptools.HttpRequestParser(self)
        self._line: tuple[bytes, bytes, bytes] = (b"", b"", b"")
        self._authority: bytes | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._checked: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._error: RequestError | None = None
        self._remaining = 0
        self._tail = b""
        self._overhead = 0

    @property
    def pending(self) -> int:
        """Number of bytes of an incomplete head, or after the end of the current request."""
        return len(self._pending)

    @property
    def has_body(self) -> bool:
        """Whether a piece of the body has arrived that was not taken yet."""
        return bool(self._body)

    @property
    def remaining(self) -> int | None:
        """Octets of the body that have not arrived; None if their number is unknown."""
        return None if self.head is None or self.head.content_length is None else self._remaining

    def feed(self, data: bytes) -> None:
        """Take bytes from the client.

        Raises:
            RequestError: the request is refused; nothing more can be read from this connection.
            PriorKnowledge: the client speaks HTTP/2.
        """
        if self.head is None:
            self._pending = self._pending + data if self._pending else data
            self._read_head()
        elif self.complete:
            self._pending += data
        else:
            self._read_body(data)

    def take_body(self) -> bytes:
        """Return what has arrived of the body since the last call."""
        body = self._body
        if not body:
            return b""
        data = body[0] if len(body) == 1 else b"".join(body)
        body.clear()
        return data

    def next_request(self) -> None:
        """Forget the current request, which is complete, and parse the bytes after it. Raises as `feed`."""
        self.head = None
        self.complete = False
        self._body.clear()
        if self._pending:
            self._read_head()

    def close(self) -> None:
        """Delete the parser, which refers back to this reader; nothing can be fed any more."""
        del self._parser

    def _read_head(self) -> None:
        while self._pending.startswith(b"\r\n"):  # RFC 9112 section 2.2: empty lines before a request are ignored
            self._pending = self._pending[2:]
        pending, limit = self._pending, self._max_header_size
        end = pending.find(b"\r\n\r\n", self._searched, limit) + 4
        if end < 4:
            self._check(pending[: limit + 1])
            if len(pending) > limit:
                if b"\r\n" in pending[:limit]:
                    raise RequestError(431, f"The request line and headers are longer than {limit} bytes.")
                raise RequestError(414, f"The request line is longer than {limit} bytes.")
            self._searched = max(0, len(pending) - 3)
            return
        self._searched = 0
        self._pending = b""
        head, rest = (pending, b"") if end == len(pending) else (pending[:end], pending[end:])
        try:
            self._parse_head(head)
        except (RequestError, PriorKnowledge):
            self._check(head)
            raise
        if rest:
            self.feed(rest)

    def _check(self, beginning: bytes) -> None:
        """Refuse what cannot become a valid head, at once and before any other error is reported."""
        if _STRAY.search(beginning):
            raise RequestError(400, "The request has a stray line end, a folded line or a null byte in its head.")

    def _parse_head(self, head: bytes) -> None:
        match = _REQUEST_LINE.match(head)
        if match is None:
            raise RequestError(400, "The request line is malformed.")
        method, target, version = match.group(1, 2, 3)
        if version not in {b"1.1", b"1.0"}:
            if head.startswith(_PREFACE):
                raise PriorKnowledge
            raise RequestError(505, "The HTTP version is not supported. Supported versions: HTTP/1.0, HTTP/1.1.")
        self._authority = None
        if method == b"CONNECT" or (not target.startswith(b"/") and (method, target) != (b"OPTIONS", b"*")):
            absolute = _ABSOLUTE.fullmatch(target)
            if method == b"CONNECT" or absolute is None:
                raise RequestError(
                    400, "The request target has to be a path that begins with '/', or an http or https URL."
                )
            self._authority, path, query = absolute.group(1, 2, 3)
            # RFC 9112 section 3.2.4: OPTIONS of a URL without a path asks about the server as a whole.
            target = (path or (b"*" if method == b"OPTIONS" and not query else b"/")) + (query or b"")
        self._line = method, target, version
        upgrades: list[tuple[bytes, bytes]] = []
        try:
            self._parse(head)
        except httptools.HttpParserUpgrade:
            # llhttp accepts the upgrade and stops after the head. The body would then be read as a request.
            upgrades = [field for field in self._headers if field[0] == b"upgrade"]
            self.head, self.complete, self._error = None, False, None
            self._parser = httptools.HttpRequestParser(self)
            self._parse(_UPGRADE.sub(b"", head))
        if self._error is not None:
            raise self._error
        if self.head is None:
            raise RequestError(400, "The request head is malformed.")
        self.head.headers += upgrades

    def _read_body(self, data: bytes) -> None:
        if self._remaining:
            data, self._pending = data[: self._remaining], data[self._remaining :]
            self._remaining -= len(data)
            self._parse(data)
            return
        # Search the last bytes that were fed again: the end may be cut in two.
        window, fed = self._tail + data, len(self._tail)
        view = memoryview(window)
        while fed < len(window) and not self.complete:
            end = _end_of_chunks(window, max(0, fed - 3))
            self._overhead += end - fed
            self._parse(view[fed:end])
            fed = end
            if self._overhead > _CHUNK_OVERHEAD:
                raise RequestError(400, "The chunked body is mostly chunk extensions or trailers.")
        self._tail = window[max(0, fed - 4) : fed]
        if self.complete:
            self._pending = window[fed:]

    def _parse(self, data: bytes | memoryview) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserInvalidMethodError as error:
            raise RequestError(501, "The request method is not supported.") from error
        except httptools.HttpParserUpgrade:
            raise
        except httptools.HttpParserError as error:
            raise self._error or RequestError(400, f"The request is malformed: {error}.") from error

    # Called by httptools. `feed_data` would turn an exception of these methods into another one.

    def on_message_begin(self) -> None:
        self._headers = []
        self._checked = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a header; trailers are discarded (RFC 9110 section 6.5.1)."""
        if self.head is None:
            field = name.lower(), value.rstrip(b" \t")
            self._headers.append(field)
            if field[0] in _CHECKED:
                self._checked.append(field)

    def on_headers_complete(self) -> None:
        method, target, version = self._line
        keep_alive = self._parser.should_keep_alive()
        head = Head(method.decode("ascii"), target, version.decode("ascii"), self._headers, keep_alive)
        try:
            _check_fields(head, self._checked, self._authority)
        except RequestError as error:
            self._error = error
        self.head = head
        self._remaining = head.content_length or 0
        self._tail = b""
        self._overhead = 0

    def on_chunk_header(self) -> None:
        """Credit the chunk with its own framing."""
        self._overhead -= _CHUNK_ALLOWANCE

    def on_body(self, data: bytes) -> None:
        self._body.append(data)
        self._overhead -= 2 * len(data)

    def on_message_complete(self) -> None:
        self.complete = True


def _check_fields(head: Head, fields: list[tuple[bytes, bytes]], authority: bytes | None) -> None:
    """Read the headers that concern the connection, and refuse invalid ones.

    `fields` are those of `_CHECKED`, by their exact names: `Content_Length` is a header like any other. llhttp has
    checked that there is at most one `Content-Length`, a number, and no `Transfer-Encoding` beside it.
    """
    checked: dict[bytes, bytes] = {}
    for name, value in fields:
        if name in checked and name != b"connection":
            raise RequestError(400, f"The header '{name.decode()}' was sent twice.")
        checked[name] = checked[name] + b"," + value if name in checked else value
    modern = head.version == "1.1"
    host = checked.get(b"host", None if modern else b"")
    if host is None:
        raise RequestError(400, "The Host header is missing.")
    if not HOST.fullmatch(host):
        raise RequestError(400, "The Host header is malformed.")
    if authority is not None:  # RFC 9112 section 3.2.2: it takes the place of Host
        if not HOST.fullmatch(authority):
            raise RequestError(400, "The authority of the request target is malformed.")
        head.headers = [field for field in head.headers if field[0] != b"host"]
        head.headers.insert(0, (b"host", authority))
    if b"content-length" in checked:
        head.content_length = int(checked[b"content-length"])
    if b"connection" in checked and b"close" in [word.strip().lower() for word in checked[b"connection"].split(b",")]:
        head.keep_alive = False
    if b"transfer-encoding" in checked:
        _check_coding(head, checked[b"transfer-encoding"])
    if b"expect" in checked and modern:
        if checked[b"expect"].lower() != b"100-continue":
            raise RequestError(417, "Only 'Expect: 100-continue' is supported.")
        head.expects_continue = True


def _check_coding(head: Head, coding: bytes) -> None:
    if head.version != "1.1":  # RFC 9112 section 6.1
        raise RequestError(400, "HTTP/1.0 has no Transfer-Encoding.")
    if coding.lower() != b"chunked":
        raise RequestError(501, "The transfer coding is not supported. Supported: 'chunked'.")
    head.content_length = None


def _end_of_chunks(data: bytes, start: int) -> int:
    """Return the first position after `start` where a chunked body may end: after a line and an empty line.

    If there is none, that is the end of `data`.
    """
    while True:
        found = data.find(b"\r\n\r\n", start)
        if found < 0:
            return len(data)
        if found > 0 and data[found - 1] not in b"\r\n":
            return found + 4
        start = found + 2
