"""A page that says what is not so is found out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.following import Outcome, follow, matches, steps
from tests.docs.warm import Warm

PAGE = """\
<!-- run: a token -->
```bash
printf 'id one\\nprovider openai\\nid two\\nends in x\\ntoken sk-three\\n'
```

<!-- run: placeholders -->
```bash
echo '{"project": "PROJECT_ID"}' "TOKEN_ID" 'Bearer TOKEN' MANAGEMENT_TOKEN
read -r asked; echo "$asked"
```

```text
{"project": "one"} two Bearer sk-three MANAGEMENT_TOKEN
answer
```

<!-- run: first -->
```python
made = "TOKEN"
print(made)
```

<!-- run: second -->
```python
print(made[:2])
```

```text
sk
```

<!-- run: refused -->
```console
$ false
$ echo refused
refused
```
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    made.mkdir()
    return made


def followed(text: str, folder: Path, warm: Warm) -> tuple[Path, Outcome]:
    page = folder.parent / "page.md"
    page.write_text(text)
    return page, follow(page, folder, warm, server="", known="", answers="answer\n", replaced={})


def test_blocks_of_a_page_share_a_shell_and_printed_values(folder: Path, warm: Warm) -> None:
    page, outcome = followed(PAGE, folder, warm)
    assert outcome.status == 0, outcome.words
    assert outcome.printed["first"] == "sk-three\n"
    for step in steps(page):
        assert step.shown is None or matches(step.shown, outcome.printed[str(step.block.run)])


@pytest.mark.parametrize(
    "block", ["```bash\nfalse\n```", "```python\nraise SystemExit(3)\n```", "```python\nopen('nowhere')\n```"]
)
def test_a_failing_block_fails_the_page(folder: Path, warm: Warm, block: str) -> None:
    _, outcome = followed(f"<!-- run: it -->\n{block}\n\n<!-- run: after it -->\n```bash\ntrue\n```\n", folder, warm)
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
