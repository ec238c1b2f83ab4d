"""The reference page says what the code says, and a server shows nothing else."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path

from llm_proxy.metrics.families import SECTIONS, Family
from llm_proxy.metrics.reference import page
from tests.databases.kinds import on
from tests.harness.deployment import Deployment


def exposed(family: Family) -> str:
    return f"{family.name}_total" if family.kind == "counter" else family.name


DECLARED = {exposed(family): family for family in chain.from_iterable(SECTIONS.values())}


def test_the_reference_page_is_what_the_declaration_says() -> None:
    written = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert written == page(), "write it anew: python -m llm_proxy.metrics.reference > docs/metrics.md"


def test_the_page_names_every_metric_with_its_labels() -> None:
    text = page()
    for name, family in DECLARED.items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
        assert family.text in row
        assert all(f"`{label.name}`: {label.values}" in row for label in family.labels)


@on("sqlite", "postgres", "mysql", "mariadb")
async def test_a_server_shows_what_is_declared_and_nothing_else(deployment: Deployment) -> None:
    await deployment.chat(deployment.new_secret())
    text = str(deployment.server.call("GET", "/metrics").content)
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    wanted = {name: family.kind for name, family in DECLARED.items()}
    if deployment.server.settings["DB_DRIVER"] != "sqlite":
        wanted = {name: kind for name, kind in wanted.items() if "_sqlite_" not in name}
    assert kinds == wanted
    for found in re.finditer(r"^(\w+)\{(.*)\} ", text, re.MULTILINE):
        name = next(name for name in DECLARED if re.fullmatch(rf"{name}(_bucket|_sum|_count)?", found[1]))
        labels = {label.name for label in DECLARED[name].labels}
        assert {label for label, _ in re.findall(r'(\w+)="([^"]*)"', found[2])} - {"le"} == labels
