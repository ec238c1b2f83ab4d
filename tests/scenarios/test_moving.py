"""A deployment moves to another database: its clients notice nothing, and a copy that is killed loses nothing."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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
from tests.docs.prompt import environment
from tests.harness.deployment import Deployment
from tests.harness.files import write_secret
from tests.harness.server import ROOT, StartServer
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


def start_copy(old: Scratch, new: Scratch, *flags: str) -> subprocess.Popen[str]:
    places = ("--from", old.url or old.path, "--to", new.url or new.path)
    return subprocess.Popen(
        [sys.executable, "-m", "llm_proxy", "db", "copy", *places, *flags],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_typed(line: str, folder: Path) -> subprocess.Popen[str]:
    """A line of the page, in a folder with the files that it names."""
    return subprocess.Popen(
        ["bash", "-c", line],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def copied_so_far(new: Scratch) -> int:
    try:
        with opened(new.target, Options(), exclusive=False) as database:
            return copy.counts(database)["requests"]
    except DatabaseError:
        return 0


def kill_in_the_middle(process: subprocess.Popen[str], new: Scratch) -> int:
    """Kill a copy once it has written something; return how far it had come."""
    deadline = time.monotonic() + PATIENCE
    while not copied_so_far(new):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return copied_so_far(new)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    return output


def assert_refused(process: subprocess.Popen[str], *words: str) -> None:
    """One of the words says why."""
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, output
    assert any(reason in output for reason in words), output


async def test_db_copy_moves_a_deployment(
    databases: Databases,
    database_kind: Kind,
    migrated_database: Scratch,
    start_server: StartServer,
    upstream: Upstream,
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
        reached = kill_in_the_middle(start_copy(old, new), new)
        assert reached > 0
        assert_refused(start_copy(old, new), "is not empty")
        output = finish(start_copy(old, new, "--resume"))
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
        assert_refused(start_copy(old, new), "is in use by", "another llm-proxy process")
        for name, there in (("old-url", old), ("new-url", new)):
            write_secret(tmp_path / name, there.url or f"sqlite:///{there.path}")
        live = start_typed(beside, tmp_path)
        for _ in range(5):
            assert (await before.chat(secret)).status == http.client.OK
        told, _ = live.communicate(timeout=PATIENCE)
        assert live.returncode == 0 or "the source has changed meanwhile" in told, told
        assert (await before.chat(secret)).status == http.client.OK
        assert before.server.stop() == 0
        assert finish(start_typed(rest, tmp_path)).count(" equal") == len(copy.TABLES)
        verify(new.env)
        after = Deployment(start_server(new.env), upstream)
        assert (await after.chat(secret)).status == http.client.OK
        (token,) = after.server.manage("GET", "/tokens")["data"]
        assert token["request_count"] == 12
        assert after.server.stop() == 0
