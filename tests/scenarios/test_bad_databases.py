"""Databases that are named wrongly, cannot be reached, or are something else, and what each of them is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scenarios.bad_input import CANARY, Command

LOOK = ("db", "check")
POSTGRES = "postgres://user:password@host:5432/database?sslmode=require"
MYSQL = "user:password@tcp(host:3306)/database?tls=true"


def postgres(says: str, url: str, line: str) -> Command:
    """An address of PostgreSQL that cannot be used."""
    return Command(f"postgres: {says}", LOOK, line, env={"DB_DRIVER": "postgres", "DATABASE_URL": url})


def mysql(says: str, url: str, line: str) -> Command:
    """An address of MySQL that cannot be used."""
    return Command(f"mysql: {says}", LOOK, line, env={"DB_DRIVER": "mysql", "DATABASE_URL": url})


DATABASES = (
    Command(
        "no address", LOOK, f"DB_DRIVER is mysql, so DATABASE_URL must be set: {MYSQL}", env={"DB_DRIVER": "mysql"}
    ),
    Command(
        "an address without a driver",
        LOOK,
        "DATABASE_URL (value hidden): it is set, but DB_DRIVER is not, so SQLite would be used; "
        "set DB_DRIVER=postgres too",
        env={"DATABASE_URL": f"postgres://me:{CANARY}@db/ledger"},
    ),
    Command(
        "an address of another driver",
        LOOK,
        "DB_DRIVER is sqlite but DATABASE_URL is for MySQL: set DB_DRIVER=mysql, or remove the URL",
        env={"DB_DRIVER": "sqlite", "DATABASE_URL": f"mysql://me:{CANARY}@db/ledger"},
    ),
    Command(
        "an address as a path",
        LOOK,
        "DATABASE_PATH must be the path of a file; put a URL into DATABASE_URL, and name its DB_DRIVER",
        env={"DATABASE_PATH": f"postgres://me:{CANARY}@db/ledger"},
    ),
    Command(
        "an address of Go's form as a path",
        LOOK,
        "DATABASE_PATH must be the path of a file; put a URL into DATABASE_URL, and name its DB_DRIVER",
        env={"DATABASE_PATH": f"me:{CANARY}@tcp(db)/ledger"},
    ),
    Command(
        "SQLite on a host",
        LOOK,
        "DATABASE_URL: a SQLite file is on no host; write sqlite:./data/llm-proxy.db",
        env={"DATABASE_URL": "sqlite://host/ledger.db"},
    ),
    postgres("no URL", CANARY, f"DATABASE_URL is no URL: {POSTGRES}"),
    postgres(
        "another scheme",
        f"https://me:{CANARY}@db/ledger",
        "DATABASE_URL must begin with postgres://, postgresql://, mysql://, mariadb:// or sqlite:",
    ),
    postgres("no user", "postgres://db/ledger", f"DATABASE_URL names no user: {POSTGRES}"),
    postgres("no database", f"postgres://me:{CANARY}@db", f"DATABASE_URL names no database: {POSTGRES}"),
    postgres(
        "no port number",
        f"postgres://me:{CANARY}@db:99999/ledger",
        "DATABASE_URL: the port must be a number from 1 to 65535",
    ),
    postgres(
        "several hosts",
        f"postgres://me:{CANARY}@a,b/ledger",
        "DATABASE_URL names several hosts; name one: the writer's address, or that of a proxy or virtual IP which "
        "follows the writer",
    ),
    postgres(
        "escapes that are no text",
        "postgres://me:%ff@db/ledger",
        "DATABASE_URL: percent-encoded characters must be UTF-8",
    ),
    postgres(
        "an sslmode that there is not",
        f"postgres://me:{CANARY}@db/ledger?sslmode=yes",
        "DATABASE_URL: sslmode must be one of disable, allow, prefer, require, verify-ca, verify-full",
    ),
    postgres(
        "a parameter twice",
        f"postgres://me:{CANARY}@db/ledger?sslmode=require&sslmode=disable",
        "DATABASE_URL: sslmode is given more than once",
    ),
    postgres(
        "a parameter that there is not",
        f"postgres://me:{CANARY}@db/ledger?pool_max_conns=5",
        "DATABASE_URL: unknown parameter pool_max_conns; known are sslmode, sslrootcert, sslcert, sslkey, user, "
        "password, host, hostaddr, port, dbname, connect_timeout, application_name, channel_binding",
    ),
    postgres(
        "no number of seconds",
        f"postgres://me:{CANARY}@db/ledger?connect_timeout=soon",
        "DATABASE_URL: connect_timeout must be a whole number of seconds",
    ),
    mysql(
        "another network",
        f"me:{CANARY}@udp(db)/ledger",
        "DATABASE_URL: what follows the last @ must be tcp(host:port) or unix(/path/of/socket)",
    ),
    mysql("no database", f"me:{CANARY}@tcp(db:3306)", f"DATABASE_URL names no database: {MYSQL}"),
    mysql(
        "no host",
        f"me:{CANARY}@tcp([::g])/ledger",
        "DATABASE_URL: the host must be a name, an IPv4 address, or an IPv6 address in [brackets]",
    ),
    mysql(
        "a tls that there is not",
        f"me:{CANARY}@tcp(db)/ledger?tls=maybe",
        "DATABASE_URL: tls must be one of false, 0, true, 1, skip-verify, preferred, custom",
    ),
    mysql(
        "a password on the wire",
        f"me:{CANARY}@tcp(db)/ledger?allowCleartextPasswords=true",
        "DATABASE_URL: allowCleartextPasswords must be false: the password would be readable on the wire",
    ),
    mysql(
        "another charset",
        f"me:{CANARY}@tcp(db)/ledger?charset=latin1",
        "DATABASE_URL: charset must be utf8mb4 or utf8mb4,utf8 or utf8: names may hold any character",
    ),
    mysql(
        "no unit",
        f"me:{CANARY}@tcp(db)/ledger?timeout=5",
        "DATABASE_URL: timeout must be a duration such as 5s, 500ms or 1m30s",
    ),
    mysql(
        "a parameter without a value",
        f"me:{CANARY}@tcp(db)/ledger?x",
        "DATABASE_URL: parameters must be name=value, joined by &, in UTF-8",
    ),
    mysql(
        "an authority that is not named",
        f"me:{CANARY}@tcp(127.0.0.1:9)/ledger?tls=custom",
        "tls=custom needs DATABASE_TLS_CA: a PEM file with the certificates to trust",
    ),
    # What cannot be reached, or is something else.
    postgres(
        "nobody there",
        f"postgres://me:{CANARY}@127.0.0.1:9/ledger",
        "PostgreSQL at 127.0.0.1:9, database ledger: connection refused: is the server running, on that port?",
    ),
    mysql(
        "nobody there",
        f"me:{CANARY}@tcp(127.0.0.1:9)/ledger",
        "MySQL at 127.0.0.1:9, database ledger: connection refused: is the server running, on that port?",
    ),
    mysql(
        "no such host",
        f"me:{CANARY}@tcp(nowhere.invalid)/ledger",
        "MySQL at nowhere.invalid:3306, database ledger: its host name cannot be resolved",
    ),
    mysql(
        "a host that there cannot be",
        f"me:{CANARY}@tcp({'a' * 64}.invalid)/ledger",
        "DATABASE_URL: the host must be a name, an IPv4 address, or an IPv6 address in [brackets]",
    ),
    mysql(
        "no such socket",
        f"me:{CANARY}@unix(/nowhere/mysql.sock)/ledger",
        "MySQL at /nowhere/mysql.sock, database ledger: there is no socket at that path",
    ),
    Command(
        "no such file",
        ("db", "check", "--db", "none.db"),
        "there is no SQLite file none.db; 'llm-proxy migrate up' makes it",
        1,
    ),
    Command(
        "a file that is no database",
        ("migrate", "up", "--db", "text.db"),
        "SQLite file text.db: the file is not a SQLite database",
    ),
    Command("a folder", ("migrate", "up", "--db", "folder"), "DATABASE_PATH folder is a folder; it must be a file"),
    Command(
        "a path through a file",
        ("migrate", "up", "--db", "empty/ledger.db"),
        "DATABASE_PATH empty/ledger.db: a part of it that must be a folder is a file",
    ),
    Command(
        "no such revision",
        ("migrate", "down", "--to", "nonsense", "--db", "new.db"),
        "there is no revision nonsense to go back to; choose one of base",
        1,
    ),
)


@pytest.mark.parametrize("row", DATABASES, ids=str)
def test_a_wrong_database_is_explained_at_the_start(row: Command, tmp_path: Path) -> None:
    made = row.check(tmp_path)

    # Nothing was made in place of what was meant.
    assert {name for name in made if not name.endswith(".lock")} <= {"new.db"}
