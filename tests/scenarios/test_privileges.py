"""The privileges that the documentation names are enough: those to migrate, and fewer to serve."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from db.database import opened
from db.options import Options
from tests.databases.kinds import SERVERS, Kind, on
from tests.databases.scratch import Databases, Scratch
from tests.docs.blocks import block
from tests.harness.deployment import Deployment
from tests.harness.server import ROOT

if TYPE_CHECKING:
    from benchmarks.processes import Upstream
    from tests.harness.server import StartServer

PASSWORD = "s3cret-of-a-user"
PAGES = {Kind.POSTGRES: "postgresql.md", Kind.MYSQL: "mysql.md", Kind.MARIADB: "mysql.md"}


def statements(page: Path, name: str) -> Sequence[str]:
    """The SQL of a block."""
    text = re.sub(r"--.*", "", block(page, name))
    return [statement.strip() for statement in text.split(";") if statement.strip()]


@pytest.fixture
def grant(databases: Databases, database_kind: Kind, empty_database: Scratch) -> Iterator[Callable[[str], Scratch]]:
    """Runs the statements of a block for this test's database, and leads to it as the user that they make."""
    page = ROOT / "docs" / "database" / PAGES[database_kind]
    admin, name = databases.server(database_kind).admin, empty_database.name
    users = {"llmproxy_owner": f"o_{name[-12:]}", "llmproxy_server": f"s_{name[-12:]}"}

    def run(block_name: str) -> Scratch:
        made = ""
        for statement in statements(page, block_name):
            if statement.startswith("CREATE DATABASE"):
                # The test has its database already.
                admin.execute(re.sub(r"\bllmproxy\b", f"{name}_new", statement))
                admin.drop(f"{name}_new")
                continue
            if user := re.match(r"CREATE (?:USER|ROLE) (\w+)", statement):
                made = users[user[1]]
            concrete = statement.replace("a-long-password", PASSWORD)
            for written, real in (users | {"llmproxy": name}).items():
                concrete = re.sub(rf"\b{written}\b", real, concrete)
            admin.execute(concrete, database=name)
        before, _, rest = empty_database.url.partition("@")
        scheme = before.rpartition("//")[0]
        prefix = f"{scheme}//" if scheme else ""
        return Scratch(database_kind, name, f"{prefix}{made}:{PASSWORD}@{rest}", "")

    yield run
    for user in users.values():
        drop = f"DROP USER IF EXISTS {user}"
        if database_kind is Kind.POSTGRES:
            exists = f"IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{user}')"
            drop = f"DO $$ BEGIN {exists} THEN DROP OWNED BY {user} CASCADE; DROP ROLE {user}; END IF; END $$"
        admin.execute(drop, database=name)


async def serve(start_server: StartServer, upstream: Upstream, scratch: Scratch) -> None:
    server = start_server(scratch.env)
    deployment = Deployment(server, upstream)
    # Its name, because both servers keep their projects in one database.
    project = await trio.to_thread.run_sync(lambda: deployment.new_project(name=f"project of {server.pid}"))
    secret: str = await trio.to_thread.run_sync(deployment.new_secret, project["id"])
    assert (await deployment.chat(secret)).status == 200
    assert await server.stopped() == 0, server.output
    assert [event for event in server.events if event["level"] != "info"] == []


@on(*SERVERS)
# The grants come before the servers, so that those have stopped before the users go.
async def test_the_documented_privileges_are_enough(
    grant: Callable[[str], Scratch], start_server: StartServer, upstream: Upstream
) -> None:
    owner = grant("owner")
    await serve(start_server, upstream, owner)
    await serve(start_server, upstream, grant("server only"))


@on("mysql")
def test_ending_frozen_transactions_needs_the_process_privilege(grant: Callable[[str], Scratch]) -> None:
    grant("owner")
    target = grant("server only").target
    with opened(target, Options()) as database:
        assert "lacks the privilege PROCESS" in str(trio.run(database.end_frozen))
    grant("process")
    with opened(target, Options()) as database:
        assert trio.run(database.end_frozen) is None
