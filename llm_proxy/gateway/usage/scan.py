"""Finds `model` and `usage` in a JSON document of any length, in constant memory.

Theory of operation. The document is one object. Only two levels of it are relevant: its own members, and those of a
member `message` or `response`. On these levels a string in the place of a name is a name, and a comma ends a member, so
the relevant tokens are `" { } [ ] ,`. On deeper levels only the return to the relevant level has to be found: strings
are removed and brackets are counted, one stretch at a time. Numbers, colons and literals are ignored, and brackets are
not checked for matching pairs.

Each stretch costs a few calls of C code. The tokens of the relevant levels are processed one by one in Python. No
provider sends thousands of them, so scanning stops in a document that has too many.

Relevant values are copied as raw text of limited length: the name of a member, the string after `model` or `type`, the
object after `usage`. Of `error` it is only relevant whether it is an object. A document that is not JSON or is cut off
yields what was found before, and never an exception.
"""

from __future__ import annotations

import re

from attrs import define, field

from llm_proxy.gateway.usage.tally import MAX_USAGE, Tally, decode

#: Maximum length of each kind of copy, in bytes of JSON text.
_LIMITS = {"name": 64, "model": 4096, "type": 64, "usage": MAX_USAGE}

#: Maximum number of steps for a document, and one more per so many bytes.
_STEPS = 1024
_BYTES_PER_STEP = 1024

#: Length of the first and the longest stretch, in bytes. Most values are short.
_FIRST_STRETCH = 64
_LONGEST_STRETCH = 4096

_TOKEN = re.compile(rb'["{}\[\],]')

#: The rest of a string, up to its closing quote, or to a backslash whose character has not arrived yet.
_STRING_REST = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'

#: Consecutive strings, up to an incomplete one.
_WHOLE_STRINGS = re.compile(rb'(?:[^"]*+%b)*+' % _STRING, re.DOTALL)

#: Consecutive strings without brackets between them. It starts with a quote, which is quick to find.
_STRINGS = re.compile(rb'%b(?:[^"{}\[\]]*+%b)*+' % (_STRING, _STRING), re.DOTALL)

_STRING_OR_BRACKET = re.compile(rb"%b|[{}\[\]]" % _STRING, re.DOTALL)

#: Reduces a text without strings to its brackets: opening ones to 1, closing ones to 0.
_NO_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))
_OPENING = bytes.maketrans(b"{[}]", b"\x01\x01\x00\x00")
_PAIR = b"\x01\x00"
#: How often pairs are removed. Typical documents need no more.
_ROUNDS = 8

_QUOTE, _BACKSLASH, _COMMA = b'"', b"\\", b","

_NAMES = {b'"%b"' % name.encode(): name for name in ("model", "usage", "message", "response", "type", "error")}


def read(document: bytes, tally: Tally) -> None:
    """Read a complete document: decode it, or scan it if it is not strictly JSON.

    Some servers send `NaN`, halves of surrogate pairs or invalid UTF-8, but their usage still counts.
    """
    if not tally.read(document):
        scanner = Scanner()
        scanner.feed(document)
        scanner.report(tally)


@define
class Scanner:
    """Scans one document: `feed` it in pieces cut anywhere, then `report` the result."""

    #: Number of open brackets.
    _depth: int = 0
    #: The innermost relevant level: 0 before the document, 1 inside it, 2 inside `message` or `response`.
    _level: int = 0
    #: The member that level 2 is in: `message` or `response`.
    _wrapper: str = ""
    #: The member whose value is being read, empty if it is not relevant; None if a name is expected.
    _member: str | None = None
    _in_string: bool = False
    #: Whether the last piece ended with a backslash that escapes the first character of the next one.
    _escaped: bool = False
    #: The kind of copy that is being made, empty for none.
    _copying: str = ""
    _copy: bytearray = field(factory=bytearray)
    _found: dict[tuple[str, str], bytes] = field(factory=dict)
    _done: bool = False
    _steps_left: int = _STEPS
    #: The document needed too many steps, or its usage is too long, so something may be missing.
    _stopped: bool = False

    def feed(self, data: bytes) -> None:
        self._steps_left += len(data) // _BYTES_PER_STEP
        position = 0
        while position < len(data) and not self._done:
            position = self._string(data, position) if self._in_string else self._structure(data, position)

    def report(self, tally: Tally) -> None:
        for wrapper in ("", "message", "response"):
            tally.add(self._found.get((wrapper, "model"), b""), self._found.get((wrapper, "usage"), b""))
        kind = decode(self._found.get(("", "type"), b""))
        if isinstance(kind, str):
            tally.add_type(kind.encode("utf-8", "surrogatepass"))
        if ("", "error") in self._found:
            tally.failed = True
        tally.unread |= self._stopped
        tally.cut_off |= self._level > 0 and not self._done

    def _string(self, data: bytes, start: int) -> int:
        """Return the position after the string that `start` is in."""
        position = start + 1 if self._escaped else start
        self._escaped = False
        end = data.find(_QUOTE, position)
        if data.find(_BACKSLASH, position, end if end >= 0 else len(data)) >= 0:
            match = _STRING_REST.match(data, position)
            end = match.end() if match else position
            if data[end : end + 1] != _QUOTE:
                self._escaped = end < len(data)
                end = -1
        if end < 0:
            self._keep(data, start, len(data))
            return len(data)
        self._keep(data, start, end + 1)
        self._in_string = False
        self._string_ended()
        return end + 1

    def _string_ended(self) -> None:
        if self._copying == "name":
            text = self._copied()
            if b"\\" in text:
                name = decode(text)
                self._member = name if isinstance(name, str) else ""
            else:
                self._member = _NAMES.get(text, "")
        elif self._copying in ("model", "type"):
            kind = self._copying
            self._found[self._wrapper, kind] = self._copied()

    def _structure(self, data: bytes, start: int) -> int:
        """Return the position after the next relevant token outside of strings."""
        self._steps_left -= 1
        if self._steps_left < 0:
            self._done = self._stopped = True
        on_level = self._depth == self._level
        if on_level:
            match = _TOKEN.search(data, start)
            found = match.start() if match else len(data)
        else:
            found = self._leave_value(data, start)
        token = data[found : found + 1]
        self._keep(data, start, found + len(token))
        if token == _QUOTE:
            self._string_begins(on_level=on_level)
        elif token == _COMMA:
            self._member = None
        elif token in (b"{", b"["):
            self._opens(token)
        elif token:
            self._closes()
        return found + len(token)

    def _leave_value(self, data: bytes, start: int) -> int:
        """Count brackets up to an incomplete or long string, or to the bracket that returns to the relevant level."""
        stretch = _FIRST_STRETCH
        while True:
            limit = min(start + stretch, len(data))
            string = data.find(_QUOTE, start, limit)
            if string >= 0 and (whole := _WHOLE_STRINGS.match(data, start, limit)):
                string = data.find(_QUOTE, whole.end(), limit)
            end = string if string >= 0 else limit
            brackets = _STRINGS.sub(b"", data[start:end]).translate(_OPENING, _NO_BRACKETS)
            for _ in range(_ROUNDS):
                if _PAIR not in brackets:
                    break
                brackets = brackets.replace(_PAIR, b"")
            closing = brackets.count(0)
            if self._depth - closing > self._level:
                self._depth += len(brackets) - 2 * closing
            elif (found := self._count(data, start, end)) is not None:
                return found
            if limit == len(data) or (end == start and stretch == _LONGEST_STRETCH):
                return end
            start = end
            stretch = min(4 * stretch, _LONGEST_STRETCH)

    def _count(self, data: bytes, start: int, end: int) -> int | None:
        """Count brackets one by one; return the position of the one that returns to the relevant level, or None."""
        for match in _STRING_OR_BRACKET.finditer(data, start, end):
            token = match[0]
            if token in (b"{", b"["):
                self._depth += 1
            elif token in (b"}", b"]"):
                if self._depth == self._level + 1:
                    return match.start()
                self._depth -= 1
        return None

    def _string_begins(self, *, on_level: bool) -> None:
        self._in_string = True
        if not on_level:
            return
        if self._level == 0:
            self._done = True  # the document is a string
        elif self._member is None:
            self._start_copy("name", _QUOTE)
        elif self._member == "model" or (self._member == "type" and self._level == 1):
            self._start_copy(self._member, _QUOTE)

    def _opens(self, bracket: bytes) -> None:
        self._depth += 1
        if self._level == 0:
            self._level = 1
            self._done = bracket != b"{"
        elif self._member is None:
            self._done = True  # no name, so this is not JSON
        elif bracket == b"{" and self._member == "usage":
            self._start_copy("usage", bracket)
        elif bracket == b"{" and self._member == "error" and self._level == 1:
            self._found["", "error"] = bracket
        elif bracket == b"{" and self._level == 1 and self._member in ("message", "response"):
            self._level, self._wrapper, self._member = 2, self._member, None

    def _closes(self) -> None:
        self._depth -= 1
        if self._depth < self._level:
            self._done = self._level <= 1
            self._level, self._wrapper, self._member = 1, "", ""
        elif self._depth == self._level and self._copying == "usage":
            self._found[self._wrapper, "usage"] = self._copied()

    def _start_copy(self, kind: str, first: bytes) -> None:
        self._copying = kind
        self._copy = bytearray(first)

    def _keep(self, data: bytes, start: int, end: int) -> None:
        """Copy a stretch of the document, if it is relevant and not too long."""
        if not self._copying:
            return
        if len(self._copy) + end - start <= _LIMITS[self._copying]:
            self._copy += data[start:end]
            return
        if self._copying == "name":
            self._member = ""
        elif self._copying == "usage":
            self._stopped = True
        self._copied()

    def _copied(self) -> bytes:
        text = bytes(self._copy)
        self._copying = ""
        self._copy = bytearray()
        return text
