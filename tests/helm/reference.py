"""The reference page of the chart: its values from the comments in values.yaml, and what it refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from attrs import frozen

from tests.helm.chart import CHART

_SENTENCES = Path(__file__).with_name("refusals.yaml")
_LINE = re.compile(r"(?P<indent> *)(?P<name>[A-Za-z_]+):(?: (?P<value>\S.*))?")

_INTRODUCTION = """\
# Values of the Helm chart

What [the chart](helm.md) takes, from the comments in its `values.yaml`. A value that it does not know is an error, and
so is one of another kind than these. What does not go together [is refused](#what-is-refused).
"""

_REFUSALS = """
## What is refused

Before anything is installed, and all of it at once. Numbers, names and drivers are those of an example.

"""


@frozen
class Row:
    """A value: its path, its default, its description, and its topic."""

    topic: str
    path: str
    default: str
    meaning: str


def rows() -> Iterator[Row]:
    """All values, in the order of the file. A map that is given as a block is a path, not a value."""
    topic, comments = "", list[str]()
    path: list[str] = []
    for line in (CHART / "values.yaml").read_text().splitlines():
        text = line.strip()
        if text.startswith("## "):
            topic, comments = text.removeprefix("## "), []
        elif text.startswith("#"):
            comments.append(text.removeprefix("#").strip())
        elif match := _LINE.fullmatch(line):
            path = [*path[: len(match["indent"]) // 2], match["name"]]
            if match["value"] is not None:
                yield Row(topic, ".".join(path), match["value"], " ".join(comments))
            comments = []
        else:
            comments = []


def page() -> str:
    """The whole page, in Markdown."""
    parts = [_INTRODUCTION]
    topic = ""
    for row in rows():
        if row.topic != topic:
            topic = row.topic
            parts.append(f"\n## {topic}\n\n| value | default | what it is for |\n|---|---|---|\n")
        default = "none" if yaml.safe_load(row.default) in ("", [], {}) else f"`{row.default}`"
        parts.append(f"| `{row.path}` | {default} | {row.meaning.replace('|', '¦')} |\n")
    parts.append(_REFUSALS)
    parts += [f"- {sentence}\n" for sentence in dict.fromkeys(case["sentence"] for case in refusals().values())]
    return "".join(parts)


def refusals() -> dict[str, dict[str, Any]]:
    """What the chart refuses: values, and the sentence for them."""
    found: dict[str, dict[str, Any]] = yaml.safe_load(_SENTENCES.read_text())
    return found
