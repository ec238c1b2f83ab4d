"""What the site does with pages that are written for a code forge, where people read the Markdown itself.

- Folders of the navigation become all their pages: the `README.md` first, then the pages in the order in which it links
  to them, then the others. A folder without pages is left out.
- Pages of the top of the repository become pages of the site.
- A link to any other file outside `docs` becomes the path as text; the site has no copy of the file.
- Comments for the tests of code blocks are removed.
- The content of a list item is indented by four spaces, as this Markdown needs it; two are enough for forges.

Loaded by MkDocs: https://www.mkdocs.org/user-guide/configuration/#hooks
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
#: Files of the top that are pages too, by the path of the page.
FROM_THE_TOP = {"changelog.md": ROOT / "CHANGELOG.md", "contributing.md": ROOT / "CONTRIBUTING.md"}

_CODE = r"^(?P<indent> *)```.*?^(?P=indent)```$|`[^`\n]*`"
_LINK = r"(?P<image>!?)\[(?P<text>[^\]\n]*)\]\((?P<target>[^)\s]+)\)"
_COMMENT = r"^ *<!--[^\n]*-->\n"
_PART = re.compile(f"{_CODE}|{_COMMENT}|{_LINK}", re.MULTILINE | re.DOTALL)
_ITEM = re.compile(r"(?:[-*]|\d+\.) +")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the top, and fill the folders of the navigation."""
    for path, source in FROM_THE_TOP.items():
        files.append(File.generated(config, path, abs_src_path=str(source)))
    pages = [file.src_uri for file in files.documentation_pages()]
    config.nav = filled(config.nav or [], pages)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn a page for the forge into one for the site."""
    source = FROM_THE_TOP.get(page.file.src_uri, DOCS / page.file.src_uri)
    return indented(rewritten(markdown, source, page.file.src_uri))


def rewritten(markdown: str, source: Path, uri: str) -> str:
    """Change the links of a page and take its comments out.

    Args:
        markdown: its text.
        source: its file.
        uri: its path within the site, where links begin.
    """

    def part(match: re.Match[str]) -> str:
        if match["target"] is not None:
            return _link(match, source, uri)
        return match[0] if match[0].lstrip().startswith("`") else ""

    return _PART.sub(part, markdown)


def _link(match: re.Match[str], source: Path, uri: str) -> str:
    path, hash_sign, anchor = match["target"].partition("#")
    if not path or re.match(r"[a-z]+:", path):
        return match[0]
    found = (source.parent / path).resolve()
    if found.is_dir() and (found / "README.md").exists():
        found /= "README.md"
    inside = {file: name for name, file in FROM_THE_TOP.items()}.get(found)
    if inside is None and found.is_relative_to(DOCS):
        inside = found.relative_to(DOCS).as_posix()
    if inside is not None:
        target = posixpath.relpath(inside, posixpath.dirname(uri) or ".")
        return f"{match['image']}[{match['text']}]({target}{hash_sign}{anchor})"
    # What does not exist stays as it is, for the build to complain about.
    if not found.is_relative_to(ROOT) or not found.exists():
        return match[0]
    name = found.relative_to(ROOT).as_posix()
    return f"`{name}`" if match["text"].strip("`") in name else f"{match['text']} (`{name}`)"


def filled(entries: Iterable[object], pages: list[str]) -> list[object]:
    """Fill the folders of a navigation, which are the entries that end in a slash.

    Args:
        entries: the navigation as it is configured.
        pages: the paths of all pages.
    """
    made: list[object] = []
    for entry in entries:
        if isinstance(entry, dict):
            ((title, what),) = entry.items()
            if isinstance(what, list):
                made.append({title: filled(what, pages)})
                continue
            if what.endswith("/"):
                found = _in_order(what, [page for page in pages if page.startswith(what)])
                if found:
                    made.append({title: found})
                continue
        made.append(entry)
    return made


def _in_order(folder: str, pages: list[str]) -> list[str]:
    index = f"{folder}README.md"
    if index not in pages:
        return sorted(pages)
    linked = re.findall(r"\]\(([^)\s#]+\.md)", (DOCS / index).read_text(encoding="utf-8"))
    order = {index: -1}
    for place, link in enumerate(linked):
        order.setdefault(posixpath.normpath(folder + link), place)
    return sorted(pages, key=lambda page: (order.get(page, len(linked)), page))


def indented(markdown: str) -> str:
    """Widen the indentation of what belongs to a list item of the first level; there are no deeper ones with blocks."""
    lines = []
    width, fence = 0, ""
    for line in markdown.split("\n"):
        inner = width > 0 and line.startswith(" " * width)
        if not fence and line and not inner:
            item = _ITEM.match(line)
            width = len(item[0]) if item else 0
        lines.append(" " * (4 - width) + line if inner and width < 4 else line)
        if line.lstrip().startswith("```"):
            fence = "" if fence else "```"
    return "\n".join(lines)
