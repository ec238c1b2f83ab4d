"""The allow-list of a provider's endpoints: patterns of paths, matched by whole segments.

A pattern is a path. Its segments are

- literal text, which matches itself byte for byte;
- `*` or `{name}`, which matches any one segment that is not empty;
- `{model}`, at most once: the same, and it also matches the escapes `%2F` and `%3A`, for names of models that contain a
  slash or a colon;
- text with such placeholders in it (`{model}:generateContent`), each for one or more characters;
- `**` as the last segment, which matches the rest of the path, at least one character.

So `/v1/models` does not allow `/v1/modelsX`, `/v1/models/` or `/v1/models/x`.

A provider may decode `%2F` before it splits the path into segments. So a path that has one is also read with `/` in its
place, and is refused if the result is another endpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from urllib.parse import unquote

from llm_proxy.config.kinds import InvalidValue
from llm_proxy.gateway.http import paths

_PLACEHOLDER = re.compile(r"\*|\{[A-Za-z_][A-Za-z0-9_]*\}")
_MODEL = "{model}"

#: The escapes that only the name of a model may have, and one character that does not begin such an escape.
_NAME_ESCAPE = re.compile(rb"%2f|%3a", re.IGNORECASE)
_PLAIN = rb"(?:[^/%]|%(?!2[fF]|3[aA]))"
#: What a placeholder matches; `_PLAIN` repeated for all others.
_EXPRESSIONS = {_MODEL: b"([^/]+)", "/**": b"/(?:/|" + _PLAIN + b")+"}


class Endpoints:
    """A compiled allow-list; `path in endpoints` for raw paths that `paths.check` has accepted.

    Attributes:
        literal: the paths of patterns without placeholders.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        # If several match, the longest one says what the model is: `{model}:generateContent`, not `{model}`.
        self._patterns = sorted(patterns, key=len, reverse=True)
        for pattern in self._patterns:
            check(pattern)
        self.literal = frozenset(
            pattern.encode("ascii") for pattern in self._patterns if not _PLACEHOLDER.search(pattern)
        )
        #: Those of them that name no model, as far as they were asked for.
        self._plain: set[bytes] = set()

    @cached_property
    def _others(self) -> re.Pattern[bytes]:
        """Compiled when it is needed: it takes milliseconds, and most of the built-in providers are never used."""
        return re.compile(b"|".join(map(_expression, self._patterns)) or b"(?!)")  # without patterns, nothing matches

    def __contains__(self, path: bytes) -> bool:
        # Most requests go to a literal path, and a set finds that faster than an expression.
        return path in self.literal or (self._others.fullmatch(path) is not None and self._is_unambiguous(path))

    def model(self, path: bytes) -> str | None:
        """The name of the model in an allowed path, without escapes; None if its pattern has no `{model}`."""
        if path in self._plain:
            return None
        match = self._others.fullmatch(path)
        if match and match.lastindex:
            return unquote(match[match.lastindex].decode("latin-1"))
        if path in self.literal:
            self._plain.add(path)
        return None

    def _is_unambiguous(self, path: bytes) -> bool:
        """Whether a path that matches a pattern matches no other one when the name of its model is decoded."""
        if not has_name_escape(path):
            return True
        decoded = paths.with_slashes(path)
        return decoded == path or decoded not in self


def has_name_escape(path: bytes) -> bool:
    """Whether the path has an escape that only the name of a model may have."""
    return _NAME_ESCAPE.search(path) is not None


def _expression(pattern: str) -> bytes:
    """The pattern as an expression in which only `{model}` matches the escapes of a model's name."""
    parts = re.split(rf"(/\*\*\Z|{_PLACEHOLDER.pattern})", pattern)
    return b"".join(
        _EXPRESSIONS.get(part, _PLAIN + b"+") if index % 2 else re.escape(part.encode("ascii"))
        for index, part in enumerate(parts)
    )


def check(pattern: str) -> None:
    """Raise `InvalidValue` if no valid path can match `pattern`."""
    if not pattern.startswith("/"):
        raise InvalidValue("an endpoint begins with /, such as /v1/chat/completions")
    if pattern.count(_MODEL) > 1:
        raise InvalidValue("{model} is allowed only once in an endpoint")
    body = pattern.removesuffix("/**")
    if "**" in body:
        raise InvalidValue("** matches all remaining segments and can only be the last segment")
    sample = _PLACEHOLDER.sub("x", body)
    if re.search(r"[{}]", sample):
        raise InvalidValue("a placeholder is * or a name in braces, such as {id}")
    if not sample.isascii() or (sample and not paths.is_clear(sample.encode("ascii"))):
        raise InvalidValue("an endpoint is a plain path: no //, dot segments, query, ';', spaces or encoded separators")
