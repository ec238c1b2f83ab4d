"""Finds the members that `tally` reads in a JSON document of any length, in constant memory.

Theory of operation. The document is one object. Only two levels of it are relevant: its own members, and those of a
wrapper such as `message` or `response`. On these levels a string in the place of a name is a name, and a comma ends a
member, so the relevant tokens are `" { } [ ] ,`. On deeper levels only the return to the relevant level has to be
found: strings are removed and brackets are counted, one stretch at a time. Numbers, colons and literals are ignored.
Brackets are not checked for matching pairs.

Each stretch costs a few calls of C code. The tokens of the relevant levels are processed one by one in Python. No
provider sends thousands of them, so scanning stops in a document that has too many.

The name of a member is copied, and the value of a relevant one, as raw text of limited length. A document that is not
JSON or is cut off yields what was found before, and never an exception.

A document may also be an array: a stream of Gemini. Then its objects are scanned, but only for Gemini's members.
"""

from __future__ import annotations

import re

import msgspec
from attrs import define, field

from llm_proxy.gateway.usage.tally import MAX_USAGE, WRAPPERS, SearchCalls, Tally, UsageMembers, decode

#: Maximum length of a copy, in bytes of JSON text: of a name, of most values, of a report.
_MAX_NAME = 64
_MAX_VALUE = 4096
_REPORTS = frozenset({"usage", "usage_metadata", "usage_breakdown", "meta"})

#: Maximum number of steps for a document, and one more per so many bytes before it. What is counted depends on the
#: document only, not on how it was cut.
_STEPS = 1024
_BYTES_PER_STEP = 1024
#: The same for an array, up to a number of steps in advance: each of its objects is short.
_BYTES_PER_STEP_IN_ARRAY = 16

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
#: Tokens that end a member on a relevant level.
_ENDS = (b",", b"}", b"]")
_AROUND_VALUE = b": \t\r\n"

#: The relevant members by their names in JSON. Usage in choices is only read in short documents, and of the output
#: `SearchCalls` counts the searches, wherever they are.
_OTHERS = ("choices", "output")
_MEMBERS = {
    field.encode_name: field.name for field in msgspec.structs.fields(UsageMembers) if field.name not in _OTHERS
}
_NAMES = {b'"%b"' % name.encode(): member for name, member in _MEMBERS.items()}
_IN_ARRAY = frozenset({"model_version", "usage_metadata"})


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
    #: The innermost relevant level: 0 before the document, 1 inside it, 2 inside a wrapper.
    _level: int = 0
    #: The member that level 2 is in, see `WRAPPERS`.
    _wrapper: str = ""
    #: The member whose value is being read, empty if it is not relevant; None if a name is expected.
    _member: str | None = None
    _in_string: bool = False
    #: Whether the last piece ended with a backslash that escapes the first character of the next one.
    _escaped: bool = False
    #: What is being copied: "name", or the value of a member; empty for nothing.
    _copying: str = ""
    _copy: bytearray = field(factory=bytearray)
    #: The values that were found, by wrapper and member.
    _found: dict[str, dict[str, msgspec.Raw]] = field(factory=dict)
    _in_array: bool = False
    _done: bool = False
    _steps_left: int = _STEPS
    #: Bytes before the piece, and before the next one that allows a step.
    _passed: int = 0
    _counted: int = 0
    #: The document needed too many steps, or its usage is too long, so something may be missing.
    _stopped: bool = False
    _searches: SearchCalls = field(factory=SearchCalls)

    def feed(self, data: bytes) -> None:
        self._searches.feed(data)
        position = 0
        while position < len(data) and not self._done:
            position = self._string(data, position) if self._in_string else self._structure(data, position)
        self._passed += len(data)

    def report(self, tally: Tally) -> None:
        whole = self._depth == self._level and not self._in_string and self._copying != "name"
        if whole and self._copy.endswith((b"}", b'"')):
            self._end_value()  # only the end of the document is missing
        for wrapper in ("", *WRAPPERS):
            if wrapper in self._found:
                report = UsageMembers(**self._found[wrapper])
                tally.add(report)
                if not wrapper:
                    tally.see(report)
        tally.searches = max(tally.searches, self._searches.count)
        tally.uncertain |= self._stopped
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
        if self._copying != "name":
            return
        text = self._copied()
        if b"\\" in text:
            name = decode(text)
            member = _MEMBERS.get(name, "") if isinstance(name, str) else ""
        else:
            member = _NAMES.get(text, "")
        if self._in_array and member not in _IN_ARRAY:
            member = ""
        self._member = member
        if member and not (self._level == 1 and member in WRAPPERS):
            self._copying = member

    def _structure(self, data: bytes, start: int) -> int:
        """Return the position after the next relevant token outside of strings."""
        on_level = self._depth == self._level
        if on_level:
            match = _TOKEN.search(data, start)
            found = match.start() if match else len(data)
        else:
            found = self._leave_value(data, start)
        token = data[found : found + 1]
        after = found + len(token)
        if token and (on_level or token != _QUOTE):
            self._count_step(self._passed + found)
        if on_level and token in _ENDS:
            self._keep(data, start, found)
            self._end_value()
        else:
            self._keep(data, start, after)
        if token == _QUOTE:
            self._string_begins(on_level=on_level)
        elif token == _COMMA:
            self._member = None
        elif token in (b"{", b"["):
            self._opens(token)
        elif token:
            self._closes()
        return after

    def _count_step(self, position: int) -> None:
        size = _BYTES_PER_STEP_IN_ARRAY if self._in_array else _BYTES_PER_STEP
        more = (position - self._counted) // size
        self._counted += more * size
        self._steps_left += more - 1
        if self._in_array:
            self._steps_left = min(self._steps_left, 4 * _STEPS)
        if self._steps_left < 0:
            self._done = self._stopped = True

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
        if on_level and self._level == 0:
            self._done = True  # the document is a string
        elif on_level and self._member is None:
            self._copying = "name"
            self._copy += _QUOTE

    def _opens(self, bracket: bytes) -> None:
        if self._level == 0:
            if bracket == b"{":
                self._depth = self._level = 1
            elif self._in_array:
                self._done = True
            self._in_array |= bracket == b"["
            return
        self._depth += 1
        if self._member is None:
            self._done = True  # no name, so this is not JSON
        elif bracket == b"{" and self._level == 1 and self._member in WRAPPERS:
            self._level, self._wrapper, self._member = 2, self._member, None

    def _closes(self) -> None:
        self._depth -= 1
        if self._depth < self._level:
            self._done = self._level == 0 or (self._level == 1 and not self._in_array)
            self._level, self._wrapper, self._member = self._level - 1, "", None if self._level == 1 else ""

    def _end_value(self) -> None:
        if self._copying:
            member = self._copying
            self._found.setdefault(self._wrapper, {})[member] = msgspec.Raw(self._copied().strip(_AROUND_VALUE))

    def _keep(self, data: bytes, start: int, end: int) -> None:
        """Copy a stretch of the document, if it is relevant and not too long."""
        if not self._copying:
            return
        most = _MAX_NAME if self._copying == "name" else MAX_USAGE if self._copying in _REPORTS else _MAX_VALUE
        if len(self._copy) + end - start <= most:
            self._copy += data[start:end]
            return
        what = self._copying
        self._copied()
        if what == "name":
            self._member = ""
        elif what == "error":
            self._found.setdefault(self._wrapper, {})[what] = msgspec.Raw(b"{")
        elif what in ("usage", "usage_metadata"):
            self._stopped = True

    def _copied(self) -> bytes:
        text = bytes(self._copy)
        self._copying = ""
        self._copy = bytearray()
        return text
