"""The quick start and the guides: whatever they have their reader type is run, against one server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from benchmarks.processes import Upstream
from llm_proxy.config import Settings
from llm_proxy.errors import DATA_PLANE
from llm_proxy.gateway.providers import provider_file
from llm_proxy.gateway.providers.provider_file import Api
from tests.docs.blocks import block, blocks
from tests.docs.following import Outcome, follow, matches, steps
from tests.harness.deployment import UPSTREAM_KEY
from tests.harness.server import ROOT, Server, running_server
from tests.harness.warm import Warm

DOCS = ROOT / "docs"
PROVIDERS = DOCS / "guides" / "providers.md"
PAGES = [DOCS / "index.md", DOCS / "quick-start.md", *sorted((DOCS / "guides").glob("*.md"))]
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
#: The pages whose project is another one than OpenAI's.
PROVIDER_OF = {"anthropic": "anthropic"}
#: What the fixtures do instead of a page: starting the server, which the Makefile does with `llm-proxy server`.
STARTED = "make run"


@pytest.fixture(scope="module")
def server(session_upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server as the pages have it, with only a port and keys of labels; all its providers are the scripted one."""
    file = tmp_path_factory.mktemp("providers") / "providers.yaml"
    text = re.sub(r"base_url: \S+", f"base_url: {session_upstream.url}", block(PROVIDERS, "the file"))
    file.write_text(text.replace("anthropic: {}", f"anthropic: {{base_url: {session_upstream.url}}}"))
    settings = {"API_CONFIG_PATH": str(file), "OPENAI_API_URL": session_upstream.url}
    with running_server(
        {}, settings | {"MANAGEMENT_TOKEN": "", "ENCRYPTION_KEY": "", "LABEL_KEYS": "team,user"}
    ) as server:
        yield server
        assert server.stop() == 0, server.output


def known(server: Server, name: str, provider: str) -> str:
    """A project and a token for a page, as the commands print them."""
    token = (server.folder / "data" / "llm-proxy.db.management-token").read_text().strip()
    wanted = {"name": name, "api_key": UPSTREAM_KEY, "provider": provider}
    project = server.call("POST", "/manage/projects", wanted, token=token).content["id"]
    made = server.call("POST", "/manage/tokens", {"project_id": project}, token=token).content
    return f"id {project}\nprovider {provider}\ntoken {made['token']}\nid {made['id']}\nends in x\n"


@pytest.fixture(scope="module")
def outcomes(server: Server, warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Outcome]:
    """What became of each page."""

    def one(page: Path) -> Outcome:
        folder = tmp_path_factory.mktemp(page.stem)
        (folder / "data").symlink_to(server.folder / "data")
        before = known(server, f"{page.stem} page", PROVIDER_OF.get(page.stem, "openai"))
        # The server keeps running beside the page, wherever that starts it.
        key = f"{UPSTREAM_KEY}\n"
        return follow(page, folder, warm, server=server.url, known=before, answers=key, replaced={STARTED: "true"})

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(PAGES, pool.map(one, PAGES), strict=True))


@EVERY_PAGE
def test_blocks_of_a_guide_print_the_shown_output(page: Path, outcomes: dict[Path, Outcome]) -> None:
    outcome = outcomes[page]
    assert outcome.status == 0, outcome.words
    for step in steps(page):
        if step.shown is not None:
            printed = outcome.printed[str(step.block.run)]
            assert matches(step.shown, printed), f"{step.block.run} prints:\n{printed}"


def test_provider_files_of_the_guides_are_valid(tmp_path: Path) -> None:
    files = [one.text for one in blocks(PROVIDERS) if one.language == "yaml"]
    assert len(files) == 3
    for text in files:
        file = tmp_path / "providers.yaml"
        file.write_text(text)
        provider_file.load(Settings.load({"API_CONFIG_PATH": str(file)}, dotenv_path=None))
    rows = set(re.findall(r"^\| `([\w.]+)` \|", PROVIDERS.read_text(), re.MULTILINE))
    keys = set(yaml.safe_load(files[1])["apis"]["strict"])
    assert {row.partition(".")[0] for row in rows} == keys == set(Api.__struct_fields__)


def test_errors_page_has_every_error_code() -> None:
    rows = re.findall(r"^\| (\d{3}) \| `(\w+)` \| \S", (DOCS / "guides" / "errors.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted((str(kind.status), kind.code) for kind in DATA_PLANE)
