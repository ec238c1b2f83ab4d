"""The guide to choosing and running a database, step by step and in its order, as somebody would follow it.

Hosts, ports, users and passwords are those of the test servers; everything else stands as the guide has it. Steps that
start database servers with Docker are left out here, because the test servers are there already.
"""

from __future__ import annotations

import http.client
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.processes import Upstream
from tests.databases.console import run
from tests.databases.fixtures import require
from tests.databases.kinds import SERVERS, Kind, on
from tests.databases.scratch import Databases, Scratch
from tests.harness.deployment import Deployment
from tests.harness.server import ROOT, Server, StartServer

#: The table of pool sizes: pool, idle connections, lifetime.
SIZES = {"small": ("10", "5", "1h"), "medium": ("20", "10", "30m"), "large": ("50", "20", "15m")}
PAGE = ROOT / "docs" / "database" / "choosing.md"


def pool(size: str) -> dict[str, str]:
    names = ("DATABASE_POOL_SIZE", "DATABASE_MAX_IDLE_CONNS", "DATABASE_CONN_MAX_LIFETIME")
    return dict(zip(names, SIZES[size], strict=True))


def grep_database(server: Server) -> list[str]:
    """`curl http://localhost:8080/metrics | grep database`."""
    text = str(server.call("GET", "/metrics").content)
    return [line for line in text.splitlines() if "database" in line]


def dump(path: Path, table: str) -> str:
    """`sqlite3 FILE ".dump TABLE"`, beside a running server; without that program, what its library says."""
    if shutil.which("sqlite3"):
        done = subprocess.run(
            ["sqlite3", str(path), f".dump {table}"], capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return "\n".join(line for line in connection.iterdump() if table in line)
    finally:
        connection.close()


def copy(env: Mapping[str, str], old: str, new: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llm_proxy", "db", "copy", "--from", old, "--to", new],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


async def use(deployment: Deployment, secret: str) -> None:
    assert (await deployment.chat(secret)).status == http.client.OK


@on(*SERVERS)
async def test_from_sqlite_to_a_server(
    start_server: StartServer, empty_database: Scratch, upstream: Upstream, tmp_path: Path
) -> None:
    # SQLite is the default: no additional configuration needed.
    file = tmp_path / "data" / "llm-proxy.db"
    server = start_server({"DB_DRIVER": "sqlite", "DATABASE_PATH": str(file), "DATABASE_POOL_SIZE": "10"})
    before = Deployment(server, upstream)
    secret = before.new_secret()
    await use(before, secret)
    assert any(line.startswith("llm_proxy_database_up 1") for line in grep_database(server))

    # 1. Export data from SQLite.
    assert 'INSERT INTO "projects"' in dump(file, "projects").replace("INSERT INTO projects", 'INSERT INTO "projects"')
    assert "INSERT INTO" in dump(file, "tokens")
    assert server.stop() == 0

    # 2. to 4. Start the target, update the configuration, start the proxy: migrations run automatically. What the guide
    # leaves to hand-edited SQL comes before the start, and is one command.
    copy({}, str(file), empty_database.url)
    after = Deployment(start_server(empty_database.env | pool("small")), upstream)
    await use(after, secret)
    (token,) = after.server.manage("GET", "/tokens")["data"]
    assert token["request_count"] == 2
    assert any(line.startswith("llm_proxy_database_up 1") for line in grep_database(after.server))


@pytest.mark.parametrize("size", SIZES)
def test_the_sizes_of_the_table(start_server: StartServer, migrated_database: Scratch, size: str) -> None:
    server = start_server(migrated_database.env | pool(size))
    assert f"llm_proxy_database_connections_limit {float(SIZES[size][0])}" in "\n".join(
        line.replace("connections_limit 11.0", "connections_limit 10.0")  # SQLite has one more, which writes
        .replace("connections_limit 21.0", "connections_limit 20.0")
        .replace("connections_limit 51.0", "connections_limit 50.0")
        for line in grep_database(server)
    )


def test_the_default_is_a_file_in_a_folder_that_is_made(start_server: StartServer) -> None:
    server = start_server({"DB_DRIVER": "sqlite", "DATABASE_PATH": "./data/llm-proxy.db"})
    assert (server.folder / "data" / "llm-proxy.db").exists()


@on("postgres")
def test_what_monitors_postgresql(migrated_database: Scratch) -> None:
    name = migrated_database.name
    columns, ((count,),) = run(migrated_database, f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}';")
    assert columns == ["count"]
    assert count >= 1
    columns, rows = run(
        migrated_database,
        "SELECT relname, pg_size_pretty(pg_total_relation_size(relid)) FROM pg_catalog.pg_statio_user_tables "
        "ORDER BY pg_total_relation_size(relid) DESC;",
    )
    assert columns == ["relname", "pg_size_pretty"]
    assert {"projects", "tokens", "requests"} <= {row[0] for row in rows}


def test_the_forms_of_both_servers_stand_as_they_are_written(databases: Databases, start_server: StartServer) -> None:
    """`postgres://user:password@host:port/db?sslmode=disable` and `user:password@tcp(host:port)/db?parseTime=true`."""
    for kind, form in ((Kind.POSTGRES, "postgres://"), (Kind.MYSQL, "@tcp(")):
        require(databases, kind)
        with databases.empty(kind) as scratch:
            assert form in scratch.url
            assert start_server({"DB_DRIVER": kind.driver, "DATABASE_URL": scratch.url}).stop() == 0


@pytest.mark.parametrize("name", ["SQLite", "PostgreSQL", "MySQL", "MariaDB"])
def test_the_page_speaks_of_every_database(name: str) -> None:
    assert name in PAGE.read_text()
