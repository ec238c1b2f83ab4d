from __future__ import annotations

import json
from pathlib import Path

import pytest
from attrs import evolve

from db.database import opened
from db.dsn import parse
from db.options import Options
from db.queries import projects
from llm_proxy.secrets.encryption import KeyRing
from tests.cli.conftest import Run
from tests.db.queries.factories import a_project
from tests.secrets.test_keys import NEW, OLD, OTHER, add_project, opened_with, ring


@pytest.fixture
def file(run: Run, folder: Path) -> Path:
    """A SQLite file with a project under the old key."""
    assert run("migrate", "up", "--db", "x.db").exit_code == 0
    with opened(parse("sqlite", None, "x.db"), Options()) as database:
        add_project(database, ring(OLD), "sk-1")
    return folder / "x.db"


def test_a_rotation_says_what_it_did(run: Run, file: Path) -> None:
    keys = {"ENCRYPTION_KEY": f"{NEW},{OLD}"}
    kid = ring(NEW).key_ids[0]
    result = run("keys", "rotate", "--db", "x.db", "--dry-run", env=keys)
    assert (result.exit_code, result.stderr) == (0, "")
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["under", "the", "key", "with", "the", "id", kid],
        ["would", "be", "re-encrypted", "1"],
        ["current", "0"],
        ["unreadable", "0"],
    ]
    result = run("keys", "rotate", "--db", "x.db", "--json", env=keys)
    assert json.loads(result.stdout) == {"resealed": 1, "current": 0, "unreadable": [], "key": kid, "dry_run": False}
    assert run("keys", "rotate", "--db", "x.db", env=keys).exit_code == 0
    with opened(parse("sqlite", None, "x.db"), Options()) as database:
        assert list(opened_with(database, ring(NEW)).values()) == ["sk-1"]


def test_a_key_that_cannot_be_read_is_an_error(run: Run, file: Path) -> None:
    result = run("keys", "rotate", "--db", "x.db", env={"ENCRYPTION_KEY": f"{NEW},{OTHER}"})
    assert result.exit_code == 1
    assert f"encrypted with the key '{ring(OLD).key_ids[0]}', which is not in ENCRYPTION_KEY" in result.stderr
    assert OTHER not in result.output
    assert NEW not in result.output


def test_a_running_server_on_sqlite_has_to_be_stopped(run: Run, file: Path) -> None:
    with opened(parse("sqlite", None, "x.db"), Options()):
        result = run("keys", "rotate", "--db", "x.db", env={"ENCRYPTION_KEY": f"{NEW},{OLD}"})
    assert result.exit_code == 1
    assert "stop it first" in result.stderr


def test_the_key_of_a_file_beside_the_database_is_the_only_one(run: Run, file: Path) -> None:
    with opened(parse("sqlite", None, "x.db"), Options()) as database:
        database.write_now(projects.create, evolve(a_project(), api_key="plain:sk-2"))
    (file.parent / "x.db.key").write_text(OLD + "\n")
    (file.parent / "x.db.key").chmod(0o600)
    result = run("keys", "rotate", "--db", "x.db")
    assert result.exit_code == 1
    assert "stored in plain text" in result.stderr
    assert KeyRing.from_setting(OLD).key_ids[0] in result.stdout


def test_a_check_misses_a_key(run: Run, file: Path) -> None:
    assert run("db", "check", "--db", "x.db").exit_code == 0
    assert run("db", "check", "--db", "x.db", env={"ENCRYPTION_KEY": f"{NEW},{OLD}"}).exit_code == 0
    result = run("db", "check", "--db", "x.db", env={"ENCRYPTION_KEY": NEW})
    assert result.exit_code == 1
    assert f"problem: 1 of 1 stored API keys need the key with the id {ring(OLD).key_ids[0]} (1); " in result.stderr
