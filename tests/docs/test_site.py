"""The documentation as a site: it is whole, it leads nowhere wrong, and it loads nothing from elsewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from attrs import Factory, define

from tests.docs.blocks import block, blocks
from tests.docs.test_links import anchors
from tests.harness.server import ROOT

DOCS = ROOT / "docs"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
#: The pages of the site, each with the Markdown that it is made of.
SOURCES = {
    **{page.relative_to(DOCS).as_posix(): page for page in sorted(DOCS.rglob("*.md"))},
    "changelog.md": ROOT / "CHANGELOG.md",
    "contributing.md": CONTRIBUTING,
}
#: What the sidebar begins with, top to bottom. A folder that has no pages is not there.
SECTIONS = [
    "Home",
    "Quick start",
    "Guides",
    "Database",
    "Deployment",
    "Operations",
    "Reference",
    "Architecture",
    "Decisions",
    "Benchmarks",
    "Contributing",
    "Change log",
]
#: What `make docs` has MkDocs do.
BUILD = ("build", "--clean", "--config-file", ".mkdocs.yaml")
#: Where an element names something that a browser fetches by itself.
LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "object": "data"}
_CODE = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)


@define
class Page(HTMLParser):
    """What matters of a page's HTML."""

    ids: set[str] = Factory(set)
    links: list[str] = Factory(list)
    loads: list[str] = Factory(list)
    classes: set[str] = Factory(set)
    #: Where the sidebar leads.
    navigation: list[str] = Factory(list)
    #: How often each element is in the text; `li pre` is code inside a list.
    content: dict[str, int] = Factory(dict)
    text: str = ""
    _sidebar: int = 0
    _article: int = 0
    _items: int = 0

    def __attrs_post_init__(self) -> None:
        """Let the parser begin."""
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        given = {name: value or "" for name, value in attrs}
        classes = given.get("class", "").split()
        self.classes |= set(classes)
        if "id" in given:
            self.ids.add(given["id"])
        if tag in LOADING and LOADING[tag] in given:
            self.loads.append(given[LOADING[tag]])
        if tag == "link" and given.get("rel") not in {"canonical", "next", "prev"}:
            self.loads.append(given["href"])
        self.loads += re.findall(r"url\(([^)]*)\)", given.get("style", ""))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "nav" and ("md-nav--primary" in classes or self._sidebar):
            self._sidebar += 1
        if self._sidebar and tag == "a" and "href" in given:
            self.navigation.append(given["href"])
        if tag == "article":
            self._article += 1
        if self._article:
            for name in (tag, f"li {tag}") if self._items else (tag,):
                self.content[name] = self.content.get(name, 0) + 1
        self._items += tag == "li" and self._article

    def handle_endtag(self, tag: str) -> None:
        """Note the end of an element."""
        if tag == "nav" and self._sidebar:
            self._sidebar -= 1
        if tag == "article":
            self._article -= 1
        self._items -= tag == "li" and self._article

    def handle_data(self, data: str) -> None:
        """Note text."""
        if self._article:
            self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning fails the build."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", *BUILD, "--strict", "--site-dir", str(folder)]
    env = {"PATH": "", "NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    built = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    """All pages by their path."""
    found = {}
    for file in sorted(site.rglob("*.html")):
        page = Page()
        page.feed(file.read_text(encoding="utf-8"))
        found[file.relative_to(site).as_posix()] = page
    return found


def html_of(source: str) -> str:
    return re.sub(r"(^|/)README$", r"\1index", source.removesuffix(".md")) + ".html"


def target_of(page: str, link: str) -> tuple[str, str]:
    """Where a link leads: a path within the site, and an anchor."""
    parts = urlsplit(urljoin(f"http://site/{page}", link))
    path = parts.path.lstrip("/")
    return unquote(path if path and not path.endswith("/") else f"{path}index.html"), unquote(parts.fragment)


def test_make_docs_builds_the_same_site() -> None:
    """And shows it, where that is asked for."""
    build, serve = block(CONTRIBUTING, "documentation").splitlines()
    for line, wanted in ((build, " ".join(BUILD)), (serve, " ".join(("serve", *BUILD[2:])))):
        command = line.partition("#")[0].replace("make", "make --dry-run")
        # What the make that runs the tests was told is not for this one.
        env = {"PATH": os.environ["PATH"]}
        bash = ["bash", "-c", command]
        said = subprocess.run(bash, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
        assert f"bin/mkdocs {wanted}\n" in said.stdout


def test_site_has_one_page_for_each_source(pages: dict[str, Page]) -> None:
    assert set(pages) - {"404.html"} == {html_of(source) for source in SOURCES}


def test_site_loads_nothing_external(site: Path, pages: dict[str, Page]) -> None:
    loads = {load for page in pages.values() for load in page.loads}
    for sheet in site.rglob("*.css"):
        loads |= set(re.findall(r"(?:url\(|@import )[\"' ]*([^)\"';]*)", sheet.read_text(encoding="utf-8")))
    assert len(loads) > 10
    assert [load for load in loads if re.match(r"(?:https?:)?//", load)] == []
    # The theme's script would fetch what draws these.
    assert not any("mermaid" in page.classes for page in pages.values())


def test_links_and_anchors_of_the_site_exist(site: Path, pages: dict[str, Page]) -> None:
    lost = []
    for name, page in pages.items():
        for link in [*page.links, *page.loads]:
            if re.match(r"(?:https?|mailto|data):", link):
                continue
            file, anchor = target_of(name, link)
            known = pages.get(file)
            if not (site / file).is_file() or (anchor and known is not None and anchor not in known.ids):
                lost.append(f"{name}: {link}")
    assert lost == []


def test_navigation_has_every_page(pages: dict[str, Page]) -> None:
    home = pages["index.html"]
    reached = {target_of("index.html", link)[0] for link in home.navigation}
    assert reached >= {html_of(source) for source in SOURCES}


def test_navigation_has_the_documented_order(site: Path) -> None:
    text = (site / "index.html").read_text(encoding="utf-8")
    sidebar = text[text.index("md-nav--primary") :]
    titles = re.findall(r'<span class="md-ellipsis">\s*(?:<span[^>]*>)?\s*([^<]+?)\s*<', sidebar)
    places = [titles.index(title) for title in SECTIONS if title in titles]
    assert places == sorted(places)
    assert set(SECTIONS) - set(titles) <= {"Architecture"}


@pytest.mark.parametrize("source", SOURCES)
def test_markdown_of_a_page_is_rendered(pages: dict[str, Page], source: str) -> None:
    """Forges and this site read lists, tables and code in the same way."""
    text = SOURCES[source].read_text(encoding="utf-8")
    prose = _CODE.sub("", text)
    content = pages[html_of(source)].content
    assert content.get("pre", 0) == len(blocks(SOURCES[source])) + len(re.findall(r"\n\n {4}\S", prose))
    assert content.get("li pre", 0) == sum(bool(indent) for indent in _CODE.findall(text))
    assert content.get("li", 0) == len(re.findall(r"^ *(?:[-*]|\d+\.) ", prose, re.MULTILINE))
    assert content.get("table", 0) == len(re.findall(r"^\|(?: *:?-+:? *\|)+$", prose, re.MULTILINE))
    assert sum(content.get(f"h{level}", 0) for level in range(1, 7)) == len(re.findall(r"^#+ ", prose, re.MULTILINE))
    assert anchors(SOURCES[source]) <= pages[html_of(source)].ids
    assert pages[html_of(source)].text.count("<!--") == len(re.findall(r"`<!--", prose))


def test_links_to_source_files_are_shown_as_paths(pages: dict[str, Page]) -> None:
    assert "benchmarks/targets.py" in pages["benchmarks.html"].text
    assert not any(link.endswith(".py") for page in pages.values() for link in page.links)


def test_search_finds_text_of_pages(site: Path) -> None:
    found = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    wanted = {"guides/budgets.html": "counts", "changelog.html": "Withering tokens", "http.html": "token_expired"}
    for location, words in wanted.items():
        assert any(doc["location"].startswith(location) and words in doc["text"] for doc in found), location
