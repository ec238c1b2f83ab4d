"""The privileges that the documentation names are enough: those to migrate, and fewer to serve."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from tests.databases.kinds import SERVERS, Kind, on
from tests.databases.scratch import Databases, Scratch
from tests.harness.deployment import Deployment
from tests.harness.server import ROOT

if TYPE_CHECKING:
    from benchmarks.processes import Upstream
    from tests.harness.server import StartServer

PASSWORD = "s3cret-of-a-user"
PAGES = {Kind.POSTGRES: "postgresql.md", Kind.MYSQL: "mysql.md", Kind.MARIADB: "mysql.md"}


def statements(page: Path, heading: str) -> Sequence[str]:
    """The SQL that stands under a heading of a page."""
    found = re.search(rf"^### {re.escape(heading)}$.*?^```sql\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{page} has no SQL under {heading!r}"
    text = re.sub(r"--.*", "", found[1])
    return [statement.strip() for statement in text.split(";") if statement.strip()]


@pytest.fixture
def grant(databases: Databases, database_kind: Kind, empty_database: Scratch) -> Iterator[Callable[[str], Scratch]]:
    """Runs the statements under a heading for this test's database, and leads to it as the user that they make."""
    page = ROOT / "docs" / "database" / PAGES[database_kind]
    admin, name = databases.server(database_kind).admin, empty_database.name
    users = {"llmproxy_owner": f"o_{name[-12:]}", "llmproxy_server": f"s_{name[-12:]}"}

    def run(heading: str) -> Scratch:
        made = ""
        for statement in statements(page, heading):
            if statement.startswith("CREATE DATABASE"):
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
    owner = grant("A user that migrates and serves")
    await serve(start_server, upstream, owner)
    await serve(start_server, upstream, grant("A user that only serves"))
