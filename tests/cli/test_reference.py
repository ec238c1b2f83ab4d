from __future__ import annotations

from llm_proxy.cli import reference
from tests.harness.server import ROOT


def test_the_reference_page_is_what_the_program_says() -> None:
    page = ROOT / "docs" / "commands.md"
    assert page.read_text() == reference.page(), "write it anew: python -m llm_proxy.cli.reference > docs/commands.md"


def test_the_reference_has_every_command() -> None:
    page = reference.page()
    for command in ("db copy", "db backup", "db check", "keys rotate", "ledger verify", "migrate up", "server"):
        assert f"## llm-proxy {command}\n" in page
    assert "Commands:" not in page
