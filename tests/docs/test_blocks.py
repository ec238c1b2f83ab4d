"""Whatever a page has its reader type is run by a test, or says why it cannot be."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path

import pytest

from db.tally import Tally
from llm_proxy.metrics.families import FAILURES, RETRIES, SECTIONS, Family
from tests.docs.blocks import TYPED, blocks
from tests.harness.server import ROOT

DATABASE = ROOT / "docs" / "database"
#: The pages that hold to it, and what runs their blocks.
PAGES = {
    "choosing.md": ROOT / "tests" / "scenarios" / "test_database_guide.py",
    "monitoring.md": ROOT / "tests" / "scenarios" / "test_monitoring_guide.py",
}
_METRIC = re.compile(r"\bllm_proxy_(?!_)[a-z_]+[a-z]\b")


@pytest.mark.parametrize("name", PAGES)
def test_every_block_is_run_or_has_its_reason(name: str) -> None:
    source = PAGES[name].read_text()
    typed = [block for block in blocks(DATABASE / name) if block.language in TYPED]
    assert typed
    for block in typed:
        assert block.run or (block.reason and len(block.reason) > 10), block.text
        assert block.run is None or f'"{block.run}"' in source, f"{PAGES[name].name} does not run {block.run!r}"


def test_the_page_about_monitoring_speaks_of_every_metric_of_the_database() -> None:
    text = (DATABASE / "monitoring.md").read_text()
    for family in SECTIONS["Database"]:
        name = f"{family.name}_total" if family.kind == "counter" else family.name
        assert f"| `{name}` |" in text


@pytest.mark.parametrize(("family", "causes"), [(RETRIES, Tally().retries), (FAILURES, Tally().failures)])
def test_the_causes_are_named_where_the_metrics_are_explained(family: Family, causes: dict[str, int]) -> None:
    text = (DATABASE / "monitoring.md").read_text()
    assert set(re.findall(r"`(\w+)`", family.labels[0].values)) == set(causes)
    assert all(f"`{cause}`" in text for cause in causes)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: page.name)
def test_a_metric_that_a_page_names_exists(page: Path) -> None:
    names = {family.name for family in chain.from_iterable(SECTIONS.values())}
    ends = ("", "_total", "_bucket", "_sum", "_count")
    known = {name + end for name in names for end in ends}
    for found in _METRIC.findall(page.read_text()):
        assert found in known or any(name.startswith(found) for name in names), found
