"""docs/database/choosing.md, step by step and in its order, as somebody would follow it.

Hosts, ports, accounts and names of databases are those of the test servers; all else is typed as the page has it.
"""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.processes import Upstream
from db import dsn
from llm_proxy.config import Settings
from tests.databases.kinds import SERVERS, Kind, on
from tests.databases.scratch import Scratch, account
from tests.docs.blocks import block
from tests.docs.prompt import done, exported, typed
from tests.harness.deployment import UPSTREAM_KEY, Deployment
from tests.harness.files import write_secret
from tests.harness.server import ROOT, Server, StartServer

PAGE = ROOT / "docs" / "database" / "choosing.md"
#: The blocks that lead to a server, by its driver.
TARGETS = {"postgres": "to postgres", "mysql": "to mysql"}
#: The harness's own secrets are taken away, so that the server makes its own beside the file.
NO_SECRETS = {"MANAGEMENT_TOKEN": "", "ENCRYPTION_KEY": ""}


def grep_database(server: Server) -> str:
    return done(block(PAGE, "metrics").replace("http://localhost:8080", server.url), server.folder)


def manage(server: Server, method: str, path: str, content: Any = None) -> Any:
    """Ask the management API with the token that the server has made for itself, or was given."""
    file = server.settings.get("MANAGEMENT_TOKEN_FILE", str(server.folder / "data/llm-proxy.db.management-token"))
    answer = server.call(method, f"/manage{path}", content, token=Path(file).read_text().strip())
    assert answer.status < http.client.BAD_REQUEST, answer
    return answer.content


async def use(server: Server, upstream: Upstream, secret: str) -> None:
    assert (await Deployment(server, upstream).chat(secret)).status == http.client.OK


@on(*SERVERS)
async def test_guide_moves_from_sqlite_to_a_server(
    empty_database: Scratch, start_server: StartServer, upstream: Upstream, tmp_path: Path
) -> None:
    kind = empty_database.kind.driver
    old = start_server({**exported(block(PAGE, "sqlite"), tmp_path), **NO_SECRETS})
    file = old.folder / "data" / "llm-proxy.db"
    assert file.exists()
    project = manage(old, "POST", "/projects", {"name": "first", "api_key": UPSTREAM_KEY})
    secret = manage(old, "POST", "/tokens", {"project_id": project["id"]})["token"]
    await use(old, upstream, secret)
    assert "llm_proxy_database_up 1.0\n" in grep_database(old)
    assert "llm_proxy_database_sqlite_pages " in grep_database(old)

    done(block(PAGE, "dump"), old.folder)
    dumped = {name: (old.folder / f"{name}.sql").read_text() for name in ("projects", "tokens")}
    for name, text in dumped.items():
        assert re.search(rf"INSERT INTO \"?{name}\"? ", text)
        assert UPSTREAM_KEY not in text
        assert secret not in text
    await use(old, upstream, secret)
    assert old.stop() == 0

    with account(empty_database) as owner:
        env = exported(owner.fill(block(PAGE, TARGETS[kind])), old.folder) | exported(
            block(PAGE, "secrets of SQLite"), old.folder
        )
        assert "equal" in done(block(PAGE, "copy"), old.folder, env)
        (start,) = block(PAGE, "start").splitlines()
        assert start == "llm-proxy server"  # which is what the harness starts
        new = start_server({**env, **NO_SECRETS})
        await use(new, upstream, secret)
        assert [token["request_count"] for token in manage(new, "GET", "/tokens")["data"]] == [3]
        assert f'llm_proxy_database_info{{driver="{kind}"}} 1.0\n' in grep_database(new)
        if kind == "postgres":
            look_at_the_statistics(empty_database)
        assert new.stop() == 0


def look_at_the_statistics(scratch: Scratch) -> None:
    first, second, _ = block(PAGE, "statistics of postgres").split(";")
    assert scratch.query(first)[0] == ["count"]
    ((connections,),) = scratch.query(first.replace("'llmproxy'", f"'{scratch.name}'"))[1]
    assert connections >= 2  # the server's, and this one
    columns, rows = scratch.query(second)
    assert columns == ["relname", "pg_size_pretty"]
    assert {"projects", "tokens", "requests"} <= {row[0] for row in rows}


@on(*SERVERS)
def test_a_new_database_is_migrated_at_the_start(
    empty_database: Scratch, start_server: StartServer, tmp_path: Path
) -> None:
    """With the secrets that a server must be given, those of the harness."""
    kind = empty_database.kind.driver
    with account(empty_database) as owner:
        env = exported(owner.fill(block(PAGE, TARGETS[kind])), tmp_path)
        production = exported(block(PAGE, "pool of production"), tmp_path)
        server = start_server(env | production)
        assert "llm_proxy_database_connections_limit 20.0\n" in grep_database(server)
        done("llm-proxy migrate status", tmp_path, env)
        assert server.stop() == 0


@on(*SERVERS)
def test_the_block_with_tls_connects_or_says_that_tls_is_what_is_missing(
    empty_database: Scratch, tmp_path: Path
) -> None:
    """Which of the two depends on the test server; what TLS does in each mode is tested with certificates elsewhere."""
    name = "postgres with TLS" if empty_database.kind is Kind.POSTGRES else "mysql with TLS"
    with account(empty_database) as owner:
        env = exported(owner.fill(block(PAGE, name)), tmp_path)
        assert {name: env[name] for name in env if "POOL" in name or "CONN" in name} == {
            "DATABASE_POOL_SIZE": "10",
            "DATABASE_MAX_IDLE_CONNS": "5",
            "DATABASE_CONN_MAX_LIFETIME": "1h",
        }
        result = typed("llm-proxy db check", tmp_path, env)
        if result.returncode == 2:
            assert re.search(r"does not offer TLS|certificate was not accepted", result.stderr), result.stderr
        else:
            assert re.search(r"^TLS +TLSv1", result.stdout, re.MULTILINE), result


@pytest.mark.parametrize(
    ("name", "driver", "number"), [("urls of postgres", "postgres", 4), ("urls of mysql", "mysql", 5)]
)
def test_every_url_of_the_guide_works_in_an_env_file(tmp_path: Path, name: str, driver: str, number: int) -> None:
    lines = [line for line in block(PAGE, name).splitlines() if line.startswith("DATABASE_URL=")]
    assert len(lines) == number
    for line in lines:
        write_secret(tmp_path / ".env", line)
        settings = Settings.load({"DB_DRIVER": driver}, dotenv_path=tmp_path / ".env")
        target = dsn.parse(driver, settings.database_url, "")
        assert target.database == "llmproxy"
        assert target.user in ("llmproxy", "user", "user@server", "admin", "root", "admin@server")
        assert target.password in ("secret", "pass", "password")


def rows() -> Iterator[Mapping[str, str]]:
    """The table of pool sizes."""
    names = ("DATABASE_POOL_SIZE", "DATABASE_MAX_IDLE_CONNS", "DATABASE_CONN_MAX_LIFETIME")
    for cells in re.findall(r"^\| [^|]*\d+[^|]* \| (\d+) \| (\d+) \| (\w+) \|$", PAGE.read_text(), re.MULTILINE):
        yield dict(zip(names, cells, strict=True))


def test_pool_size_table_has_the_sizes_of_the_guide() -> None:
    assert [tuple(row.values()) for row in rows()] == [("10", "5", "1h"), ("20", "10", "30m"), ("50", "20", "15m")]


@on("sqlite", "postgres", "mysql")
@pytest.mark.parametrize("sizes", list(rows()), ids=lambda row: row["DATABASE_POOL_SIZE"])
def test_pool_sizes_of_the_table_are_enough(
    migrated_database: Scratch, start_server: StartServer, sizes: dict[str, str]
) -> None:
    server = start_server(migrated_database.env | sizes)
    limit = int(sizes["DATABASE_POOL_SIZE"]) + (migrated_database.kind is Kind.SQLITE)  # one more, which writes
    assert f"llm_proxy_database_connections_limit {limit:.1f}\n" in grep_database(server)
    assert server.stop() == 0
