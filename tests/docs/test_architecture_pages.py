"""What the architecture pages name is there: files, folders, functions, tables; and every decision is linked."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benchmarks.dashboard import PICTURE, drawn
from db.schema import metadata
from tests.harness.server import ROOT

PAGES = sorted((ROOT / "docs" / "architecture").glob("*.md"))
ADR = ROOT / "docs" / "adr"
_NAME = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(r"[\w-]+(?:/[\w.-]+)*/|(?:[\w-]+/)*[\w-]+\.(?:py|toml)")
#: Words between backticks that name something else: variables of the project's settings, codes, programs, signals.
_OTHER = frozenset({"void", "ok", "unknown", "finally", "demo", "benchmark", "__init__.py", "request.svg"})


@cache
def defined() -> frozenset[str]:
    """All functions, classes, methods (`Class.method`) and constants of the program."""
    names: set[str] = set()
    for folder in ("llm_proxy", "db"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.parse(path.read_text()).body:
                names |= _names_of(node)
    return frozenset(names)


def _names_of(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return {node.name}
    if isinstance(node, ast.ClassDef):
        functions = (one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef))
        return {node.name} | {f"{node.name}.{one.name}" for one in functions}
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    return set()


def is_there(path: str) -> bool:
    """Whether a file or folder is, below the repository or below the package."""
    return (ROOT / path).exists() or (ROOT / "llm_proxy" / path).exists() or (PICTURE.parent / path).exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_and_names_on_architecture_pages_exist(page: Path) -> None:
    settings = set(re.findall(r"`([A-Z_]+)`", (ROOT / "docs" / "configuration.md").read_text()))
    known = defined() | set(metadata.tables) | settings
    codes = set(re.findall(r'"([a-z_]+)"', (ROOT / "llm_proxy" / "errors.py").read_text()))
    outcomes = set(re.findall(r'"([a-z_]+)"', (ROOT / "db" / "records.py").read_text()))
    for name in _NAME.findall(re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)):
        if _PATH.fullmatch(name) or name.endswith(".svg"):
            assert is_there(name) or name == "__init__.py", name
        elif re.fullmatch(r"db(?:/\w+)*|llm_proxy", name):
            assert (ROOT / name).is_dir(), name
        elif " " not in name and "=" not in name:
            assert name in known | codes | outcomes | _OTHER or is_there(name), name


@pytest.mark.parametrize("room", ["llm_proxy", "db", "migrations"])
def test_a_docstring_that_lists_modules_lists_all(room: str) -> None:
    for init in (ROOT / room).rglob("__init__.py"):
        listed = set(re.findall(r"\w+", " ".join(_NAME.findall(ast.get_docstring(ast.parse(init.read_text())) or ""))))
        modules = {path.stem for path in init.parent.glob("*.py")} - {"__init__", "__main__"}
        modules |= {path.parent.name for path in init.parent.glob("*/__init__.py")}
        assert modules <= listed or not modules & listed, (init, modules - listed)


def test_import_layers_on_the_page_equal_the_contract() -> None:
    text = (ROOT / "docs" / "architecture" / "README.md").read_text()
    (drawing,) = re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    inside, whole = (contract["layers"] for contract in contracts[:2])
    layers = [[f"llm_proxy.{name}" for name in re.findall(r"\w+", layer)] for layer in inside]
    layers += [[layer] for layer in whole if layer != "llm_proxy"]
    assert [line.split() for line in drawing.splitlines()] == layers


def test_every_adr_is_listed_and_linked() -> None:
    decisions = {path.name for path in ADR.glob("0*.md")}
    listed = re.findall(r"\]\((0\d{3}-[\w-]+\.md)\)", (ADR / "README.md").read_text())
    assert listed == sorted(decisions)
    linked = {name for page in PAGES for name in re.findall(r"adr/(0\d{3}-[\w-]+\.md)", page.read_text())}
    # How ids look, what the way of a request does without, deadlines and the chart are matters of other pages.
    elsewhere = {name for name in decisions if name[:4] in {"0003", "0007", "0009", "0018"}}
    assert decisions - linked <= elsewhere


def test_the_dashboard_picture_is_drawn_from_its_record() -> None:
    assert PICTURE.read_bytes() == drawn(), "run python -m benchmarks.dashboard draw"


@pytest.mark.parametrize("picture", sorted(PICTURE.parent.glob("*.svg")), ids=lambda picture: picture.stem)
def test_pictures_contain_text_and_load_nothing_external(picture: Path) -> None:
    root = ET.parse(picture).getroot()  # noqa: S314 - a file of our own
    space = "{http://www.w3.org/2000/svg}"
    assert len(list(root.iter(f"{space}text"))) > 10
    text = re.sub(
        r"xmlns(?::\w+)?=\"[^\"]*\"|<!DOCTYPE[^>]*>|<metadata>.*?</metadata>", "", picture.read_text(), flags=re.DOTALL
    )
    assert "http" not in text
    assert "@import" not in text
