"""README.md and CONTRIBUTING.md in a folder that is as empty as a new checkout, but has its environment already."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from click.testing import CliRunner

from benchmarks.__main__ import main as benchmarks
from benchmarks.processes import Upstream
from db.dsn import Target
from tests.databases import fixtures
from tests.databases.kinds import on
from tests.databases.scratch import Databases
from tests.docs.blocks import block, blocks
from tests.docs.prompt import RECORDERS, done, make_program, recorded, serving
from tests.harness.deployment import UPSTREAM_KEY
from tests.harness.server import ROOT, Server
from tests.helm import generate
from tests.helm.chart import EXAMPLES

README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
METRICS = ROOT / "docs" / "metrics.md"
#: The tools that `make` may start, all of them in the environment.
TOOLS = ("python", "llm-proxy", "ruff", "mypy", "lint-imports")
PROGRAMS = {
    "python": "import os, sys; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])",
    "llm-proxy": "from llm_proxy.cli import main; main()",
}


def checkout(folder: Path) -> Path:
    """A folder with the files of this one, and an environment that make finds up to date."""
    for path in ROOT.iterdir():
        if not path.name.startswith(".") and path.name != "data":
            (folder / path.name).symlink_to(path)
    tools = folder / ".venv" / "bin"
    tools.mkdir(parents=True)
    for name in TOOLS:
        make_program(tools / name, PROGRAMS.get(name, "raise SystemExit('not here')"))
    for stamp in (".runtime", ".development", ".servers"):
        (folder / ".venv" / stamp).touch()
    return folder


#: What `make lint`, `make check` and `make test` start without ARGS.
LINT = [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"], ["lint-imports", "--no-logo"]]
PROCESSES = ["--numprocesses", "4", "--dist", "loadfile", "--no-loadscope-reorder"]
FAST_TESTS = ["python", "-m", "pytest", "-m", "not slow", *PROCESSES]
ALL_TESTS = ["python", "-m", "pytest", *PROCESSES]


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    return checkout(tmp_path)


def calls(fresh: Path, script: str) -> list[list[str]]:
    """What `make` starts, where nothing that it starts does anything."""
    tools = fresh / ".venv" / "bin"
    for name in TOOLS:
        (tools / name).unlink(missing_ok=True)
        (tools / name).symlink_to(fresh / RECORDERS / name)
    return [[call.name, *call.arguments] for call in recorded(script, fresh, TOOLS)]


def words(text: str) -> list[str]:
    """What the tour says, without the ids and times of a run."""
    text = re.sub(r"(?m)(\$[\d.]+)(?: +\d+){2}$", r"\1", text)  # durations after the cost
    return re.sub(r"…[0-9a-f]{8}|\b\d+\.\d\b|\d{4}-\d\d-01(?=[T ]00:00:00Z)", "#", text).split()


def test_readme_first_commands_run_in_a_fresh_checkout(fresh: Path) -> None:
    tour, tests = block(README, "first commands").splitlines()
    toured = done(tour.replace("make demo", "make demo ARGS=--once"), fresh)
    (ending,) = [one.text for one in blocks(README) if one.language == ""]
    assert words(ending) == words(toured)[-len(words(ending)) :]
    assert calls(fresh, tests) == [ALL_TESTS]
    listed = done("make help", fresh)
    assert {"demo", "run", "test", "lint", "bench"} <= set(re.findall(r"^ +make (\w+)", listed, re.MULTILINE))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, session_upstream: Upstream) -> Iterator[Server]:
    """A server as the quick start begins it: its database, key and token are in the folder."""
    folder = checkout(tmp_path_factory.mktemp("checkout"))
    providers = folder / "providers.yaml"
    apis = {name: {"base_url": session_upstream.url} for name in ("openai", "anthropic")}
    providers.write_text(json.dumps({"default_api": "openai", "apis": apis}))
    with serving(block(README, "run"), folder, {"API_CONFIG_PATH": str(providers)}) as server:
        yield server


@pytest.fixture(scope="module")
def secret(server: Server) -> str:
    """The token that both commands lead to; in between, the project's id is copied by hand."""
    where = f"--manage-api-base-url {server.url}"
    script = re.sub(r"(llm-proxy manage \w+ \w+)", rf"\1 {where}", block(README, "project and token"))
    path, project, token = script.splitlines()
    shown = done(f"{path}\n{project}", server.folder, given=f"{UPSTREAM_KEY}\n")
    assert UPSTREAM_KEY not in shown
    (project_id,) = re.findall(r"^id +(\S+)$", shown, re.MULTILINE)
    (found,) = re.findall(r"sk-[\w-]{40,}", done(f"{path}\n{token.replace('ID', project_id)}", server.folder))
    return str(found)


def test_files_of_a_new_server_are_private(server: Server) -> None:
    data = server.folder / "data"
    kept = {"llm-proxy.db", "llm-proxy.db.key", "llm-proxy.db.management-token"}
    assert kept <= {path.name for path in data.iterdir()}
    assert {oct((data / name).stat().st_mode)[-3:] for name in kept} == {"600"}


def test_readme_openai_example_works(server: Server, secret: str) -> None:
    names = run(server, block(README, "openai"), "http://localhost:8080", secret)
    assert names["answer"].choices[0].message.content


def test_readme_anthropic_example_works(server: Server, secret: str) -> None:
    token = (server.folder / "data" / "llm-proxy.db.management-token").read_text().strip()
    wanted = {"name": "claude", "provider": "anthropic", "api_key": UPSTREAM_KEY}
    project = server.call("POST", "/manage/projects", wanted, token=token).content
    made = server.call("POST", "/manage/tokens", {"project_id": project["id"]}, token=token).content
    names = run(server, block(README, "anthropic"), "http://localhost:8080", made["token"])
    assert names["message"].content[0].text


def test_metrics_page_example_works(server: Server) -> None:
    shown = done(block(METRICS, "scrape").replace("http://localhost:8080", server.url), server.folder)
    assert "llm_proxy_database_up 1.0\n" in shown


def run(server: Server, text: str, url: str, secret: str) -> dict[str, Any]:
    """Run the Python of the page, told where the server of the test is and what its token is."""
    assert url in text
    assert "sk-…the token…" in text
    names: dict[str, Any] = {}
    exec(text.replace(url, server.url).replace("sk-…the token…", secret), names)  # noqa: S102 (our own page)
    names["client"].close()
    return names


def test_contributing_setup_starts_the_documented_programs(fresh: Path) -> None:
    called = calls(fresh, block(CONTRIBUTING, "set up"))
    # `make check` lints beside its tests.
    called[1:6] = sorted(called[1:6])
    assert called == [["llm-proxy", "demo"], *sorted([*LINT, FAST_TESTS]), ALL_TESTS, *LINT]


def test_contributing_examples_select_tests(fresh: Path) -> None:
    one_file, by_name = block(CONTRIBUTING, "one test").splitlines()
    assert " passed" in done(one_file, fresh)
    ((*_, option, words),) = calls(fresh, by_name)
    assert (option, words) == ("-k", "admission and postgres")


def test_contributing_fixtures_exist(request: pytest.FixtureRequest) -> None:
    """With the types that the page gives them."""
    text = block(CONTRIBUTING, "fixtures")
    asked = [node for node in ast.parse(text).body if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef)]
    assert len(asked) == 4
    for node in asked:
        names: dict[str, Any] = {"Target": Target, "Databases": Databases, "on": on}
        exec(ast.unparse(node), names)  # noqa: S102 (our own page)
        for name, kind in get_type_hints(names["test_something"], names).items():
            if name != "return":
                given = get_type_hints(getattr(fixtures, name).__wrapped__)["return"]
                assert kind in (given, *get_args(given)), name


def test_contributing_command_for_generated_pages_works(fresh: Path) -> None:
    """That what it writes is what is there, test_generated_pages.py holds."""
    assert calls(fresh, block(CONTRIBUTING, "generated pages")) == [["python", "-m", "docs.generate"]]


def test_contributing_command_for_the_chart_works(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That what it writes is what is there, test_chart.py holds."""
    assert calls(fresh, block(CONTRIBUTING, "chart")) == [["python", "-m", "tests.helm.generate"]]
    golden = tmp_path / "golden"
    golden.mkdir()
    schema, page = tmp_path / "schema.json", tmp_path / "page.md"
    schema.write_bytes(generate.SCHEMA.read_bytes())
    for name, path in {"SCHEMA": schema, "REFERENCE": page, "GOLDEN": golden}.items():
        monkeypatch.setattr(generate, name, path)
    monkeypatch.setattr(generate, "rendered", str)
    generate.main()
    assert page.read_bytes() == (ROOT / "docs" / "deployment" / "helm-values.md").read_bytes()
    assert len(list(golden.iterdir())) == len(EXAMPLES)


def test_contributing_benchmark_options_exist(fresh: Path) -> None:
    (text,) = [one.text for one in blocks(CONTRIBUTING) if one.reason]
    asked = calls(fresh, text)
    assert len(asked) == 3
    for name, flag, module, *arguments in asked:
        assert (name, flag, module) == ("python", "-m", "benchmarks")
        shown = CliRunner().invoke(benchmarks, [*arguments, "--help"])
        assert shown.exit_code == 0, shown.output
