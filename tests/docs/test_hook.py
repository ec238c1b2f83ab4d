"""What the site makes of pages that are written for a code forge."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.site import hook
from tests.harness.server import ROOT

DOCS = ROOT / "docs"


@pytest.mark.parametrize(
    ("source", "uri", "written", "wanted"),
    [
        ("docs/index.md", "index.md", "[a](http.md#paths)", "[a](http.md#paths)"),
        ("docs/index.md", "index.md", "[a](../CHANGELOG.md#top)", "[a](changelog.md#top)"),
        ("docs/database/sqlite.md", "database/sqlite.md", "[a](../../CONTRIBUTING.md)", "[a](../contributing.md)"),
        ("docs/database/sqlite.md", "database/sqlite.md", "[a](../adr)", "[a](../adr/README.md)"),
        ("docs/database/sqlite.md", "database/sqlite.md", "[a](#when) ![b](x.svg)", "[a](#when) ![b](x.svg)"),
        ("CHANGELOG.md", "changelog.md", "[docs/http.md](docs/http.md)", "[docs/http.md](http.md)"),
        (
            "docs/benchmarks.md",
            "benchmarks.md",
            "[the targets](../benchmarks/targets.py)",
            "the targets (`benchmarks/targets.py`)",
        ),
        ("docs/benchmarks.md", "benchmarks.md", "[`targets.py`](../benchmarks/targets.py)", "`benchmarks/targets.py`"),
        ("docs/index.md", "index.md", "[a](https://example.com/x.py)", "[a](https://example.com/x.py)"),
        ("docs/index.md", "index.md", "[a](nowhere.md)", "[a](nowhere.md)"),
        ("docs/index.md", "index.md", "[a](../nowhere.py)", "[a](../nowhere.py)"),
        ("docs/index.md", "index.md", "`[a](../LICENSE)`", "`[a](../LICENSE)`"),
        (
            "docs/index.md",
            "index.md",
            "```md\n<!-- b -->\n[a](../LICENSE)\n```",
            "```md\n<!-- b -->\n[a](../LICENSE)\n```",
        ),
        (
            "docs/index.md",
            "index.md",
            "a\n\n  <!-- run: it -->\n  ```bash\n  b\n  ```\n",
            "a\n\n  ```bash\n  b\n  ```\n",
        ),
    ],
)
def test_hook_rewrites_links_and_removes_comments(source: str, uri: str, written: str, wanted: str) -> None:
    assert hook.rewritten(written, ROOT / source, uri) == wanted


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("- a\n  b\n\n  c\n", "- a\n    b\n\n    c\n"),
        (
            "1. a\n\n   ```bash\n   b\n\n     c\n   ```\n\nd\n  e",
            "1. a\n\n    ```bash\n    b\n\n      c\n    ```\n\nd\n  e",
        ),
        ("- a\n  - b\n", "- a\n    - b\n"),
        ("a\n  b\n```\n- c\n  d\n```\n", "a\n  b\n```\n- c\n  d\n```\n"),
        ("12. a\n    b", "12. a\n    b"),
    ],
)
def test_hook_indents_list_items_by_four_spaces(written: str, wanted: str) -> None:
    assert hook.indented(written) == wanted


def test_hook_expands_folders_in_the_order_of_their_readme() -> None:
    pages = ["index.md", *(f"guides/{page.name}" for page in sorted((DOCS / "guides").glob("*.md"))), "guides/new.md"]
    pages += ["adr/0002.md", "adr/0001.md"]
    home, guides, inner = hook.filled(["index.md", {"G": "guides/"}, {"H": [{"I": "adr/"}, {"J": "none/"}]}], pages)
    assert (home, inner) == ("index.md", {"H": [{"I": ["adr/0001.md", "adr/0002.md"]}]})
    assert isinstance(guides, dict)
    names = [Path(page).stem for page in guides["G"]]
    assert names[:4] == ["README", "first-project", "credentials", "providers"]
    assert names[-1] == "new"
    assert len(names) == len(pages) - 3
