"""What the pages on databases have their readers type, with the real programs, on the servers that they speak of.

Hosts, ports, accounts, names of databases and folders are those of the tests; all else is typed as shown.
"""

from __future__ import annotations

import re
import shutil
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import delete

from db import Connection, copy, dsn
from db.database import opened
from db.dsn import Target, Tls
from db.options import Options
from db.schema import in_flight, requests, usage_hourly
from llm_proxy.config import Settings
from tests.databases.admin import Address
from tests.databases.fixtures import lacking
from tests.databases.kinds import SERVERS, Kind, on
from tests.databases.scratch import Scratch, account, upgrade
from tests.db.pasts import write_past
from tests.db.tls_wire import PostgresWire, TlsWire, tls_wire_to
from tests.docs.blocks import block
from tests.docs.prompt import done, serving
from tests.harness.certificates import Authority
from tests.harness.files import write_secret
from tests.harness.server import ENCRYPTION_KEY, MANAGEMENT_TOKEN, ROOT
from tests.scenarios import ledger_checks

PAGES = ROOT / "docs" / "database"
SERVER_PAGES = {"postgres": PAGES / "postgresql.md", "mysql": PAGES / "mysql.md"}
#: The client program of each kind, and the older name that pages call it by.
CLIENTS = {Kind.POSTGRES: "psql", Kind.MYSQL: "mysql", Kind.MARIADB: "mysql", Kind.SQLITE: "sqlite3"}


@pytest.fixture
def wire(tmp_path: Path, database_kind: Kind, empty_database: Scratch) -> Iterator[TlsWire]:
    """The server of this test behind a certificate for localhost, of the authority in the test's folder."""
    certificate = Authority.make(tmp_path, "database-ca").issue("server", "localhost")
    target = empty_database.target
    with tls_wire_to(target.host, target.port, PostgresWire if database_kind is Kind.POSTGRES else TlsWire) as wire:
        wire.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        wire.context.load_cert_chain(certificate)
        yield wire


@on("postgres", "mysql")
def test_settings_of_the_database_pages_connect(empty_database: Scratch, wire: TlsWire, tmp_path: Path) -> None:
    """Checked before it has a schema, which is one thing to say; then the server makes that, and serves."""
    page = SERVER_PAGES[empty_database.kind.driver]
    for name, secret in (("management-token", MANAGEMENT_TOKEN), ("encryption-key", ENCRYPTION_KEY)):
        write_secret(tmp_path / name, secret)
        (tmp_path / name).chmod(0o600)
    with account(empty_database) as owner:
        script = owner.fill(block(page, "connect"), f"localhost:{wire.port}")
        assert "db.internal" not in script
        script = script.replace("/etc/llm-proxy", str(tmp_path)).replace("db check\n", "db check || echo $?\n")
        # Certificates of public authorities are not available here.
        with serving(script, tmp_path, {"DATABASE_TLS_CA": str(tmp_path / "database-ca.pem")}) as server:
            checked = server.output
            assert re.search(r"^TLS +TLSv1", checked, re.MULTILINE), checked
            assert re.search(r"^1$", checked, re.MULTILINE), checked
            (shown,) = re.findall(r"^```\n(database .*?)```", page.read_text(), re.MULTILINE | re.DOTALL)
            assert heads(shown) <= heads(checked)
            assert server.manage("GET", "/projects")["data"] == []


def heads(text: str) -> set[str]:
    """The first words of lines."""
    return {line.split()[0] for line in text.splitlines() if line.strip()}


def client_of(kind: Kind) -> None:
    """Go on only if the client program of a kind is here, or its newer name."""
    names = {Kind.POSTGRES: ("psql",), Kind.SQLITE: (sys.executable,)}.get(kind, ("mysql", "mariadb"))
    if not any(map(shutil.which, names)):
        lacking(f"no {CLIENTS[kind]}: install the clients of the database")


def home(folder: Path, scratch: Scratch) -> None:
    """The configuration of the clients of a database server, in a home folder."""
    if scratch.kind is Kind.POSTGRES:
        address = Address.parse(scratch.url, default_port=5432)
        text = block(PAGES / "backup.md", "service of postgres")
        for shown, real in (
            ("db.internal", f"{address.host}\nport={address.port}"),
            ("user=llmproxy", f"user={address.user}"),
            ("<password>", address.password),
            ("llmproxy", scratch.name),
        ):
            assert shown in text
            text = re.sub(rf"(?<![\w]){shown}(?![\w])", real, text)
        (folder / ".pg_service.conf").write_text(text)
    elif scratch.kind in (Kind.MYSQL, Kind.MARIADB):
        address = Address.parse(scratch.url, default_port=3306)
        where = [f"socket={address.socket}"] if address.socket else [f"host={address.host}", f"port={address.port}"]
        lines = ["[client]", *where, f"user={address.user}", f'password="{address.password}"', "loose-skip-ssl"]
        (folder / ".my.cnf").write_text("\n".join(lines))


def test_migrate_plan_can_be_run_by_hand(empty_database: Scratch, database_kind: Kind, tmp_path: Path) -> None:
    client_of(database_kind)
    home(tmp_path, empty_database)
    plan, *ways = block(PAGES / "migrations.md", "by hand").splitlines()
    (way,) = [way for way in ways if way.startswith(CLIENTS[database_kind])]
    here = {
        "--host=db.internal --user=admin llmproxy": empty_database.name,
        "data/llm-proxy.db": empty_database.path,
        '"$DATABASE_URL"': '"$DATABASE_URL"',
    }
    (place,) = [place for place in here if place in way]
    done(f"{plan}\n{way.replace(place, here[place])}", tmp_path, empty_database.env)
    assert upgrade(empty_database.target) == ()


def digests(target: Target) -> dict[str, object]:
    """What all tables hold, in short."""
    with opened(target, Options()) as database:
        return {table.name: copy.digest_of(database, table) for table in copy.TABLES}


def lose(connection: Connection) -> None:
    for table in (in_flight, requests, usage_hourly):
        connection.execute(delete(table))


@on(*SERVERS)
def test_dump_and_restore_of_the_backup_page_keep_everything(
    migrated_database: Scratch, database_kind: Kind, tmp_path: Path
) -> None:
    client_of(database_kind)
    home(tmp_path, migrated_database)
    target = migrated_database.target
    name = "dump of postgres" if database_kind is Kind.POSTGRES else "dump of mysql"
    script = re.sub(r"\bllmproxy\b", migrated_database.name, block(PAGES / "backup.md", name))
    dump, restore = script.splitlines()
    assert "$" not in script, "a URL with its password"
    with opened(target, Options()) as database:
        write_past(database, 200)
    before = digests(target)
    done(dump, tmp_path, migrated_database.env)
    with opened(target, Options()) as database:
        database.write_now(lose)
    assert digests(target) != before
    done(restore, tmp_path, migrated_database.env)
    assert digests(target) == before
    assert ledger_checks.differences(target) == []


def test_default_database_is_sqlite(tmp_path: Path) -> None:
    with serving(block(PAGES / "sqlite.md", "serve"), tmp_path) as server:
        (listed,) = re.findall(
            r"^## Files\n+```\n(.*?)```", (PAGES / "sqlite.md").read_text(), re.MULTILINE | re.DOTALL
        )
        files = {line.split()[1]: line.split()[0] for line in listed.splitlines()}
        assert {path.name for path in (server.folder / "data").iterdir()} == set(files)
        assert set(files.values()) == {"-rw-------"}
        assert {oct(path.stat().st_mode)[-3:] for path in (server.folder / "data").iterdir()} == {"600"}


def test_outage_page_shows_the_default_settings(tmp_path: Path) -> None:
    text = block(PAGES / "outages.md", "grace")
    write_secret(tmp_path / ".env", text)
    settings = Settings.load({}, dotenv_path=tmp_path / ".env")
    default = Settings.load({}, dotenv_path=None)
    names = {line.partition("=")[0].lower() for line in text.splitlines()}
    different = {name for name in names if getattr(settings, name) != getattr(default, name)}
    assert different == {"db_outage_policy", "db_outage_spool"}
    assert settings.db_outage_policy == "grace"


@pytest.mark.parametrize(("driver", "number"), [("postgres", 5), ("mysql", 5)])
def test_urls_of_managed_services_are_parsed(tmp_path: Path, driver: str, number: int) -> None:
    """Each with the authorities of the line below, as lines of an `.env` file and as a shell reads them."""
    text = block(SERVER_PAGES[driver], "managed").replace("/etc/llm-proxy", str(tmp_path))
    lines = [line for line in text.splitlines() if line.startswith("DATABASE_")]
    assert len([line for line in lines if line.startswith("DATABASE_URL=")]) == number
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if not line.startswith("DATABASE_URL="):
            continue
        own = [line]
        if below.startswith("DATABASE_TLS_CA="):
            own.append(below)
            Path(below.partition("=")[2]).touch()
        write_secret(tmp_path / ".env", "\n".join(own))
        settings = Settings.load({"DB_DRIVER": driver}, dotenv_path=tmp_path / ".env")
        assert done("\n".join([*own, 'printf %s "$DATABASE_URL"']), tmp_path) == settings.database_url
        target = dsn.parse(driver, settings.database_url, "")
        assert target.database == "llmproxy"
        assert target.user in ("user", "user@server", "admin", "admin@server")
        assert target.password in ("pass", "password")
        assert target.unix_socket or target.tls in (Tls.VERIFY_CA, Tls.VERIFY_FULL, Tls.CUSTOM), line
