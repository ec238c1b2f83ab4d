"""The pages that are made from the code say what the code says, all of it."""

from __future__ import annotations

import runpy
from itertools import chain
from pathlib import Path

import pytest
from msgspec import structs

from docs import generate
from docs.generate import DOCS, PAGES, commands, configuration, http, metrics
from llm_proxy.api import RESOURCES
from llm_proxy.config import Settings
from llm_proxy.config.sources import declared
from llm_proxy.errors import DATA_PLANE, MANAGEMENT, ProxyError
from llm_proxy.metrics.families import SECTIONS


@pytest.mark.parametrize("name", PAGES)
def test_generated_pages_are_up_to_date(name: str) -> None:
    written = (DOCS / name).read_text(encoding="utf-8")
    assert written == PAGES[name](), "write it anew: python -m docs.generate"


def test_generate_command_writes_all_pages_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    runpy.run_module("docs.generate", run_name="__main__")
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == {
        name: page() for name, page in PAGES.items()
    }


def test_http_page_has_every_operation_and_field() -> None:
    text = http.page()
    for resource in RESOURCES:
        for operation in resource.operations:
            assert f"#### {operation.method} {operation.path}\n\n{operation.summary} Answers {operation.status}" in text
            for struct in (operation.query, operation.body):
                for field in structs.fields(struct) if struct else ():
                    assert f"| `{field.encode_name}` | " in text


@pytest.mark.parametrize("kind", DATA_PLANE, ids=lambda kind: kind.code)
def test_http_page_has_every_error_of_the_data_plane(kind: type[ProxyError]) -> None:
    types = " | ".join(f"`{word}`" for word in kind.types)
    assert f"\n| {kind.status} | `{kind.code}` | {types} | " in http.page()


def test_general_statements_about_errors_on_the_http_page_are_true() -> None:
    for kind in DATA_PLANE:
        assert kind.retry_after == (1 if kind.status == 503 else None)
    assert {kind.code for kind in MANAGEMENT} >= {"unauthorized", "name_taken", "token_revoked"}


def test_configuration_page_has_every_setting_and_no_broken_row() -> None:
    text = configuration.page()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(declared(Settings))
    assert {row.count("|") for row in rows} == {5}
    assert "| `DATABASE_CONN_MAX_LIFETIME` | duration | `1h` | Age at which" in text


def test_metrics_page_has_every_metric_with_its_labels() -> None:
    text = metrics.page()
    for family in chain.from_iterable(SECTIONS.values()):
        name = f"{family.name}_total" if family.kind == "counter" else family.name
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
        assert family.text in row
        assert all(f"`{label.name}`: {label.values}" in row for label in family.labels)


def test_commands_page_has_every_command() -> None:
    text = commands.page()
    for command in ("db copy", "db backup", "db check", "keys rotate", "ledger verify", "migrate up", "server"):
        assert f"## llm-proxy {command}\n" in text
    assert "Commands:" not in text
