"""Where the database is: `DB_DRIVER`, `DATABASE_URL` and `DATABASE_PATH` read into a `target.Target`. Pure; no I/O.

Accepted are `postgres://` and `postgresql://` URLs as libpq and Go's drivers take them, `mysql://` and `mariadb://`
URLs, the form of Go's MySQL driver, `user:password@tcp(host:port)/database?tls=true`, and `sqlite:` with a path.
`syntax` says how they are taken apart, `parameters` which parameters there are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from attrs import evolve

from db.dsn.parameters import MYSQL_SETTLED, POSTGRES_SETTLED, Parameters, check_collation, mysql_tls, postgres_tls
from db.dsn.syntax import Parts, parse_address, parse_port, split_endpoint, split_go, split_url
from db.dsn.target import PRODUCTS, Driver, Target, Tls
from db.errors import BadDsn

__all__ = ["Driver", "Target", "Tls", "parse"]

_SCHEMES: Mapping[str, Driver] = {
    "sqlite": "sqlite",
    "postgres": "postgres",
    "postgresql": "postgres",
    "mysql": "mysql",
    "mariadb": "mysql",
}
_EXAMPLES: Mapping[Driver, str] = {
    "sqlite": "sqlite:./data/llm-proxy.db",
    "postgres": "postgres://user:password@host:5432/database?sslmode=require",
    "mysql": "user:password@tcp(host:3306)/database?tls=true",
}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9.-]*)(?:\+[a-z0-9]+)?:(//)?")
# What is meant to be an address, also where the slashes of a URL have become one.
_NO_PATH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/|sqlite:|[^/]*@(?:tcp|unix)\(")
_GO_BEHIND_SCHEME = re.compile(r"@(?:tcp|unix)(?:\([^()]*\))?/[^/]*$")

_POSTGRES = (
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "user",
    "password",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "connect_timeout",
    "application_name",
    "channel_binding",
)
_MYSQL = ("tls", "ssl-mode", "ssl-ca", "ssl-cert", "ssl-key", "timeout", "readTimeout", "writeTimeout", "unix_socket")


def parse(driver: str | None, url: str | None, path: str | None) -> Target:
    """Read the three settings; empty ones count as not set.

    Args:
        driver: sqlite, postgres or mysql; if it is not set, the URL decides.
        url: the database; for sqlite it wins over `path`.
        path: the SQLite file, or `:memory:`.

    Raises:
        BadDsn: with what is wrong and what is allowed.
    """
    url = (url or "").strip()
    known = next((product for product in PRODUCTS if product == driver), None)
    if driver and known is None:
        raise BadDsn("DB_DRIVER must be one of sqlite, postgres, mysql")
    told = _driver_of(url) if url else None
    if known and told and known != told:
        raise BadDsn(
            f"DB_DRIVER is {known} but DATABASE_URL is for {PRODUCTS[told]}: set DB_DRIVER={told}, or remove the URL"
        )
    kind: Driver = told or known or "sqlite"
    if kind == "sqlite":
        return _sqlite(url, path or "")
    if not url:
        raise BadDsn(f"DB_DRIVER is {kind}, so DATABASE_URL must be set: {_EXAMPLES[kind]}")
    scheme = _SCHEME.match(url)
    if kind == "postgres":
        if scheme is None or not scheme[2]:
            raise BadDsn(f"DATABASE_URL is no URL: {_EXAMPLES[kind]}")
        return _postgres(split_url(url))
    if scheme is None or not scheme[2] or scheme[1].lower() not in _SCHEMES:
        return _mysql(split_go(url), "127.0.0.1")
    rest = url[scheme.end() :]
    return _mysql(split_go(rest) if _GO_BEHIND_SCHEME.search(rest) else split_url(url), "localhost")


def _driver_of(url: str) -> Driver | None:
    scheme = _SCHEME.match(url)
    if scheme and (scheme[2] or scheme[1].lower() == "sqlite"):
        if scheme[1].lower() not in _SCHEMES:
            if _GO_BEHIND_SCHEME.search(url):
                return "mysql"  # no scheme, but a user and a password that begins with two slashes
            raise BadDsn("DATABASE_URL must begin with postgres://, postgresql://, mysql://, mariadb:// or sqlite:")
        return _SCHEMES[scheme[1].lower()]
    # Only the Go form has no scheme; what else has none is a file, as commands take it, or a mistake.
    return "mysql" if "@" in url or "(" in url else None


def _sqlite(url: str, path: str) -> Target:
    if url:
        path = url.partition(":")[2] if url.lower().startswith("sqlite:") else url
        if path.startswith("///"):  # as everywhere in Python: three slashes and a relative path, four and an absolute
            path = path[3:]
        elif path.startswith("//"):
            raise BadDsn(f"DATABASE_URL: a SQLite file is on no host; write {_EXAMPLES['sqlite']}")
    if not path:
        raise BadDsn("DB_DRIVER is sqlite, so DATABASE_PATH must be set: ./data/llm-proxy.db")
    if not url and _NO_PATH.match(path):
        raise BadDsn("DATABASE_PATH must be the path of a file; put a URL into DATABASE_URL, and name its DB_DRIVER")
    if "\0" in path:
        raise BadDsn("DATABASE_PATH must not hold a NUL character")
    return Target("sqlite", path=None if path == ":memory:" else Path(path))


def _postgres(parts: Parts) -> Target:
    # As for libpq, a parameter wins over the same thing before the `?`.
    query = dict(parts.parameters)
    parts = evolve(
        parts,
        user=query.get("user") or parts.user,
        password=query.get("password") or parts.password,
        database=query.get("dbname") or parts.database,
    )
    _check(parts, "postgres")
    parameters = Parameters.of(parts.parameters)
    parameters.drop("user", "password", "dbname")
    host, port, socket = parts.host, parts.port, parts.socket
    if given := parameters.text("host"):
        if given.startswith("/"):
            socket = given
        else:
            host, further = split_endpoint(given)
            port = further or port
    if given := parameters.text("hostaddr"):
        if host or socket:
            raise BadDsn("DATABASE_URL: give host or hostaddr, not both")
        host = parse_address(given)
    if number := parameters.text("port"):
        port = parse_port(number)
    tls, authority = postgres_tls(parameters)
    fallback = parameters.text("fallback_application_name")
    binding = parameters.choice("channel_binding", ("disable", "prefer", "require"))
    target = Target(
        "postgres",
        host="" if socket else host or "localhost",
        port=0 if socket else port or 5432,
        unix_socket=f"{socket.rstrip('/')}/.s.PGSQL.{port or 5432}" if socket else None,
        user=parts.user,
        password=parts.password,
        database=parts.database,
        tls=Tls.OFF if socket else tls,
        tls_ca=authority,
        tls_cert=parameters.path("sslcert"),
        tls_key=parameters.path("sslkey"),
        connect_timeout=parameters.seconds("connect_timeout"),
        application_name=parameters.text("application_name") or fallback or "llm-proxy",
        channel_binding=binding == "require",
    )
    parameters.settle(POSTGRES_SETTLED)
    parameters.complete(_POSTGRES)
    return target


def _mysql(parts: Parts, default_host: str) -> Target:
    _check(parts, "mysql")
    parameters = Parameters.of(parts.parameters)
    socket = parts.socket or parameters.text("unix_socket") or parameters.text("socket")
    tls, authority = mysql_tls(parameters)
    check_collation(parameters)
    parameters.settle(MYSQL_SETTLED)
    target = Target(
        "mysql",
        host="" if socket else parts.host or default_host,
        port=0 if socket else parts.port or 3306,
        unix_socket=socket,
        user=parts.user,
        password=parts.password,
        database=parts.database,
        tls=Tls.OFF if socket else tls,
        tls_ca=authority,
        tls_cert=parameters.path("ssl-cert", "ssl_cert"),
        tls_key=parameters.path("ssl-key", "ssl_key"),
        connect_timeout=parameters.duration("timeout"),
        read_timeout=parameters.duration("readTimeout"),
        write_timeout=parameters.duration("writeTimeout"),
    )
    parameters.complete(_MYSQL, "; set a system variable on the server or for the account")
    return target


def _check(parts: Parts, driver: Driver) -> None:
    """Comes before any message that names a parameter: without a user, what looks like one may be the password."""
    if not parts.user:
        raise BadDsn(f"DATABASE_URL names no user: {_EXAMPLES[driver]}")
    if not parts.database:
        raise BadDsn(f"DATABASE_URL names no database: {_EXAMPLES[driver]}")
    if "/" in parts.database:
        raise BadDsn("DATABASE_URL: the name of the database must not hold a /")
