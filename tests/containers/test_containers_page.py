"""What the page on containers has its readers type, with the image; and the stacks that choosing.md starts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.containers.engine import Engine, docker
from tests.containers.image import Image
from tests.databases.kinds import on
from tests.databases.scratch import Scratch
from tests.docs.blocks import block
from tests.docs.prompt import recorded
from tests.harness.server import ENCRYPTION_KEY, MANAGEMENT_TOKEN, ROOT, Server

PAGE = ROOT / "docs" / "deployment" / "containers.md"
CHOOSING = ROOT / "docs" / "database" / "choosing.md"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """An engine that runs nothing, in a checkout of its own."""
    for path in ROOT.iterdir():
        if path.name not in (".git", "containers", "data"):
            (tmp_path / path.name).symlink_to(path)
    shutil.copytree(ROOT / "containers", tmp_path / "containers", ignore=shutil.ignore_patterns("secrets"))
    with ExitStack() as stack:
        yield Engine(tmp_path, stack)


@pytest.fixture
def engine_with_image(engine: Engine, image: Image) -> Engine:
    """An engine that has the image, as `docker build` would leave it."""
    engine.image = image
    engine.tags.add("llm-proxy")
    return engine


def follow(engine: Engine, script: str) -> None:
    """Type a script, and have the engine do what is asked of `docker`."""
    calls = recorded(script, engine.folder, ["docker"])
    assert calls
    for call in calls:
        engine.do(call)


def test_a_flag_that_no_page_uses_is_refused() -> None:
    for command in (["run", "--readonly", "x"], ["compose", "--profiles", "x", "up", "-d"], ["exec", "a", "--", "b"]):
        assert CliRunner().invoke(docker, command).exit_code != 0


def test_image_block_runs_the_demo(engine_with_image: Engine) -> None:
    engine_with_image.tags.clear()
    follow(engine_with_image, block(PAGE, "image"))
    assert "The ledger is correct" in engine_with_image.said


def check(server: Server, token: str) -> None:
    """A server that manages projects for this token, and ends in time."""
    assert server.call("GET", "/manage/projects", token=token).status == 200
    assert server.stop() == 0


def test_sqlite_block_keeps_the_token_in_the_volume(engine_with_image: Engine) -> None:
    follow(engine_with_image, block(PAGE, "on SQLite"))
    ((server, containers),) = engine_with_image.running.values()
    assert (containers.data / "llm-proxy.db").exists()
    check(server, engine_with_image.said.strip())


@on("postgres")
def test_server_block_reads_secrets_from_files(engine_with_image: Engine, migrated_database: Scratch) -> None:
    folder = engine_with_image.folder / "etc/llm-proxy/secrets"
    folder.mkdir(parents=True)
    secrets = {"database-url": migrated_database.url, "management-token": MANAGEMENT_TOKEN}
    for name, secret in (secrets | {"encryption-key": ENCRYPTION_KEY}).items():
        (folder / name).write_text(secret)
    follow(engine_with_image, block(PAGE, "on a server"))
    ((server, containers),) = engine_with_image.running.values()
    assert list(containers.data.iterdir()) == []
    check(server, MANAGEMENT_TOKEN)


def test_compose_commands_start_the_documented_services(engine: Engine) -> None:
    follow(engine, block(PAGE, "stacks"))
    assert engine.started == ["proxy-sqlite", "proxy-sqlite", "prometheus", "grafana"]


@pytest.mark.parametrize(("page", "name"), [(PAGE, "database alone"), (CHOOSING, "a server with compose")])
def test_compose_commands_start_a_database_alone(engine: Engine, page: Path, name: str) -> None:
    """What the proxy is told of it is what the stack's own proxy is told, but for the name of the host."""
    follow(engine, f'{block(page, name)}\nprintf %s "${{DATABASE_URL:-}}" > "$HOME/url"')
    assert engine.started == ["postgres", "mysql"]
    inside = (engine.folder / "containers/secrets/postgres-url").read_text()
    outside = (engine.folder / "url").read_text()
    assert outside in ("", inside.replace("@postgres:", "@localhost:"))
    assert "llmproxy:secret@" in inside
    assert "llmproxy:secret@" in (engine.folder / "containers/secrets/mysql-url").read_text()
