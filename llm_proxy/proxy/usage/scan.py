"""Finds `model` and `usage` in a JSON document of any length, in constant memory.

Theory of operation. The document is one object. Only two levels of it matter: its own members, and those of a member
`message` or `response`. On these levels a string that stands where a name is expected is a name, and a comma ends a
member, so the tokens looked for there are `" { } [ ] ,`. Deeper down nothing matters but to find the way out again:
brackets are counted and strings are skipped. Numbers, colons and words are never looked at.

What is wanted is copied out as raw text, bounded: the name of a member, the string after `model`, the object after
`usage`. A document that is not JSON yields whatever was found before, and never an exception.
"""

from __future__ import annotations

import re
from typing import Literal

from attrs import define, field

from llm_proxy.proxy.usage.tally import Tally, decode

#: Longest copy of each kind, in bytes of JSON text.
_LIMITS = {"name": 64, "model": 4096, "usage": 65536}

_TOKEN = re.compile(rb'["{}\[\],]')
_DEEP_TOKEN = re.compile(rb'["{}\[\]]')

_QUOTE, _COMMA = b'"', b","

_NAMES = {b'"model"': "model", b'"usage"': "usage", b'"message"': "message", b'"response"': "response"}


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
    #: Length of the run of backslashes at the end of the last piece, inside a string.
    _backslashes: int = 0
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
        """Go to the end of the string that `start` is in; a quote after an odd run of backslashes is part of it."""
        position = start
        while (quote := data.find(_QUOTE, position)) >= 0:
            escaped = self._run(data, position, quote) % 2
            self._backslashes = 0
            position = quote + 1
            if not escaped:
                self._keep(data, start, position)
                self._in_string = False
                self._string_ended()
                return position
        self._backslashes = self._run(data, position, len(data))
        self._keep(data, start, len(data))
        return len(data)

    def _run(self, data: bytes, start: int, end: int) -> int:
        """Length of the run of backslashes before `end`, counting on from the last piece where it began there."""
        text = data[start:end]
        length = len(text) - len(text.rstrip(b"\\"))
        return length + self._backslashes if length == len(text) else length

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
        """Go past the next token outside of strings."""
        on_level = self._depth == self._level
        match = (_TOKEN if on_level else _DEEP_TOKEN).search(data, start)
        end = match.end() if match else len(data)
        self._keep(data, start, end)
        if match:
            token = match[0]
            if token == _QUOTE:
                self._string_begins(on_level=on_level)
            elif token == _COMMA:
                self._member = None
            elif token in b"{[":
                self._opens(token, on_level=on_level)
            else:
                self._closes()
        return end

    def _string_begins(self, *, on_level: bool) -> None:
        self._in_string = True
        self._backslashes = 0
        if not on_level:
            return
        if self._level == 0:
            self._done = True  # the document is a string
        elif self._member is None:
            self._start_copy("name", _QUOTE)
        elif self._member == "model":
            self._start_copy("model", _QUOTE)

    def _opens(self, bracket: bytes, *, on_level: bool) -> None:
        self._depth += 1
        if not on_level:
            return
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
