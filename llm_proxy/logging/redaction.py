"""Keeps secrets out of the logs.

Three rules, one after the other: values under the name of a credential are never shown; the process's own secrets are
removed wherever they appear; and text in the form of a credential is removed. The last rule is cautious: a word that
only looks like a key is removed too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from functools import lru_cache
from typing import Any, Final
from urllib.parse import unquote

REDACTED: Final = "[redacted]"

#: Names of headers, fields and settings whose value is a credential, in lower case with hyphens.
_CREDENTIAL_NAMES: Final = frozenset(
    {
        "api-key",
        "authorization",
        "cookie",
        "database-url",
        "encryption-key",
        "management-token",
        "password",
        "proxy-authorization",
        "secret",
        "set-cookie",
        "token",
        "x-api-key",
        "x-goog-api-key",
    }
)

# Keys of our own and of well-known providers, authorization values, API keys as the database holds them, and
# passwords in URLs. No word boundary before the prefixes: in `keysk-…` the key is no less a key.
_FORMS: Final = re.compile(
    r"(?P<key>(?:sk-|gsk_|xai-|pplx-|hf_|AIza)[A-Za-z0-9_-]{6,})"
    r"|(?P<scheme>\b(?:bearer|basic)[ \t]+)[A-Za-z0-9._~+/=-]{4,}"
    r"|(?P<sealed>\b(?:plain|enc:v[0-9]+):)[^\s'\"]{4,}"
    r"|(?P<userinfo>://[^\s/:@\"']*:)[^\s/@\"']+(?=@)",
    re.IGNORECASE,
)

# What a text must contain, in lower case, for one of the forms to be in it: far cheaper to look for.
_MARKERS: Final = ("sk-", "gsk_", "xai-", "pplx-", "hf_", "aiza", "bearer", "basic", "plain:", "enc:v", "://")

# A shorter secret would match ordinary words.
_SHORTEST_SECRET: Final = 6

# Longer paths are not cached, so that the cache stays below a megabyte.
_CACHED_LENGTH: Final = 256

# A path that is percent-encoded more often than this is refused.
_MOST_ENCODINGS: Final = 3

# Deeper nesting is shown as text; it also ends a structure that contains itself.
_DEEPEST: Final = 6


class Redactor:
    """Removes credentials from texts and from the values of log events."""

    __slots__ = ("_cached_path", "_secrets")

    def __init__(self, secrets: Iterable[str | None] = ()) -> None:
        """Take the process's own secrets; of a list separated by commas, each part must not be shown either."""
        known: set[str] = set()
        for secret in secrets:
            if secret:
                known.update(part.strip() for part in (secret, *secret.split(",")))
        # Longest first: a secret may be part of another one.
        self._secrets = tuple(sorted((s for s in known if len(s) >= _SHORTEST_SECRET), key=len, reverse=True))
        self._cached_path: Callable[[str], str] = lru_cache(maxsize=2048)(self._path)

    def text(self, text: str) -> str:
        """Return the text without credentials; most texts are returned unchanged, after about 0.5 µs."""
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, REDACTED)
        lowered = text.lower()
        for marker in _MARKERS:
            if marker in lowered:
                return _FORMS.sub(_without_secret, text)
        return text

    def path(self, path: str) -> str:
        """Return the path of a request without credentials, percent-encoded ones included; cached, about 0.1 µs."""
        return self._cached_path(path) if len(path) <= _CACHED_LENGTH else self._path(path)

    def _path(self, path: str) -> str:
        decoded = path
        for _ in range(_MOST_ENCODINGS if "%" in path else 0):
            decoded = unquote(decoded)
        clean = self.text(decoded)
        return path if clean == decoded else clean

    def value(self, value: object, depth: int = 0) -> object:
        """Return a value made of JSON's types only, without credentials at any depth."""
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, bytes | bytearray | memoryview):
            return self.text(bytes(value).decode("utf-8", "backslashreplace"))
        if depth < _DEEPEST:
            if isinstance(value, Mapping):
                return {self._name(name): self._named(name, item, depth + 1) for name, item in value.items()}
            if isinstance(value, list | tuple | set | frozenset):
                return self._sequence(list(value), depth + 1)
        return self.text(_shown(value))

    def __call__(self, _logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Act as a structlog processor."""
        return {self._name(name): self._named(name, item, 0) for name, item in event.items()}

    def _sequence(self, items: list[object], depth: int) -> list[object]:
        # A header as servers and clients hold it: a pair of name and value.
        if len(items) == 2 and isinstance(items[0], str | bytes) and _is_credential(items[0]):
            return [self.value(items[0], depth), REDACTED]
        return [self.value(item, depth) for item in items]

    def _named(self, name: object, item: object, depth: int) -> object:
        return REDACTED if item and _is_credential(name) else self.value(item, depth)

    def _name(self, name: object) -> str:
        return self.text(name if isinstance(name, str) else str(self.value(name, _DEEPEST)))


#: Removes what has the form of a credential, without knowing the secrets of a process.
redact: Final = Redactor().text


def quoted(text: str, longest: int = 64) -> str:
    """Return client input as an error message may show it: quoted, ASCII, shortened, without credentials."""
    shortened = text if len(text) <= longest else text[:longest] + "..."
    return json.dumps(redact(shortened))


def _is_credential(name: object) -> bool:
    if isinstance(name, bytes):
        name = name.decode("latin-1")
    return isinstance(name, str) and name.lower().replace("_", "-") in _CREDENTIAL_NAMES


def _without_secret(match: re.Match[str]) -> str:
    return (match["scheme"] or match["sealed"] or match["userinfo"] or "") + REDACTED


def _shown(value: object) -> str:
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001 (a log line must not fail on what it was given)
        return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"
