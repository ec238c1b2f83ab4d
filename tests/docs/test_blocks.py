"""Whatever a page has its reader type is run by a test, or says why it cannot be."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import pytest
from click.testing import CliRunner

from db.statistics import Statistics
from llm_proxy.cli import program
from llm_proxy.metrics.families import FAILURES, RETRIES, SECTIONS, Family
from tests.docs.blocks import REASONS, SHOWN, blocks
from tests.harness.server import ROOT

DATABASE = ROOT / "docs" / "database"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Also the names that Prometheus's client libraries give to a process, which are ours with a prefix.
_METRIC = re.compile(r"\b(?:llm_proxy_(?!_)|process_|python_)[a-z_]+[a-z]\b")
#: A command of ours in prose, in a table or in a block, up to what the shell does with it.
_COMMAND = re.compile(r"(?:^ *|`|\$ |-- |\| )(?:\w+=\S+ )*llm-proxy ((?:[\w./:=@$'\",…*-]+ ?)*)", re.MULTILINE)
each_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])


@cache
def words() -> dict[Path, frozenset[str]]:
    """What each test file names: its strings, and of those that are paths of pages the last part."""
    found = {}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if path != Path(__file__):
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            values = [node.value for node in nodes if isinstance(node, ast.Constant)]
            strings = [value for value in values if isinstance(value, str) and "\n" not in value]
            pages = [text.rpartition("/")[2] for text in strings if text.endswith(".md")]
            found[path] = frozenset(chain(strings, pages))
    return found


@cache
def followed() -> dict[Path, Path]:
    """Pages that a test follows from the top to the end, with all that they have typed; each with that test."""
    found: dict[Path, Path] = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if path != Path(__file__) and "from tests.docs.following import" in path.read_text(encoding="utf-8"):
            module = importlib.import_module(f"tests.docs.{path.stem}")
            found |= dict.fromkeys(getattr(module, "PAGES", ()), path)
    return found


def runners(page: Path, name: str) -> list[Path]:
    """The test files that name both a page and a block, or the one that follows the page."""
    if page in followed():
        return [followed()[page]]
    return [path for path, named in words().items() if {page.name, name} <= named]


@each_page
def test_every_code_block_is_run_or_has_a_reason(page: Path) -> None:
    for block in blocks(page):
        assert block.typed or block.language in SHOWN, f"is {block.language} typed? Say so in blocks.py"
        if block.typed or block.commands:
            assert block.run or block.reason, f"no `run` or `not run` before\n{block.text}"
        if block.reason is not None:
            assert block.reason.startswith(REASONS), f"no reason of blocks.py: {block.reason}"
        if block.run is not None:
            found = [str(path.relative_to(ROOT)) for path in runners(page, block.run)]
            assert len(found) == 1, f"{page.name}, {block.run!r} is run by {found or 'no test'}"


@each_page
def test_commands_are_not_in_blocks_of_output(page: Path) -> None:
    for block in blocks(page):
        if block.language in ("", "text"):
            assert re.search(r"^(?:\$ |(?:llm-proxy|make|docker|helm|kubectl|curl|psql|export) )", block.text) is None


def commands(page: Path) -> Iterator[str]:
    """Our commands on a page, wherever they stand, as far as they are more than an example of a form."""
    for found in _COMMAND.findall(page.read_text(encoding="utf-8").replace("\\\n", " ")):
        yield found.replace("…", "ANY").strip()


@each_page
def test_llm_proxy_commands_on_pages_exist(page: Path) -> None:
    """With options that it has; what they do is for those tests that run them."""
    for command in commands(page):
        # Options are looked at before the help is shown.
        done = CliRunner().invoke(program, [*shlex.split(command), "--help"])
        assert done.exit_code == 0, f"llm-proxy {command}\n{done.output}"


def test_monitoring_page_explains_every_database_metric() -> None:
    text = (DATABASE / "monitoring.md").read_text()
    for family in SECTIONS["Database"]:
        name = f"{family.name}_total" if family.kind == "counter" else family.name
        assert f"| `{name}` |" in text


@pytest.mark.parametrize(("family", "causes"), [(RETRIES, Statistics().retries), (FAILURES, Statistics().failures)])
def test_monitoring_page_names_the_causes_of_errors(family: Family, causes: dict[str, int]) -> None:
    text = (DATABASE / "monitoring.md").read_text()
    assert set(re.findall(r"`(\w+)`", family.labels[0].values)) == set(causes)
    assert all(f"`{cause}`" in text for cause in causes)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: page.name)
def test_metrics_on_pages_exist(page: Path) -> None:
    names = {family.name for family in chain.from_iterable(SECTIONS.values())}
    ends = ("", "_total", "_bucket", "_sum", "_count")
    known = {name + end for name in names for end in ends}
    for found in _METRIC.findall(page.read_text()):
        assert found in known or any(name.startswith(found) for name in names), found
