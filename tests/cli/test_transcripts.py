"""What pages show of a terminal is what commands print there: word for word, but for numbers, ids and file sizes."""

from __future__ import annotations

import re
from pathlib import Path

from attrs import evolve
from click.testing import Result

from benchmarks.ports import free_port
from db.database import opened
from db.dsn import parse
from db.options import Options
from db.queries import projects, tokens
from llm_proxy.secrets.encryption import KeyRing
from tests.cli.conftest import Run
from tests.databases.kinds import on
from tests.databases.scratch import Scratch, account
from tests.db.pasts import write_past
from tests.db.queries.factories import a_project, a_token
from tests.docs.blocks import block
from tests.harness.files import write_secret
from tests.harness.server import ROOT

PAGES = ROOT / "docs" / "database"
FILE = parse("sqlite", None, "data/llm-proxy.db")
#: Ids of rows, keys and digests, and numbers.
_OWN = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|\b[0-9a-f]{8,16}\b|[\d,]+")


def transcript(page: str, name: str) -> list[tuple[list[str], list[str]]]:
    """The commands of a block, each with the lines that it prints; what stands for lines is left out, with those."""
    found = []
    for part in re.split(r"^\$ llm-proxy ", block(PAGES / page, name), flags=re.MULTILINE)[1:]:
        command, *lines = part.splitlines()
        found.append((command.split(), lines[lines.index("…") + 1 :] if "…" in lines else lines))
    return found


def words(line: str) -> list[str]:
    """A line without what is another one each time; columns are as wide as their numbers."""
    return _OWN.sub("#", line).split()


def compare(result: Result, lines: list[str]) -> None:
    """Whether a command has printed what a page shows."""
    assert list(map(words, result.output.splitlines())) == list(map(words, lines))


def test_up_and_down(run: Run) -> None:
    for command, lines in transcript("migrations.md", "up and down"):
        result = run(*command)
        assert result.output.splitlines() == lines
        assert result.exit_code == (command[-1] == "status")


def test_a_checked_copy(run: Run, folder: Path) -> None:
    assert run("migrate", "up").exit_code == 0
    ((command, lines),) = transcript("backup.md", "a checked copy")
    (folder / command[-1]).parent.mkdir()
    result = run(*command)
    assert result.exit_code == 0
    compare(result, lines)


def test_a_copy(run: Run, folder: Path) -> None:
    assert run("migrate", "up").exit_code == 0
    with opened(FILE, Options()) as database:
        write_past(database, 20)
    write_secret(folder / "new-url", f"sqlite:///{folder}/new.db")
    ((command, lines),) = transcript("moving.md", "a copy")
    result = run(*command)
    assert result.exit_code == 0, result.output
    compare(result, lines)


def test_a_repair(run: Run) -> None:
    assert run("migrate", "up").exit_code == 0
    project = a_project()
    with opened(FILE, Options()) as database:
        database.write_now(projects.create, project)
        database.write_now(tokens.create, a_token(project.id, request_count=7))
    (verify, shown), (repair, result) = transcript("maintenance.md", "repair")
    wrong = run(*verify)
    assert wrong.exit_code == 1
    compare(wrong, shown)
    repaired = run(*repair)
    assert repaired.exit_code == 0
    compare(repaired, result)


def test_a_rotation(run: Run) -> None:
    old, new = KeyRing.generate(), KeyRing.generate()
    assert run("migrate", "up").exit_code == 0
    with opened(FILE, Options()) as database:
        for _ in range(3):
            project = a_project()
            database.write_now(projects.create, evolve(project, api_key=old.seal("sk-1", project.id)))
    for command, lines in transcript("maintenance.md", "rotation"):
        result = run(*command, env={"ENCRYPTION_KEY": f"{new.to_setting()},{old.to_setting()}"})
        assert result.exit_code == 0, result.output
        compare(result, lines)


@on("mysql")
def test_errors(run: Run, empty_database: Scratch) -> None:
    (login, refused), (reach, nobody), (find, nothing) = transcript("troubleshooting.md", "errors")
    with account(empty_database) as owner:
        wrong = owner.fill("llmproxy:secret@tcp(localhost:3306)/llmproxy").replace(":secret@", ":wrong@")
    result = run(*login, env={"DB_DRIVER": "mysql", "DATABASE_URL": wrong})
    assert result.exit_code == 2
    compare(result, [refused[0].replace("llmproxy:", f"{empty_database.name}:")])
    url = f"postgres://llmproxy@127.0.0.1:{free_port()}/llmproxy"
    result = run(*reach, env={"DB_DRIVER": "postgres", "DATABASE_URL": url})
    assert result.exit_code == 2
    compare(result, nobody)
    result = run(*find, env={"DATABASE_PATH": "none.db"})
    assert result.exit_code == 1  # there is nothing to reach
    compare(result, nothing)
