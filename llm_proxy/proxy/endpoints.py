"""The allow-list of a provider's endpoints: patterns of paths, matched by whole segments.

A pattern is a path whose segments are

- literal text, which matches itself byte for byte;
- `*` or `{name}`, which matches any one segment, never an empty one;
- text with such placeholders in it (`{model}:generateContent`), each standing for one or more characters;
- `**` as the last segment, which matches all the rest, at least one character of it.

So `/v1/models` does not allow `/v1/modelsX`, `/v1/models/` or `/v1/models/x`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from attrs import Factory, define

from llm_proxy.errors import InvalidPath
from llm_proxy.proxy import paths

_PLACEHOLDER = re.compile(r"\*|\{[A-Za-z_][A-Za-z0-9_]*\}")


@define
class _Node:
    """What may follow after some segments: the next ones, an end, or anything."""

    literal: dict[bytes, _Node] = Factory(dict)
    wild: list[tuple[re.Pattern[bytes], _Node]] = Factory(list)
    end: bool = False
    rest: bool = False

    def matches(self, segments: list[bytes], index: int) -> bool:
        if index == len(segments):
            return self.end
        segment = segments[index]
        if (node := self.literal.get(segment)) is not None and node.matches(segments, index + 1):
            return True
        for pattern, node in self.wild:
            if pattern.fullmatch(segment) and node.matches(segments, index + 1):
                return True
        return self.rest and segments[index:] != [b""]


class Endpoints:
    """A compiled allow-list; `path in endpoints` for raw paths that `paths.check` has let through."""

    def __init__(self, patterns: Iterable[str]) -> None:
        """Compile `patterns`. Raises `ValueError`, with a sentence for the operator, for one that is none."""
        literal: set[bytes] = set()
        self._root = _Node()
        for pattern in patterns:
            _check(pattern)
            if _PLACEHOLDER.search(pattern):
                self._add(pattern.encode("ascii"))
            else:
                literal.add(pattern.encode("ascii"))
        self._literal = frozenset(literal)

    def __contains__(self, path: bytes) -> bool:
        return path in self._literal or self._root.matches(path.split(b"/"), 1)

    def _add(self, pattern: bytes) -> None:
        node = self._root
        for segment in pattern.split(b"/")[1:]:
            if segment == b"**":
                node.rest = True
                return
            text = segment.decode("ascii")
            if not _PLACEHOLDER.search(text):
                node = node.literal.setdefault(segment, _Node())
                continue
            expression = re.compile(b".+".join(re.escape(part.encode("ascii")) for part in _PLACEHOLDER.split(text)))
            for known, following in node.wild:
                if known.pattern == expression.pattern:
                    node = following
                    break
            else:
                node.wild.append((expression, following := _Node()))
                node = following
        node.end = True


def _check(pattern: str) -> None:
    """Raise `ValueError` unless some path that is taken at all can match `pattern`."""
    if not pattern.startswith("/"):
        raise ValueError("an endpoint begins with /, such as /v1/chat/completions")
    body = pattern.removesuffix("/**")
    if "**" in body:
        raise ValueError("** stands for all the rest and can only be the last segment")
    try:
        sample = _PLACEHOLDER.sub("x", body)
        if re.search(r"[{}]", sample):
            raise ValueError("a placeholder is * or a name in braces, such as {id}")
        if sample:
            paths.check(sample.encode("ascii"))
    except (UnicodeEncodeError, InvalidPath):
        raise ValueError(
            "an endpoint is a plain path: no //, dot segments, query, ';', spaces or encoded separators"
        ) from None
