"""Every declared setting is used."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import attrs
import pytest

from llm_proxy.config import Settings

ROOT = Path(__file__).resolve().parents[2]


@cache
def read_outside() -> frozenset[str]:
    """Names of settings that modules outside of `config` read: as attributes of settings, or with `load_setting`."""
    modules = [path for path in (ROOT / "llm_proxy").rglob("*.py") if path.name != "declaration.py"]
    assert len(modules) > 50
    nodes = [node for path in modules for node in ast.walk(ast.parse(path.read_text()))]
    attributes = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and _is_settings(node.value)
    }
    alone = {
        str(node.args[0].value).lower()
        for node in nodes
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "load_setting"
        and isinstance(node.args[0], ast.Constant)
    }
    return frozenset(attributes | alone)


def _is_settings(node: ast.expr) -> bool:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name.strip("_") == "settings"


@pytest.mark.parametrize("name", [field.name for field in attrs.fields(Settings)])
def test_every_setting_is_used(name: str) -> None:
    assert name in read_outside()
