"""Reads the fields of a form (`multipart/form-data`, RFC 7578) that arrives in pieces.

Only the plain form that clients write is allowed: each part has a `Content-Disposition`, names are quoted, and nothing
is before the first part or after the last one. A form that another parser could split or decode differently is refused.
"""

from __future__ import annotations

import re

from llm_proxy.errors import ParameterNotAllowed
from llm_proxy.gateway.http.json_members import LONGEST_VALUE

#: Maximum number of parts of a form.
MAX_PARTS = 256
#: Maximum length of the head of a part, in bytes.
_LONGEST_HEAD = 8192

#: `Content-Type` of a form. The boundary, quoted or not, has only characters that all parsers read as a part of it.
CONTENT_TYPE = re.compile(
    rb"""multipart/form-data[ \t]*;[ \t]*boundary="""
    rb"""(?:([0-9A-Za-z'+_.-]{1,70})|"([0-9A-Za-z'()+_,./:=?-]{1,70})")(?:[ \t]*;[ \t]*charset="?utf-8"?)?""",
    re.IGNORECASE,
)
_DISPOSITION = re.compile(
    rb"""content-disposition: ?form-data; ?name="([^"\\\r\n%]+)"(; ?filename="[^"\\\r\n]*")?""", re.IGNORECASE
)
#: Types of a field that do not change its value. A file may have any type except those with parts.
_PLAIN_TYPE = re.compile(rb"""content-type: ?text/plain(?:; ?charset="?(?:utf-8|us-ascii)"?)?""", re.IGNORECASE)
_NESTED_TYPE = re.compile(rb"content-type:[ \t]*(?:multipart|message)/", re.IGNORECASE)
_LENGTH = re.compile(rb"content-length: ?([0-9]{1,15})", re.IGNORECASE)
#: The field that changes the charset of the others (RFC 7578 §4.6).
_CHARSET_FIELD = b"_charset_"


def refused() -> ParameterNotAllowed:
    return ParameterNotAllowed("The form is ambiguous, so that its parameters cannot be checked.")


class Multipart:
    """`feed` it a body in pieces cut anywhere, then get its fields from `end`; `found` has those that are complete."""

    def __init__(self, boundary: bytes) -> None:
        self._boundary = b"--" + boundary
        # The first boundary is found like the others, after an empty part without a head.
        self._rest = b"\r\n"
        self._begun = False
        self._in_head = self._ended = False
        self._parts = 0
        self.found: dict[str, list[str | None]] = {}
        self._name = ""
        self._is_file = False
        self._declared: int | None = 0
        self._length = 0
        self._content = bytearray()

    def feed(self, data: bytes) -> None:
        """Take the next piece; raises `ParameterNotAllowed` for an ambiguous form."""
        self._begun = self._begun or bool(data)
        self._rest += data
        while self._head() if self._in_head else self._body():
            pass

    def end(self) -> dict[str, list[str | None]]:
        """Return the values of each field in order; None for a file, or for a value that is too long to compare."""
        if self._begun and not (self._ended and self._rest in (b"", b"\r\n")):
            raise refused()
        return self.found

    def _body(self) -> bool:
        """Read the content of a part and the boundary after it; False if more has to arrive first."""
        if self._ended:
            if len(self._rest) > len(b"\r\n"):
                raise refused()
            return False
        rest, boundary = self._rest, self._boundary
        found = rest.find(boundary)
        if found < 0:
            # The boundary and the line end before it may be cut.
            self._take(max(0, len(rest) - len(boundary) - 1))
            return False
        after = found + len(boundary)
        if len(rest) < after + 2:
            return False
        # A boundary after a bare line feed is content, but a delimiter to a lenient parser.
        if rest[max(0, found - 2) : found] != b"\r\n" or rest[after : after + 2] not in (b"\r\n", b"--"):
            raise refused()
        self._take(found - 2)
        self._end_part()
        self._ended = rest[after : after + 2] == b"--"
        self._in_head = not self._ended
        self._rest = rest[after + 2 :]
        return True

    def _take(self, count: int) -> None:
        self._length += count
        if self._is_file:
            self._see(self._rest[:count])
        elif len(self._content) <= LONGEST_VALUE:
            self._content += self._rest[: min(count, LONGEST_VALUE + 1)]
        self._rest = self._rest[count:]

    def _end_part(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS or self._declared not in (None, self._length):
            raise refused()
        if self._parts == 1:
            return
        value: str | None = None
        if self._is_file:
            self._end_file()
        elif self._length <= LONGEST_VALUE:
            try:
                value = self._content.decode("utf-8")
            except UnicodeDecodeError:
                raise refused() from None
        self.found.setdefault(self._name, []).append(value)

    def _see(self, data: bytes) -> None:
        """Take a piece of a file, for a subclass that reads files."""

    def _end_file(self) -> None:
        """Take the end of a file."""

    def _head(self) -> bool:
        """Read the head of a part; False if more has to arrive first."""
        end = self._rest.find(b"\r\n\r\n")
        if end < 0 or end > _LONGEST_HEAD:
            if len(self._rest) > _LONGEST_HEAD:
                raise refused()
            return False
        fields = {field.partition(b":")[0].lower(): field for field in self._rest[:end].split(b"\r\n")}
        disposition = _DISPOSITION.fullmatch(fields.pop(b"content-disposition", b""))
        if disposition is None or disposition[1] == _CHARSET_FIELD or self._rest.count(b"\r\n", 0, end) > len(fields):
            raise refused()
        self._is_file, self._declared = disposition[2] is not None, None
        for name, field in fields.items():
            length = _LENGTH.fullmatch(field)
            if length is not None:
                self._declared = int(length[1])
            elif name != b"content-type" or not self._is_harmless(field):
                raise refused()
        try:
            self._name = disposition[1].decode("utf-8")
        except UnicodeDecodeError:
            raise refused() from None
        self._in_head = False
        self._length = 0
        self._content = bytearray()
        self._rest = self._rest[end + 4 :]
        return True

    def _is_harmless(self, content_type: bytes) -> bool:
        """Whether the part has the same meaning for a parser that does not know this type."""
        if self._is_file:
            return _NESTED_TYPE.match(content_type) is None
        return _PLAIN_TYPE.fullmatch(content_type) is not None
