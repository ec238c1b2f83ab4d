"""The reference of HTTP says what the code says."""

from __future__ import annotations

import pytest

from llm_proxy.manage import reference
from llm_proxy.manage.problems import Problem
from llm_proxy.proxy import reference as data_plane
from tests.harness.server import ROOT


def test_the_reference_page_is_what_the_tables_say() -> None:
    written = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
    assert written == reference.page(), "write it anew: python -m llm_proxy.manage.reference > docs/http.md"


def test_every_operation_and_field_is_there() -> None:
    text = reference.page()
    for resource in reference.resources():
        for operation in resource.operations:
            assert f"#### {operation.method} {operation.path}\n\n{operation.summary} Answers {operation.status}" in text
            for field in (*operation.query, *(operation.body.fields if operation.body else ())):
                assert f"| `{field.name}` | " in text


@pytest.mark.parametrize("kind", data_plane.errors(), ids=lambda kind: kind.code)
def test_an_error_of_the_data_plane_is_there(kind: type[Exception]) -> None:
    (found,) = [known for known in data_plane.errors() if known is kind]
    assert (
        f"\n| {found.status} | `{found.code}` | `{found.openai_type}` | `{found.anthropic_type}` | " in reference.page()
    )


def test_what_is_said_about_all_errors_of_a_kind() -> None:
    for kind in data_plane.errors():
        assert kind.default_retry_after == (1 if kind.status == 503 else None)
    assert {kind.code for kind in reference.refusals()} >= {"unauthorized", "name_taken", "token_revoked"}
    assert all(issubclass(kind, Problem) for kind in reference.refusals())
