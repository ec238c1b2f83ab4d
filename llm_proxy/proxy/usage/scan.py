"""Finds `model` and `usage` in a JSON document of any length, in constant memory.

Theory of operation. The document is one object. Only two levels of it matter: its own members, and those of a member
`message` or `response`. On these levels a string that stands where a name is expected is a name, and a comma ends a
member, so the tokens looked for there are `" { } [ ] ,`. Deeper down nothing matters but to find the way out again:
brackets are counted, from string to string, and strings are skipped. Numbers, colons and words are never looked at, and
whether brackets pair is not our business.

What is wanted is copied out as raw text, bounded: the name of a member, the string after `model`, the object after
`usage`. A document that is not JSON, or breaks off, yields whatever was found, and never an exception.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import Literal

from attrs import define, field

from llm_proxy.proxy.usage.tally import Tally, decode

#: Longest copy of each kind, in bytes of JSON text.
_LIMITS = {"name": 64, "model": 4096, "usage": 65536}

_TOKEN = re.compile(rb'["{}\[\],]')

#: The rest of a string, up to its closing quote, or to a backslash whose character has not come yet.
_STRING_REST = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)

#: Short strings in a row, without brackets between them. Longer stretches are left to faster means.
_SHORT_STRINGS = re.compile(rb'(?:[^"{}\[\]]{0,64}+"[^"\\]{0,64}+")*+')

#: Reduces a text to its brackets, opening ones as 1 and closing ones as 0.
_BRACKET = re.compile(rb"[{}\[\]]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))
_OPENING = bytes.maketrans(b"{[}]", b"\x01\x01\x00\x00")

_QUOTE, _BACKSLASH, _COMMA = b'"', b"\\", b","

_NAMES = {b'"model"': "model", b'"usage"': "usage", b'"message"': "message", b'"response"': "response"}


def read(document: bytes, tally: Tally) -> None:
    """Read a document that is there as a whole: decode it, or scan it where it is not strictly JSON.

    Some servers send `NaN`, halves of surrogate pairs or invalid UTF-8, which should not cost the bill.
    """
    if not tally.read(document):
        scanner = Scanner()
        scanner.feed(document)
        scanner.report(tally)


@define
class Scanner:
    """Reads one document: `feed` it in pieces cut anywhere, then `report` what was found."""

    #: How many brackets are open.
    _depth: int = 0
    #: The innermost level that matters: 0 before the document, 1 inside it, 2 inside `message` or `response`.
    _level: int = 0
    #: Which of the two level 2 is in.
    _wrapper: str = ""
    #: The member whose value is being read, empty if it does not matter; None where a name is expected.
    _member: str | None = None
    _in_string: bool = False
    #: Whether the last piece ended on a backslash that escapes the first character of the next one.
    _escaped: bool = False
    _copying: Literal["", "name", "model", "usage"] = ""
    _copy: bytearray = field(factory=bytearray)
    _found: dict[tuple[str, str], bytes] = field(factory=dict)
    _done: bool = False

    def feed(self, data: bytes) -> None:
        """Take the next piece of the document."""
        position = 0
        while position < len(data) and not self._done:
            position = self._string(data, position) if self._in_string else self._structure(data, position)

    def report(self, tally: Tally) -> None:
        """Hand what was found to `tally`."""
        for wrapper in ("", "message", "response"):
            tally.take(self._found.get((wrapper, "model"), b""), self._found.get((wrapper, "usage"), b""))

    def _string(self, data: bytes, start: int) -> int:
        """Go past the end of the string that `start` is in."""
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
        elif self._copying == "model":
            self._found[self._wrapper, "model"] = self._copied()

    def _structure(self, data: bytes, start: int) -> int:
        """Go past the next token outside of strings that matters."""
        on_level = self._depth == self._level
        if on_level:
            match = _TOKEN.search(data, start)
            found = match.start() if match else len(data)
        else:
            found = self._way_out(data, start)
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

    def _way_out(self, data: bytes, start: int) -> int:
        """Count brackets up to a string that is worth a look-out, or the bracket that leads back to the level."""
        while True:
            match = _SHORT_STRINGS.match(data, start)
            start = match.end() if match else start
            string = data.find(_QUOTE, start)
            end = string if string >= 0 else len(data)
            brackets = data[start:end].translate(_OPENING, _NO_BRACKETS)
            if not brackets:
                return end
            closing = brackets.count(0)
            if self._depth - closing > self._level:
                self._depth += len(brackets) - 2 * closing
            elif (index := self._count(brackets)) is not None:
                return next(islice(_BRACKET.finditer(data, start, end), index, None)).start()
            start = end

    def _count(self, brackets: bytes) -> int | None:
        """Count brackets one by one; the index of the one that leads back to the level, None where none does."""
        for index, opening in enumerate(brackets):
            if opening:
                self._depth += 1
            elif self._depth > self._level + 1:
                self._depth -= 1
            else:
                return index
        return None

    def _string_begins(self, *, on_level: bool) -> None:
        self._in_string = True
        if not on_level:
            return
        if self._level == 0:
            self._done = True  # the document is a string
        elif self._member is None:
            self._start_copy("name", _QUOTE)
        elif self._member == "model":
            self._start_copy("model", _QUOTE)

    def _opens(self, bracket: bytes) -> None:
        self._depth += 1
        if self._level == 0:
            self._level = 1
            self._done = bracket != b"{"
        elif self._member is None:
            self._done = True  # no name, so this is not JSON
        elif bracket == b"{" and self._member == "usage":
            self._start_copy("usage", bracket)
        elif bracket == b"{" and self._level == 1 and self._member in ("message", "response"):
            self._level, self._wrapper, self._member = 2, self._member, None

    def _closes(self) -> None:
        self._depth -= 1
        if self._depth < self._level:
            self._done = self._level <= 1
            self._level, self._wrapper, self._member = 1, "", ""
        elif self._depth == self._level and self._copying == "usage":
            self._found[self._wrapper, "usage"] = self._copied()

    def _start_copy(self, kind: Literal["name", "model", "usage"], first: bytes) -> None:
        self._copying = kind
        self._copy = bytearray(first)

    def _keep(self, data: bytes, start: int, end: int) -> None:
        """Copy a stretch of the document, if it is wanted and not too long."""
        if not self._copying:
            return
        if len(self._copy) + end - start <= _LIMITS[self._copying]:
            self._copy += data[start:end]
            return
        if self._copying == "name":
            self._member = ""
        self._copied()

    def _copied(self) -> bytes:
        """End the copying and return the copy."""
        text = bytes(self._copy)
        self._copying = ""
        self._copy = bytearray()
        return text
