r"""Which request paths are taken: only those that every reader on the way must understand alike.

One path value serves authorisation, the allow-list and forwarding: the raw one, as it stood in the request line. A
path that a server behind us could read differently (after decoding it, merging slashes or resolving dots) is refused
and never repaired, because a repaired path would be a second value.

The grammar is that of RFC 3986 §3.3, narrowed:

- `path = "/" [ segment *( "/" segment ) [ "/" ] ]`, so no segment in between is empty.
- A segment is made of visible ASCII characters without `\ ; # ? %`, and of percent escapes.
- It does not consist of dots and encoded spaces: dots climb, and some file systems drop spaces after them.
- An escape does not stand for a control character, nor for one of `. / \ % ; # ?`.
- `check_request` also takes `%2F`, because names of models have slashes, if it takes the path with `/` in its place.
  Only the segment of a model may have it, which `endpoints.py` sees to.
- Escapes above 0x7f form valid UTF-8, and no character whose compatibility form is one of those seven.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from llm_proxy.errors import InvalidPath

#: The quantifiers are possessive and the alternatives disjoint: matching takes linear time whatever the input.
_PATH = re.compile(
    rb"""
    / (?: SEGMENT (?: / SEGMENT )*+ /?+ )?+
    """.replace(
        b"SEGMENT",
        rb"""
        (?! (?: \. | %20 )++ (?: / | \Z ) )                 # more than dots and spaces
        (?: [!"$&-.0-:<->@-\[\]-~]                          # visible, without # % / ; ? and the backslash
          | % (?: [2-7][0-9a-f] | [89a-f][0-9a-f] )         # neither C0 control
              (?<! %23 | %25 | %2e | %2f | %3b | %3f | %5c | %7f )
        )++
        """,
    ),
    re.VERBOSE | re.IGNORECASE,
)

_QUERY = re.compile(rb"[!\"$-~]*+")

_ESCAPED_SLASH = re.compile(rb"%2f", re.IGNORECASE)

_HIGH_ESCAPE = re.compile(rb"%[89a-f]", re.IGNORECASE)

#: What no character of a path may turn into when it is brought into its compatibility form.
_DELIMITERS = frozenset("./\\%;#?")

#: Paths longer than this are checked each time, so that each cache stays below a megabyte.
_CACHED_LENGTH = 256


def check(raw_path: bytes) -> None:
    """Raise `InvalidPath` unless `raw_path` (as sent, without the query) is one that is passed on as it is."""
    if len(raw_path) <= _CACHED_LENGTH:
        _check_cached(raw_path)
    else:
        _check(raw_path)


def check_request(raw_path: bytes) -> None:
    """The same for a request to a provider: `%2F` is accepted if the path with `/` in its place is."""
    if len(raw_path) <= _CACHED_LENGTH:
        _check_request_cached(raw_path)
    else:
        _check_request(raw_path)


def with_slashes(raw_path: bytes) -> bytes:
    """The path as a reader takes it that decodes `%2F` before it looks for segments."""
    return _ESCAPED_SLASH.sub(b"/", raw_path)


def is_clear(raw_path: bytes) -> bool:
    """Whether `check` accepts the path."""
    try:
        check(raw_path)
    except InvalidPath:
        return False
    return True


def check_query(query: bytes) -> None:
    """Raise `InvalidPath` unless `query` (as sent, without `?`) can stand in a request line as it is.

    That is visible ASCII without `#` (RFC 3986 §3.4 allows less, real clients send more). HTTP/2 carries the target in
    a header field, where spaces and line ends would otherwise reach the HTTP/1.1 request line that we write.
    """
    if not _QUERY.fullmatch(query):
        raise InvalidPath("The query of the request has a character that must be percent-encoded.")


def _check(raw_path: bytes) -> None:
    if not _PATH.fullmatch(raw_path) or (_HIGH_ESCAPE.search(raw_path) and not _plain_text(raw_path)):
        raise InvalidPath


def _check_request(raw_path: bytes) -> None:
    decoded = with_slashes(raw_path)
    _check(decoded)
    # The grammar has an empty part at the end of a path, which the segment of a model may not have.
    if decoded != raw_path and (decoded.endswith(b"/") or not raw_path.startswith(b"/")):
        raise InvalidPath


#: Exceptions are not cached, so refused paths cannot push good ones out.
_check_cached = lru_cache(maxsize=2048)(_check)
_check_request_cached = lru_cache(maxsize=2048)(_check_request)


def _plain_text(raw_path: bytes) -> bool:
    """Whether the escapes decode to UTF-8 text that hides neither a delimiter nor an invisible character."""
    try:
        text = unquote_to_bytes(raw_path).decode("utf-8", "strict")
    except UnicodeDecodeError:
        return False
    return text.isprintable() and not any(
        char > "\x7f" and not _DELIMITERS.isdisjoint(unicodedata.normalize("NFKC", char)) for char in text
    )
