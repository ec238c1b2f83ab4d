"""What the tree promises about its shape, and no linter can say. The directions of imports are in pyproject.toml."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.tiers import SLOW_PLACES

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("llm_proxy", "db", "migrations", "benchmarks", "docs", "tests")
#: What may stand at the top, beside dot-files and what tools leave behind.
TOP = {*ROOMS, "containers", "helm", "pyproject.toml", "Makefile", "README.md", "LICENSE", "CHANGELOG.md"} | {
    "CONTRIBUTING.md"
}
LEFT_BEHIND = {"build", "data", "dist", "__pycache__"}
#: Rooms of the tests that mirror no room of the program: the ground they stand on, and stories about the whole.
TEST_ROOMS = {"databases", "harness", "scenarios", "scripted"}

VAGUE = {"utils", "util", "helpers", "helper", "common", "base", "manager", "managers", "misc", "shared", "core"}

#: Modules, and the only places that may import them.
FENCED = {
    "asyncio": (),
    "anyio": (),
    "trio_asyncio": (),
    # The benchmark of reports runs their statements again, to see what they read.
    "sqlalchemy": ("db/", "migrations/", "tests/", "benchmarks/reports/"),
    "alembic": ("db/", "migrations/", "tests/"),
    "pg8000": ("db/", "tests/databases/", "tests/db/"),
    "pymysql": ("db/", "tests/databases/", "tests/db/"),
    "httptools": (
        "llm_proxy/server/",
        "llm_proxy/gateway/upstream/",
        "llm_proxy/load/",
        "benchmarks/",
        "tests/server/",
    ),
    "genai_prices": ("llm_proxy/prices/", "tests/prices/"),
    "hypercorn": ("llm_proxy/server/", "tests/"),
    "benchmarks": ("benchmarks/", "tests/"),
    "docs": ("docs/", "tests/docs/"),
    "tests": (
        "tests/",
        "benchmarks/databases.py",
        "benchmarks/dashboard.py",
        # The management API in the process of the benchmark.
        "benchmarks/reports/calls.py",
        # The upstream of the benchmarks and of the tests is one process, which serves the scripted provider.
        "benchmarks/upstream/",
        "benchmarks/stream_hello.py",
    ),
}
#: Names of databases, which `db/dialects` alone may compare with.
DATABASES = {"sqlite", "postgresql", "mysql", "mariadb"}
_WAIVER = re.compile(
    r"#\s*(?P<waiver>noqa(?::[\s,A-Z0-9]+)?|type:\s*ignore(?:\[[\w, -]+\])?|pragma: no cover)(?P<rest>.*)"
)
_STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)


@cache
def sources() -> tuple[Path, ...]:
    """All our Python files."""
    found = [path for room in ROOMS for path in (ROOT / room).rglob("*.py") if "__pycache__" not in path.parts]
    assert len(found) > 50
    return tuple(sorted(found))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


@cache
def imports_of(path: Path) -> tuple[tuple[int, str], ...]:
    """Line and module of each import, those inside functions too; what only annotations need is left out."""
    return tuple(_imports_of(tree_of(path)))


def _imports_of(tree: ast.Module) -> Iterator[tuple[int, str]]:
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.lineno, node.module
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += node.orelse
        else:
            # No expression has an import in it.
            waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, _STATEMENTS)]


def test_the_top_level_is_fixed() -> None:
    entries = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    found = {name for name in entries - LEFT_BEHIND if not name.endswith(".egg-info")}
    assert found <= TOP


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [name_of(path) for path in sources() if VAGUE & set(path.relative_to(ROOT).with_suffix("").parts)] == []


@pytest.mark.parametrize("module", FENCED)
def test_a_fenced_module_is_imported_behind_its_fence_only(module: str) -> None:
    outside = [
        f"{name_of(path)}:{line}"
        for path in sources()
        if not name_of(path).startswith(FENCED[module])
        for line, imported in imports_of(path)
        if imported.partition(".")[0] == module
    ]
    assert outside == []


def test_operations_change_the_database_through_their_call_only() -> None:
    """`Call.write` adds the entry of the audit log; `RefusedCalls` writes nothing else."""
    writers = {
        name_of(path)
        for path in sources()
        if name_of(path).startswith("llm_proxy/api/")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("write")
        and ast.unparse(node.value).endswith(("database", "_database"))
    }
    assert writers == {"llm_proxy/api/operations.py", "llm_proxy/api/audit.py"}


def test_queries_are_the_same_on_every_database() -> None:
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in sources()
        if name_of(path).startswith(("db/queries/", "llm_proxy/ledger/"))
        for node in ast.walk(tree_of(path))
        if (isinstance(node, ast.Constant) and node.value in DATABASES)
        or (isinstance(node, ast.Attribute) and node.attr == "dialect")
    ]
    assert found == []


def test_every_slow_place_exists() -> None:
    assert [place for place in SLOW_PLACES if not (ROOT / place).exists()] == []


def test_tests_mirror_the_tree() -> None:
    rooms = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    mirrored = {path.name for room in (ROOT, ROOT / "llm_proxy") for path in room.iterdir() if path.is_dir()}
    assert rooms - mirrored <= TEST_ROOMS


def test_every_waiver_names_its_rule_and_its_reason() -> None:
    bare = []
    for path in sources():
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            match = _WAIVER.search(line)
            if match is None:
                continue
            named = match["waiver"].startswith("pragma") or ":" in match["waiver"].replace("type:", "") or "[" in line
            reason = match["rest"].strip(" -#:")
            if not named or len(reason) < len("reason"):
                bare.append(f"{name_of(path)}:{number}")
    assert bare == []
