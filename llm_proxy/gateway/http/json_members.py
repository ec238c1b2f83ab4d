"""Reads the top-level members of a JSON body that arrives in pieces, and refuses ambiguous bodies.

Theory of operation. A generator iterates over the tokens of the document (RFC 8259) and asks for the next piece if a
token may be cut. No objects are built: it keeps the names of the objects that are open, to find duplicates, and the
names and scalar values of the top level. So memory and time are limited by `MAX_TOKENS`, `MAX_DEPTH` and the length of
the body, and a piece of 16 KiB takes a few milliseconds at most.

Long strings, and the scalars of an array, are skipped by one regular expression per piece.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Generator
from typing import ClassVar, Final

import msgspec

from llm_proxy.errors import InvalidJson

#: Every exception of msgspec about input: malformed, wrongly typed, not UTF-8, nested too deeply.
MALFORMED: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
#: The members of an object, the items of an array, neither decoded, and a text.
members_of: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
items_of: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
text_of: Final = msgspec.json.Decoder(str).decode

#: Maximum number of names, strings, brackets, commas, colons and scalars. 100,000 messages have fewer.
MAX_TOKENS = 1_000_000
#: Maximum number of members of the top level. Each is checked during a transaction; the APIs have a few dozens.
MAX_MEMBERS = 256
#: Maximum depth of arrays and objects. Parsers have different limits, some of them 512.
MAX_DEPTH = 500
#: Maximum length of a value that can be compared, in bytes of JSON text; a longer one is handled like an object.
LONGEST_VALUE = 64 * 1024
#: Maximum length of a name and of a number, in bytes of JSON text.
_LONGEST_NAME = 4096
_LONGEST_NUMBER = 4300

_SPACE = b" \t\n\r"
_SCALAR = rb"(?:-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+|true|false|null)"
#: A scalar is a token if its end is known.
_TOKEN = re.compile(rb'[ \t\n\r]*+(?:([{}\[\]:,"])|(' + _SCALAR + rb")(?=[ \t\n\r,\]}]))")
#: Scalars and plain strings of an array, each with its comma.
_ROW = re.compile(rb"(?:[ \t\n\r]*+(?:" + _SCALAR + rb'|"[^"\\\x00-\x1f]*+")[ \t\n\r]*+,)++')
#: The text of a string, up to its closing quote, or to an escape whose rest has not arrived yet.
_TEXT = re.compile(rb'[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+')
_LONGEST_ESCAPE = 6

# States, and the states in which each token is allowed; None is a scalar.
_VALUE, _VALUE_OR_END, _NAME, _NAME_OR_END, _COLON, _COMMA_OR_END = range(6)
_VALUES = frozenset({_VALUE, _VALUE_OR_END})
_ALLOWED: dict[bytes | None, frozenset[int]] = {
    None: _VALUES,
    b'"': _VALUES | {_NAME, _NAME_OR_END},
    b"{": _VALUES,
    b"[": _VALUES,
    b"}": frozenset({_NAME_OR_END, _COMMA_OR_END}),
    b"]": frozenset({_VALUE_OR_END, _COMMA_OR_END}),
    b":": frozenset({_COLON}),
    b",": frozenset({_COMMA_OR_END}),
}


class JsonMembers:
    """`feed` it a body in pieces cut anywhere, then get its members from `end`.

    It refuses what RFC 8259 does not allow, text that is not UTF-8 or starts with a byte order mark, duplicate names in
    an object at any depth, and numbers on the top level that most parsers read as infinite.

    Attributes:
        found: the members of the top level so far, see `end`.
        nested: maximum length of a string below the top level that a subclass wants to see, in bytes of JSON text; 0 if
            it wants none.
    """

    nested: ClassVar[int] = 0

    def __init__(self) -> None:
        self.found: dict[str, tuple[str | None]] = {}
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._begun = self._complete = False
        self._tokens = 0
        # The names of each open object, None for an array; and those of the innermost one.
        self._open: list[set[str] | None] = []
        self._names: set[str] | None = None
        self._expected = _VALUE
        # The current member of the top level, and that of the innermost object.
        self._member = self._name = ""
        self._document = self._walk()
        next(self._document)

    def feed(self, data: bytes) -> None:
        """Take the next piece; raises `InvalidJson` as soon as the body cannot become a JSON object."""
        if data:
            self._begun = True
            try:
                self._utf8.decode(data)
                self._document.send(data)
            except ValueError:
                raise InvalidJson from None

    def end(self) -> dict[str, tuple[str | None]]:
        """Return the scalar members as text, strings without quotes, others as None; raises `InvalidJson`."""
        # It refers to this object: avoid a reference cycle.
        self._document.close()
        if self._begun and not self._complete:
            raise InvalidJson
        return self.found

    def _walk(self) -> Generator[None, bytes, None]:
        data, at = (yield), 0
        while not self._complete:
            in_array = self._names is None and self._open and self._expected in _VALUES
            if in_array and self._skips_lists() and (row := _ROW.match(data, at)):
                at, self._expected = row.end(), _VALUE
            match = _TOKEN.match(data, at)
            if match is None:
                data, at = (yield from _more(data[at:].lstrip(_SPACE), _LONGEST_NUMBER)), 0
                continue
            at, token = match.end(), match[1]
            self._check(token)
            if token != b'"':
                self._take(token, match[2])
                continue
            # The next string is a name, a value that is compared, or of no interest.
            is_name = self._expected in (_NAME, _NAME_OR_END)
            longest = _LONGEST_NAME if is_name else LONGEST_VALUE if len(self._open) == 1 else self.nested
            end = _end_of_text(data, at)
            if data[end : end + 1] == b'"':
                text = data[at:end] if end - at <= longest else None
                at = end + 1
            else:
                text, data, at = yield from _string(data, at, longest)
            self._take_string(text)
        while not data[at:].strip(_SPACE):
            data, at = (yield), 0
        raise ValueError

    def _check(self, token: bytes | None) -> None:
        if self._expected not in _ALLOWED[token]:
            raise ValueError
        self._tokens += 1
        if self._tokens > MAX_TOKENS:
            raise InvalidJson(f"The request body has more than {MAX_TOKENS} JSON tokens, and cannot be checked.")
        if not self._open and token != b"{":
            raise InvalidJson("The request body is not a JSON object.")

    def _take(self, token: bytes | None, scalar: bytes) -> None:
        if token == b",":
            self._expected = _VALUE if self._names is None else _NAME
        elif token == b":":
            self._expected = _VALUE
        elif token is None:
            if len(self._open) == 1:
                self.found[self._member] = (json.dumps(json.loads(scalar), allow_nan=False),)
            self._expected = _COMMA_OR_END
        elif token in b"{[":
            self._opens(is_object=token == b"{")
        else:
            self._closes(is_object=token == b"}")

    def _opens(self, *, is_object: bool) -> None:
        if len(self._open) == 1:
            self.found[self._member] = (None,)
        elif len(self._open) >= MAX_DEPTH:
            raise InvalidJson(f"The request body is nested more than {MAX_DEPTH} levels deep.")
        self._names = set() if is_object else None
        self._open.append(self._names)
        self._expected = _NAME_OR_END if is_object else _VALUE_OR_END

    def _closes(self, *, is_object: bool) -> None:
        if is_object is (self._names is None):
            raise ValueError
        self._open.pop()
        self._complete = not self._open
        self._names = self._open[-1] if self._open else None
        self._expected = _COMMA_OR_END

    def _take_string(self, text: bytes | None) -> None:
        """Take a string, None if it is too long to be of interest."""
        top = len(self._open) == 1
        if self._expected in _VALUES:
            if self.nested:
                self._see(text)
            if top:
                self.found[self._member] = (None if text is None else decoded(text),)
            self._expected = _COMMA_OR_END
            return
        if text is None or self._names is None:
            raise InvalidJson(f"A name in the request body is longer than {_LONGEST_NAME} bytes.")
        name = decoded(text)
        if name in self._names:
            raise InvalidJson("The request body is ambiguous: a JSON object has the same name twice.")
        self._names.add(name)
        self._name = name
        if top:
            if len(self._names) > MAX_MEMBERS:
                raise InvalidJson(f"The request body has more than {MAX_MEMBERS} members, and cannot be checked.")
            self._member = name
        self._expected = _COLON

    def _skips_lists(self) -> bool:
        """Whether the strings of the innermost array are of no interest."""
        return True

    def _see(self, text: bytes | None) -> None:
        """Take the text of a string value, None if it is too long, for a subclass that wants `nested` ones."""


def _more(rest: bytes, longest: int) -> Generator[None, bytes, bytes]:
    if len(rest) > longest:
        raise ValueError
    return rest + (yield)


def _string(data: bytes, at: int, longest: int) -> Generator[None, bytes, tuple[bytes | None, bytes, int]]:
    """Read a string that ends in a later piece.

    Returns its text, or None if it has more than `longest` bytes; and the piece and the position after its end.
    """
    text = bytearray()
    kept = True
    while True:
        end = _end_of_text(data, at)
        kept = kept and len(text) + end - at <= longest
        if kept:
            text += data[at:end]
        if data[end : end + 1] == b'"':
            return bytes(text) if kept else None, data, end + 1
        rest = data[end:]
        if rest and not rest.startswith(b"\\"):
            raise ValueError
        data, at = (yield from _more(rest, _LONGEST_ESCAPE - 1)), 0


def _end_of_text(data: bytes, at: int) -> int:
    match = _TEXT.match(data, at)
    return at if match is None else match.end()


def decoded(text: bytes) -> str:
    return str(json.loads(b'"' + text + b'"')) if b"\\" in text else text.decode("utf-8")
