"""Runs of pages must not hide a failing block or other output than the shown one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.following import follow, matches
from tests.harness.warm import Warm


@pytest.mark.parametrize(
    "block", ["```bash\nfalse\n```", "```python\nraise SystemExit(3)\n```", "```python\nopen('nowhere')\n```"]
)
def test_a_failing_block_fails_the_page(tmp_path: Path, warm: Warm, block: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"<!-- run: it -->\n{block}\n\n<!-- run: after it -->\n```bash\ntrue\n```\n")
    folder = tmp_path / "folder"
    folder.mkdir()
    outcome = follow(page, folder, warm, server="", known="", answers="", replaced={})
    assert outcome.status != 0
    assert "after it" not in outcome.printed


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a\nb", "a\nb\n", True),
        ("a\nb", "a\nc\n", False),
        ("a…\nb", "a lot\nb\n", True),
        ("a…b", "a\nb\n", False),
        ("a\n…\nb", "a\n1\n2\nb\n", True),
        ("a\n…\nb", "a\n1\n2\n", False),
        ("id 17539f6e-8b65-4fbb-b943-1f2be209c8ed", "id 01a220b4-1337-7000-a3b3-ef6f71a95071", True),
        ("id 17539f6e-8b65-4fbb-b943-1f2be209c8ed", "id -", False),
        ("…ZC50     1", "…ab-_     1", True),
    ],
)
def test_shown_output_is_compared_with_printed_output(shown: str, printed: str, *, same: bool) -> None:
    assert matches(shown, printed) is same
