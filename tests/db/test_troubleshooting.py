"""Operators find every message of the database layer on the page about troubles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "database" / "troubleshooting.md"
ERRORS = {"BadDsn", "FileInUse", "Unavailable", "Contention", "CommitUnknown", "SchemaMismatch", "Refused", "Failure"}
#: Shorter pieces between what is filled in say nothing by themselves.
LEAST = 12


def messages() -> Iterator[str]:
    """The fixed pieces of all messages that the database layer makes."""
    for path in sorted((ROOT / "db").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS:
                for argument in node.args:
                    yield from pieces(argument)


def pieces(argument: ast.expr) -> Iterator[str]:
    parts = argument.values if isinstance(argument, ast.JoinedStr) else [argument]
    for part in parts:
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and len(part.value.strip()) >= LEAST:
            yield normalized(part.value)


def normalized(text: str) -> str:
    return " ".join(text.split()).strip(" :;,.")


@pytest.mark.parametrize("message", sorted(set(messages())))
def test_a_message_is_explained(message: str) -> None:
    assert message in normalized(PAGE.read_text(encoding="utf-8").replace("`", "").replace("\\|", "|"))
