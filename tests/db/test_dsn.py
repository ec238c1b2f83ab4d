from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from attrs import asdict

from db.dsn import Target, Tls, parse
from db.errors import BadDsn

PG = {"driver": "postgres", "host": "localhost", "port": 5432, "user": "u", "password": "p", "database": "d"}
MY = {"driver": "mysql", "host": "localhost", "port": 3306, "user": "u", "password": "p", "database": "d"}

#: The examples of the database selection guide, letter by letter.
GUIDE = [
    (
        "postgres",
        "postgres://user:password@localhost:5432/llmproxy?sslmode=require",
        {"host": "localhost", "port": 5432, "user": "user", "password": "password", "tls": Tls.REQUIRED},
    ),
    (
        "postgres",
        "postgres://llmproxy:secret@localhost:5432/llmproxy?sslmode=disable",
        {"user": "llmproxy", "password": "secret", "database": "llmproxy", "tls": Tls.OFF},
    ),
    (
        "postgres",
        "postgres://user:pass@mydb.xxx.rds.amazonaws.com:5432/llmproxy?sslmode=require",
        {"host": "mydb.xxx.rds.amazonaws.com", "tls": Tls.REQUIRED},
    ),
    (
        "postgres",
        "postgres://user:pass@/llmproxy?host=/cloudsql/project:region:instance",
        {
            "host": "",
            "unix_socket": "/cloudsql/project:region:instance/.s.PGSQL.5432",
            "database": "llmproxy",
            "tls": Tls.OFF,
        },
    ),
    (
        "postgres",
        "postgres://user@server:pass@server.postgres.database.azure.com:5432/llmproxy?sslmode=require",
        {
            "host": "server.postgres.database.azure.com",
            "user": "user@server",
            "password": "pass",
            "tls": Tls.REQUIRED,
        },
    ),
    (
        "mysql",
        "llmproxy:secret@tcp(localhost:3306)/llmproxy?parseTime=true&tls=true",
        {"host": "localhost", "port": 3306, "user": "llmproxy", "password": "secret", "tls": Tls.VERIFY_FULL},
    ),
    ("mysql", "llmproxy:secret@tcp(localhost:3306)/llmproxy?parseTime=true", {"tls": Tls.OFF}),
    (
        "mysql",
        "admin:password@tcp(mydb.xxx.rds.amazonaws.com:3306)/llmproxy?parseTime=true&tls=true",
        {"host": "mydb.xxx.rds.amazonaws.com", "user": "admin", "tls": Tls.VERIFY_FULL},
    ),
    (
        "mysql",
        "root:password@tcp(10.x.x.x:3306)/llmproxy?parseTime=true&tls=true",
        {"host": "10.x.x.x", "port": 3306, "user": "root", "password": "password", "tls": Tls.VERIFY_FULL},
    ),
    (
        "mysql",
        "admin@server:password@tcp(server.mysql.database.azure.com:3306)/llmproxy?parseTime=true&tls=true",
        {
            "host": "server.mysql.database.azure.com",
            "user": "admin@server",
            "password": "password",
            "tls": Tls.VERIFY_FULL,
        },
    ),
]

GOOD: list[tuple[str, dict[str, Any]]] = [
    # Hosts and ports of PostgreSQL.
    ("postgres://u:p@localhost/d", {**PG, "tls": Tls.PREFERRED}),
    ("postgresql://u:p@localhost/d", PG),
    ("postgresql+psycopg2://u:p@localhost/d", PG),
    ("POSTGRES://u:p@localhost/d", PG),
    ("  postgres://u:p@localhost/d\n", PG),
    ("postgres://u:p@db_1.internal:6543/d", {"host": "db_1.internal", "port": 6543}),
    ("postgres://u:p@[::1]:6543/d", {"host": "::1", "port": 6543}),
    ("postgres://u:p@[2001:db8::7]/d", {"host": "2001:db8::7", "port": 5432}),
    ("postgres://u:p@/d", PG),
    ("postgres://u:p@:6543/d", {**PG, "port": 6543}),
    ("postgres://u:p@/d?host=db.internal", {"host": "db.internal"}),
    ("postgres://u:p@/d?host=db.internal&port=6543", {"host": "db.internal", "port": 6543}),
    ("postgres://u:p@/d?host=/run/pg/&port=6543", {"unix_socket": "/run/pg/.s.PGSQL.6543", "host": "", "port": 0}),
    ("postgres://u:p@%2Frun%2Fpg/d", {"unix_socket": "/run/pg/.s.PGSQL.5432", "host": ""}),
    ("postgres://u:p@%2Frun%2Fpg:6543/d", {"unix_socket": "/run/pg/.s.PGSQL.6543", "host": "", "port": 0}),
    ("postgres://u:p@%2Frun%2Fpg:6543/d?port=7654", {"unix_socket": "/run/pg/.s.PGSQL.7654"}),
    ("postgres://u:p@%2Frun%2Fpg:/d", {"unix_socket": "/run/pg/.s.PGSQL.5432"}),
    ("postgres://u:p@%2Frun%2Fpg%3A6543/d", {"unix_socket": "/run/pg:6543/.s.PGSQL.5432"}),
    (
        "postgres://u:p@%2Fcloudsql%2Fproject:region:name/d",
        {"unix_socket": "/cloudsql/project:region:name/.s.PGSQL.5432"},
    ),
    ("postgres://u@localhost/d", {**PG, "password": ""}),
    ("postgres://u:@localhost/d", {**PG, "password": ""}),
    ("postgres://u:@:/?#[]@localhost/d", {**PG, "password": "@:/?#[]"}),
    # What passwords hold.
    ("postgres://u:p@ss@localhost/d", {**PG, "password": "p@ss"}),
    ("postgres://u:a:b@localhost/d", {**PG, "password": "a:b"}),
    ("postgres://u:a/b@localhost/d", {**PG, "password": "a/b"}),
    ("postgres://u:a?b@localhost/d", {**PG, "password": "a?b"}),
    ("postgres://u:a#b@localhost/d", {**PG, "password": "a#b"}),
    ("postgres://u:a&b=c@localhost/d", {**PG, "password": "a&b=c"}),
    ("postgres://u:50%off@localhost/d", {**PG, "password": "50%off"}),
    ("postgres://u:p%40%3A%2f%25@localhost/d", {**PG, "password": "p@:/%"}),
    ("postgres://u:a+b@localhost/d", {**PG, "password": "a+b"}),
    ("postgres://u:p%C3%A4%E2%82%AC@localhost/d", {**PG, "password": "pä€"}),
    ("postgres://u:€uro@localhost/d", {**PG, "password": "€uro"}),
    ("postgres://us%3Aer:p@localhost/d", {**PG, "user": "us:er"}),
    ("postgres://u:p@localhost/my%20db", {**PG, "database": "my db"}),
    # Its TLS.
    ("postgres://u:p@h/d?sslmode=disable", {"tls": Tls.OFF}),
    ("postgres://u:p@h/d?sslmode=allow", {"tls": Tls.ALLOWED}),
    ("postgres://u:p@h/d?sslmode=prefer", {"tls": Tls.PREFERRED}),
    ("postgres://u:p@h/d?sslmode=Require", {"tls": Tls.REQUIRED}),
    ("postgres://u:p@h/d?sslmode=verify-ca", {"tls": Tls.VERIFY_CA}),
    ("postgres://u:p@h/d?sslmode=verify-full", {"tls": Tls.VERIFY_FULL}),
    ("postgres://u:p@h/d?sslmode=require&sslrootcert=/ca.pem", {"tls": Tls.VERIFY_CA, "tls_ca": Path("/ca.pem")}),
    ("postgres://u:p@h/d?sslrootcert=system", {"tls": Tls.VERIFY_FULL, "tls_ca": None}),
    ("postgres://u:p@h/d?sslcert=c.pem&sslkey=k.pem", {"tls_cert": Path("c.pem"), "tls_key": Path("k.pem")}),
    ("postgres://u:p@h/d?sslmode=require&channel_binding=require", {"channel_binding": True}),
    ("postgres://u:p@h/d?channel_binding=prefer", {"channel_binding": False}),
    # Its further parameters.
    ("postgres://u:p@h/d?connect_timeout=7", {"connect_timeout": 7.0}),
    ("postgres://u:p@h/d?connect_timeout=0", {"connect_timeout": None}),
    ("postgres://u:p@h/d?application_name=replica%201", {"application_name": "replica 1"}),
    ("postgres://u:p@h/d?sslmode=", {"tls": Tls.PREFERRED}),
    # MySQL in the form of Go's driver
    ("u:p@tcp(localhost:3306)/d", {**MY, "tls": Tls.OFF}),
    ("u:p@tcp(localhost)/d", MY),
    ("u:p@tcp([::1]:3307)/d", {"host": "::1", "port": 3307}),
    ("u:p@tcp/d", {**MY, "host": "127.0.0.1"}),
    ("u:p@/d", {**MY, "host": "127.0.0.1"}),
    ("u@/d", {**MY, "host": "127.0.0.1", "password": ""}),
    ("u:p@unix(/run/mysqld/mysqld.sock)/d", {"unix_socket": "/run/mysqld/mysqld.sock", "host": "", "tls": Tls.OFF}),
    ("u:p@unix/d", {"unix_socket": "/tmp/mysql.sock"}),  # noqa: S108 - the default of MySQL itself
    ("u:p@ss/w:o@tcp(localhost)/d", {**MY, "password": "p@ss/w:o"}),
    ("u:p%40@tcp(localhost)/d", {**MY, "password": "p%40"}),
    ("u:p(x)@tcp(localhost)/d", {**MY, "password": "p(x)"}),
    ("u:€@tcp(localhost)/d", {**MY, "password": "€"}),
    ("u:@tcp(localhost)/d", {**MY, "password": ""}),
    ("u://x@tcp(localhost)/d", {**MY, "password": "//x"}),
    ("u:a#b?c=[d]@tcp(localhost)/d", {**MY, "password": "a#b?c=[d]"}),
    ("u:p@tcp(h)/d?tls=false", {"tls": Tls.OFF}),
    ("u:p@tcp(h)/d?tls=skip-verify", {"tls": Tls.REQUIRED}),
    ("u:p@tcp(h)/d?tls=preferred", {"tls": Tls.PREFERRED}),
    ("u:p@tcp(h)/d?tls=custom", {"tls": Tls.CUSTOM}),
    ("u:p@tcp(h)/d?tls=1", {"tls": Tls.VERIFY_FULL}),
    (
        "u:p@tcp(h)/d?timeout=5s&readTimeout=1m30s&writeTimeout=500ms",
        {"connect_timeout": 5.0, "read_timeout": 90.0, "write_timeout": 0.5},
    ),
    ("u:p@tcp(h)/d?charset=utf8mb4&collation=utf8mb4_unicode_ci&loc=Europe%2FZurich&multiStatements=true", {}),
    ("u:p@tcp(h)/d?allowCleartextPasswords=false", {}),
    # MySQL as URLs
    ("mysql://u:p@localhost/d", MY),
    ("mariadb://u:p@localhost:3307/d", {**MY, "port": 3307}),
    ("mysql+pymysql://u:p@localhost/d", MY),
    ("mysql://u:p@ss%3A@localhost/d", {**MY, "password": "p@ss:"}),
    ("mysql://u:p@localhost/d?ssl-mode=REQUIRED", {"tls": Tls.REQUIRED}),
    ("mysql://u:p@localhost/d?ssl-mode=VERIFY_IDENTITY&ssl-ca=/ca.pem", {"tls": Tls.VERIFY_FULL}),
    ("mysql://u:p@localhost/d?ssl-ca=/ca.pem", {"tls": Tls.VERIFY_FULL, "tls_ca": Path("/ca.pem")}),
    ("mysql://u:p@localhost/d?unix_socket=/run/my.sock", {"unix_socket": "/run/my.sock", "host": ""}),
    ("mysql://u:p%40@tcp(localhost:3306)/d", {**MY, "password": "p%40"}),
    # Files.
    ("sqlite:./data/x.db", {"driver": "sqlite", "path": Path("data/x.db")}),
    ("sqlite:///data/x.db", {"path": Path("data/x.db")}),
    ("sqlite:////var/lib/x.db", {"path": Path("/var/lib/x.db")}),
    ("sqlite::memory:", {"path": None}),
    ("./data/x.db", {"driver": "sqlite", "path": Path("data/x.db")}),
]

#: What is refused, and a word that the refusal must hold.
BAD = [
    ("mongodb://u:s3cretpass@h/d", "postgres://"),
    ("sqlite://host/x.db", "no host"),
    ("postgres://h/d", "user"),
    ("postgres://u:s3cretpass@h", "database"),
    ("postgres://u:s3cretpass@h/", "database"),
    ("postgres://u:s3cretpass@h/a/b", "/"),
    ("postgres://u:s3cretpass@h1:5432,h2:5432/d", "several hosts"),
    ("postgres://u:s3cretpass@/d?host=h1,h2", "several hosts"),
    ("u:s3cretpass@tcp(h1:3306,h2:3306)/d", "several hosts"),
    ("postgres://u:s3cretpass@h:port/d", "port"),
    ("postgres://u:s3cretpass@h:0/d", "port"),
    ("postgres://u:s3cretpass@h:65536/d", "port"),
    ("postgres://u:s3cretpass@h:٣/d", "port"),
    ("postgres://u:s3cretpass@::1/d", "brackets"),
    ("postgres://u:s3cretpass@[::zz]/d", "brackets"),
    ("postgres://u:s3cretpass@h h/d", "host"),
    ("postgres://u:s3cretpass@h/d?sslmode=on", "verify-full"),
    ("postgres://u:s3cretpass@h/d?sslmod=require", "sslmod"),
    ("postgres://u:s3cretpass@h/d?pool_max_conns=9&search_path=x", "pool_max_conns, search_path"),
    ("postgres://u:s3cretpass@h/d?sslmode=disable&sslmode=require", "more than once"),
    ("postgres://u:s3cretpass@h/d?sslmode", "name=value"),
    ("postgres://u:s3cretpass@h/d?application_name=%ff", "UTF-8"),
    ("postgres://u:%ff@h/d", "UTF-8"),
    ("postgres://u:s3cret%00pass@h/d", "NUL"),
    ("postgres://u:s3cretpass@h/d?connect_timeout=5s", "seconds"),
    ("postgres://u:s3cretpass@h/d?application_name=a@b", "%40"),
    ("postgres://u:s3cretpass@h/d#frag", "%23"),
    ("u:s3cretpass@tcp(h:3306)", "database"),
    ("u:s3cretpass@udp(h:3306)/d", "tcp"),
    ("u:s3cretpass@(h:3306)/d", "tcp"),
    ("u:s3cretpass@h:3306/d", "tcp"),
    ("u:s3cretpass@tcp(h)/d?tls=maybe", "skip-verify"),
    ("u:s3cretpass@tcp(h)/d?tls=custom&ssl-ca=/etc/ca.pem", "%2F"),
    ("u:s3cretpass@tcp(h)/d?tls=true&tls-verify=ca", "tls-verify"),
    ("mysql://u:s3cretpass@h1,h2/d", "several hosts"),
    ("u:s3cretpass@tcp(h)/d?timeout=5", "duration"),
    ("u:s3cretpass@tcp(h)/d?charset=latin1", "utf8mb4"),
    ("u:s3cretpass@tcp(h)/d?collation=latin1_bin", "utf8mb4"),
    ("u:s3cretpass@tcp(h)/d?allowCleartextPasswords=true", "allowCleartextPasswords"),
    ("u:s3cretpass@tcp(h)/d?allowAllFiles=true", "allowAllFiles"),
    ("u:s3cretpass@tcp(h)/d?serverPubKey=x", "serverPubKey"),
    ("mysql://u:s3cretpass@h/d?ssl-mode=verify", "verify_identity"),
    ("mysql://u:s3cretpass@h/d?sslaccept=strict", "sslaccept"),
]


def fields_of(target: Target, names: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in asdict(target).items() if name in names}


@pytest.mark.parametrize(("driver", "url", "expected"), GUIDE)
def test_the_examples_of_the_guide(driver: str, url: str, expected: dict[str, Any]) -> None:
    target = parse(driver, url, "./data/llm-proxy.db")
    assert fields_of(target, expected) == expected
    assert (target.driver, target.database) == (driver, "llmproxy")


@pytest.mark.parametrize(("url", "expected"), GOOD)
def test_what_a_url_means(url: str, expected: dict[str, Any]) -> None:
    assert fields_of(parse(None, url, None), expected) == expected


@pytest.mark.parametrize(("url", "word"), BAD)
def test_what_is_refused_and_why(url: str, word: str) -> None:
    with pytest.raises(BadDsn) as caught:
        parse(None, url, None)
    assert word in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("driver", "url", "advice"),
    [
        ("sqlite", "postgres://u:p@h/d", "DB_DRIVER=postgres"),
        ("sqlite", "u:p@tcp(h)/d", "DB_DRIVER=mysql"),
        ("postgres", "mysql://u:p@h/d", "DB_DRIVER=mysql"),
        ("postgres", "u:p@tcp(h)/d", "DB_DRIVER=mysql"),
        ("mysql", "postgres://u:p@h/d", "DB_DRIVER=postgres"),
        ("mysql", "sqlite:x.db", "DB_DRIVER=sqlite"),
        ("postgres", "localhost", "is no URL"),
        ("mysql", "localhost", "names no database"),
        ("postgres", "", "DATABASE_URL must be set"),
        ("mysql", None, "DATABASE_URL must be set"),
        ("sqlite", "", "DATABASE_PATH must be set"),
        ("postgresql", "postgres://u:p@h/d", "sqlite, postgres, mysql"),
    ],
)
def test_driver_and_url_must_agree(driver: str, url: str | None, advice: str) -> None:
    with pytest.raises(BadDsn, match=advice):
        parse(driver, url, "")


def test_without_settings_for_a_server_it_is_the_file() -> None:
    assert parse("sqlite", None, "./data/llm-proxy.db") == Target("sqlite", path=Path("data/llm-proxy.db"))
    assert parse(None, "", ":memory:") == Target("sqlite")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgres://u:p@h/d", "PostgreSQL at h:5432, database d"),
        ("postgres://u:p@[::1]/d", "PostgreSQL at [::1]:5432, database d"),
        ("u:p@unix(/run/my.sock)/d", "MySQL at /run/my.sock, database d"),
        ("sqlite:/x.db", "SQLite file /x.db"),
        ("sqlite::memory:", "SQLite in memory"),
    ],
)
def test_a_target(url: str, words: str) -> None:
    assert str(parse(None, url, None)) == words
