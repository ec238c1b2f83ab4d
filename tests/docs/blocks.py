"""The code blocks of a page, each with what a test does with it, or why none can.

A comment stands before each block that somebody may type: `<!-- run: NAME -->`, or `<!-- not run: REASON -->`. What a
program prints is a `text` or `console` block, and needs none.
"""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

from attrs import frozen

#: Languages of blocks that are typed.
TYPED = ("bash", "sql", "ini", "promql")
_BLOCK = re.compile(
    r"(?:^ *<!-- (?P<not>not )?run: (?P<words>[^\n]+) -->\n)?^ *```(?P<language>\w*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


@frozen
class Block:
    """`run` names what a test does with it, `reason` why none can; None where the page says neither."""

    language: str
    text: str
    run: str | None
    reason: str | None


def blocks(page: Path) -> list[Block]:
    """All code blocks of a page, in their order."""
    found = []
    for match in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        run, reason = (None, match["words"]) if match["not"] else (match["words"], None)
        found.append(Block(match["language"], dedent(match["text"]), run, reason))
    return found


def block(page: Path, run: str) -> str:
    """The text of the one block that has this name."""
    (text,) = [one.text for one in blocks(page) if one.run == run]
    return text
