"""A setting that is declared and never read is a lie."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import attrs
import pytest

from llm_proxy.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


@cache
def read_outside() -> frozenset[str]:
    """Names of attributes that are taken from something called settings, in all modules but those that declare them."""
    modules = [path for path in (ROOT / "llm_proxy").rglob("*.py") if "settings" not in path.relative_to(ROOT).parts]
    assert len(modules) > 50
    return frozenset(
        node.attr
        for path in modules
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and _is_settings(node.value)
    )


def _is_settings(node: ast.expr) -> bool:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name.strip("_") == "settings"


@pytest.mark.parametrize("name", [field.name for field in attrs.fields(Settings)])
def test_every_setting_is_read_where_something_is_done(name: str) -> None:
    assert name in read_outside()
