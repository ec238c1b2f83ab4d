"""A deployment moves to another database: its clients notice nothing, and a copy that is killed loses nothing."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import time
from pathlib import Path

from attrs import frozen

from benchmarks.processes import Upstream
from db import copy
from db.database import opened
from db.errors import DatabaseError
from db.options import Options
from tests.databases.fixtures import require
from tests.databases.kinds import Kind
from tests.databases.scratch import Databases, Scratch
from tests.db.pasts import write_past
from tests.docs.blocks import block
from tests.docs.prompt import environment, forked
from tests.harness.deployment import Deployment
from tests.harness.files import write_secret
from tests.harness.server import ROOT, StartServer, loaded
from tests.scenarios.ledger_checks import verify

PAGE = ROOT / "docs" / "database" / "moving.md"
#: Where each database moves to.
NEXT = {
    Kind.SQLITE: Kind.POSTGRES,
    Kind.POSTGRES: Kind.MYSQL,
    Kind.MYSQL: Kind.MARIADB,
    Kind.MARIADB: Kind.SQLITE,
}
PAST = 3000
PATIENCE = 120.0


@frozen
class Copy:
    """`llm-proxy db copy` as it runs, and the file with what it says."""

    process: subprocess.Popen[bytes]
    said: Path

    def end(self) -> tuple[int, str]:
        """Wait until it has ended; return its status and what it said."""
        return self.process.wait(PATIENCE), self.said.read_text()


def start_copy(folder: Path, old: Scratch, new: Scratch, *flags: str) -> Copy:
    places = ("--from", old.url or old.path, "--to", new.url or new.path)
    with (folder / "copy").open("wb") as output:
        process = loaded().start(["db", "copy", *places, *flags], folder, {"PATH": os.environ["PATH"]}, output)
    return Copy(process, folder / "copy")


def start_typed(line: str, folder: Path) -> Copy:
    """A line of the page, in a folder with the files that it names."""
    variables = environment(folder)
    with (folder / "typed").open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", line],
            cwd=folder,
            env=variables | {"PATH": f"{forked(folder)}:{variables['PATH']}"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return Copy(process, folder / "typed")


def copied_so_far(new: Scratch) -> int:
    try:
        with opened(new.target, Options(), exclusive=False) as database:
            return copy.counts(database)["requests"]
    except DatabaseError:
        return 0


def kill_in_the_middle(copying: Copy, new: Scratch) -> int:
    """Kill a copy once it has written something; return how far it had come."""
    deadline = time.monotonic() + PATIENCE
    while not copied_so_far(new):
        assert copying.process.poll() is None, copying.end()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    copying.process.kill()
    assert copying.end()[0] == -signal.SIGKILL
    return copied_so_far(new)


def finish(copying: Copy) -> str:
    status, said = copying.end()
    assert status == 0, said
    return said


def assert_refused(copying: Copy, *words: str) -> None:
    """One of the words says why."""
    status, said = copying.end()
    assert status == 1, said
    assert any(reason in said for reason in words), said


async def test_db_copy_moves_a_deployment(
    databases: Databases,
    database_kind: Kind,
    migrated_database: Scratch,
    start_server: StartServer,
    upstream: Upstream,
    tmp_path: Path,
) -> None:
    require(databases, NEXT[database_kind])
    old = migrated_database
    before = Deployment(start_server(old.env), upstream)
    secret = before.new_secret(max_requests=3)
    assert (await before.chat(secret)).status == http.client.OK
    assert before.server.stop() == 0
    with opened(old.target, Options()) as database:
        write_past(database, requests=PAST)

    with databases.migrated(NEXT[database_kind]) as new:
        reached = kill_in_the_middle(start_copy(tmp_path, old, new), new)
        assert reached > 0
        assert_refused(start_copy(tmp_path, old, new), "is not empty")
        output = finish(start_copy(tmp_path, old, new, "--resume"))
        assert output.count(" equal") == len(copy.TABLES), output
        verify(new.env)

        after = Deployment(start_server(new.env), upstream)
        assert (await after.chat(secret)).status == http.client.OK
        assert (await after.chat(secret)).status == http.client.OK
        assert (await after.chat(secret)).status == http.client.TOO_MANY_REQUESTS
        assert after.server.stop() == 0
        verify(new.env)


async def test_db_copy_prepared_beside_servers_needs_a_short_downtime(
    databases: Databases,
    database_kind: Kind,
    migrated_database: Scratch,
    start_server: StartServer,
    upstream: Upstream,
    tmp_path: Path,
) -> None:
    """The bulk is copied beside the running server, and what has changed since once it is stopped: as the page says."""
    beside, rest = [line for line in block(PAGE, "cut-over").splitlines() if line.startswith("llm-proxy")]
    require(databases, NEXT[database_kind])
    old = migrated_database
    before = Deployment(start_server(old.env), upstream)
    secret = before.new_secret()
    for _ in range(5):
        assert (await before.chat(secret)).status == http.client.OK
    with databases.migrated(NEXT[database_kind]) as new:
        assert_refused(start_copy(tmp_path, old, new), "is in use by", "another llm-proxy process")
        for name, there in (("old-url", old), ("new-url", new)):
            write_secret(tmp_path / name, there.url or f"sqlite:///{there.path}")
        live = start_typed(beside, tmp_path)
        for _ in range(5):
            assert (await before.chat(secret)).status == http.client.OK
        status, told = live.end()
        assert status == 0 or "the source has changed meanwhile" in told, told
        assert (await before.chat(secret)).status == http.client.OK
        assert before.server.stop() == 0
        assert finish(start_typed(rest, tmp_path)).count(" equal") == len(copy.TABLES)
        verify(new.env)
        after = Deployment(start_server(new.env), upstream)
        assert (await after.chat(secret)).status == http.client.OK
        (token,) = after.server.manage("GET", "/tokens")["data"]
        assert token["request_count"] == 12
        assert after.server.stop() == 0
