"""The code blocks of a page, each with what a test does with it, or why none can.

A comment precedes each block that a reader may type or use: `<!-- run: NAME -->`, or `<!-- not run: REASON -->`
with a reason that begins as one of `REASONS`. A `console` block shows commands, behind `$`, and what they print, and
has a comment too. What a program prints, and no more, is a `text` block, and needs none.
"""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

from attrs import frozen

#: Languages of blocks that are typed, or used in some other way.
TYPED = ("bash", "sh", "sql", "ini", "promql", "python", "yaml", "toml", "nginx", "caddyfile", "haproxy")
#: Languages of blocks that are only looked at.
SHOWN = ("", "text", "console", "mermaid")
#: How a reason begins: with what no test can have.
REASONS = (
    "it needs a cloud account",
    "it needs a cluster",
    "it needs a network",
    "it needs a server that was killed",
    "it needs systemd",
    "it needs ten minutes",
)
_BLOCK = re.compile(
    r"(?:^ *<!-- (?P<not>not )?run: (?P<words>[^\n]+) -->\n)?^ *```(?P<language>[\w-]*)[^\n`]*\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
_FENCE = re.compile(r"^ *(?:```|~~~)", re.MULTILINE)


@frozen
class Block:
    """`run` names what a test does with it, `reason` why none can; None where the page says neither."""

    language: str
    text: str
    run: str | None
    reason: str | None

    @property
    def typed(self) -> bool:
        """Whether somebody types or uses it."""
        return self.language in TYPED

    @property
    def commands(self) -> list[str]:
        """The commands of a `console` block."""
        return re.findall(r"^\$ (.*)$", self.text, re.MULTILINE) if self.language == "console" else []


def blocks(page: Path) -> list[Block]:
    """All code blocks of a page, in their order."""
    content = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(content):
        run, reason = (None, match["words"]) if match["not"] else (match["words"], None)
        found.append(Block(match["language"], dedent(match["text"]), run, reason))
    assert len(_FENCE.findall(content)) == 2 * len(found), f"{page.name} has a fence that is not understood"
    return found


def block(page: Path, run: str) -> str:
    """The text of the one block that has this name."""
    (text,) = [one.text for one in blocks(page) if one.run == run]
    return text
