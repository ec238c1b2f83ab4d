r"""Allowed request paths: only those that all servers on the way must read in the same way.

One value of the path is used for authorization, the allow-list and forwarding: the raw path of the request line. A path
that another server could read differently (after decoding it, merging slashes or resolving dots) is refused and never
repaired, because a repaired path would be a second value.

The grammar is that of RFC 3986 §3.3, restricted:

- `path = "/" [ segment *( "/" segment ) [ "/" ] ]`, so no inner segment is empty.
- A segment consists of visible ASCII characters without `\ ; # ? %`, and of percent escapes.
- It does not consist of dots and encoded spaces only: dots go up, and some file systems remove spaces after them.
- An escape does not encode a control character, nor one of `. / \ % ; # ?`, nor a letter, a digit, `-` or `_`: encoded,
  those are the same path (RFC 3986 §6.2.2.2), and no client encodes them. Some encode `~`.
- `check_request` also allows `%2F`, because names of models have slashes, if it allows the path with `/` instead. Only
  the segment of a model may have it, which `endpoints.py` checks.
- Escapes above 0x7f form valid UTF-8, and no character whose compatibility form is one of those seven.
"""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import quote, unquote_to_bytes

from llm_proxy.errors import InvalidPath

#: The quantifiers are possessive and the alternatives disjoint: matching takes linear time.
_PATH = re.compile(
    rb"""
    / (?: SEGMENT (?: / SEGMENT )*+ /?+ )?+
    """.replace(
        b"SEGMENT",
        rb"""
        (?! (?: \. | %20 )++ (?: / | \Z ) )                 # not only dots and spaces
        (?: [!"$&-.0-:<->@-\[\]-~]                          # visible, without # % / ; ? and the backslash
          | % (?: [2-7][0-9a-f] | [89a-f][0-9a-f] )         # neither C0 control
              (?<! %23 | %25 | %2[d-f] | %3[0-9bf] | %4[1-9a-f] | %5[0-9acf] | %6[1-9a-f] | %7[0-9af] )
        )++
        """,
    ),
    re.VERBOSE | re.IGNORECASE,
)

#: The most frequent paths, for speed: each of them matches `_PATH` too.
_SIMPLE_PATH = re.compile(rb"(?:/[A-Za-z0-9_-]++)++")

_QUERY = re.compile(rb"[!\"$-~]*+")

#: The most frequent queries, for speed: they have no `$`, not even an escaped one.
_SIMPLE_QUERY = re.compile(rb"[!\"&-~]*+")

#: Parameters by which Google's servers read another method or content type than the one that was checked:
#: https://cloud.google.com/apis/docs/system-parameters
_OVERRIDES = frozenset({b"$httpmethod", b"$ct"})

_ESCAPED_SLASH = re.compile(rb"%2f", re.IGNORECASE)

_HIGH_ESCAPE = re.compile(rb"%[89a-f]", re.IGNORECASE)

#: No character of a path may have one of these as its compatibility form.
_DELIMITERS = frozenset("./\\%;#?")


def check(raw_path: bytes) -> None:
    """Raise `InvalidPath` unless `raw_path` (as sent, without the query) is allowed."""
    if not is_clear(raw_path):
        raise InvalidPath


def check_request(raw_path: bytes) -> None:
    """Do the same for a request to a provider: `%2F` is allowed if the path with `/` instead is."""
    if _SIMPLE_PATH.fullmatch(raw_path):
        return
    decoded = with_slashes(raw_path)
    check(decoded)
    # The grammar allows an empty part at the end of a path, but not in the segment of a model.
    if decoded != raw_path and (decoded.endswith(b"/") or not raw_path.startswith(b"/")):
        raise InvalidPath


def with_slashes(raw_path: bytes) -> bytes:
    """The path as seen by a server that decodes `%2F` before it splits segments."""
    return _ESCAPED_SLASH.sub(b"/", raw_path)


def is_clear(raw_path: bytes) -> bool:
    if not _PATH.fullmatch(raw_path):
        return False
    return not _HIGH_ESCAPE.search(raw_path) or _is_plain_text(raw_path)


def check_query(query: bytes) -> None:
    """Raise `InvalidPath` unless `query` (as sent, without `?`) is visible ASCII without `#`.

    RFC 3986 §3.4 allows less, but real clients send more. HTTP/2 sends the target in a header field, so spaces and line
    ends could reach the HTTP/1.1 request line.
    """
    if _SIMPLE_QUERY.fullmatch(query):
        return
    if not _QUERY.fullmatch(query):
        raise InvalidPath("The query of the request has a character that must be percent-encoded.")
    for pair in query.split(b"&"):
        if unquote_to_bytes(pair.partition(b"=")[0]).lower() in _OVERRIDES:
            raise InvalidPath("The query of the request must not have the parameters $httpMethod and $ct.")


def split_query(query: bytes, name: bytes) -> tuple[bytes, list[bytes]]:
    """Take the parameters of one name out of a query; returns the rest, byte for byte, and their values as sent.

    A provider decodes the names of parameters, so an escaped name is the same name.
    """
    if name not in query and b"%" not in query:
        return query, []
    rest, values = [], []
    for pair in query.split(b"&"):
        key, _, value = pair.partition(b"=")
        if unquote_to_bytes(key) == name:
            values.append(value)
        else:
            rest.append(pair)
    return b"&".join(rest), values


def query_value(text: str) -> bytes:
    return quote(text, safe="").encode("ascii")


def _is_plain_text(raw_path: bytes) -> bool:
    """Whether the escapes decode to UTF-8 text without delimiters and invisible characters."""
    try:
        text = unquote_to_bytes(raw_path).decode("utf-8", "strict")
    except UnicodeDecodeError:
        return False
    return text.isprintable() and not any(
        char > "\x7f" and not _DELIMITERS.isdisjoint(unicodedata.normalize("NFKC", char)) for char in text
    )
