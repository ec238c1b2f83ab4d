"""The two shapes of a server's DSN, taken apart: URLs, and the form of Go's MySQL driver.

In a URL the credentials end at the last `@`, so that a password may hold any character as it is, and both parts may be
percent-encoded. In Go's form, `user:password@tcp(host:port)/database?name=value`, the last `/` comes before the name
of the database, the last `@` before that ends the credentials, and nothing but the parameters is decoded
(go-sql-driver/mysql, `ParseDSN`).

Messages quote nothing of what they were given: any piece of a broken DSN may be the password.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address
from urllib.parse import parse_qsl, unquote

from attrs import field, frozen

from db.dsn.parameters import shown
from db.errors import BadDsn

# Labels of at most 63 characters (RFC 1035 section 2.3.4): resolvers fail oddly on longer ones.
_HOST = re.compile(r"(?=.{1,253}\Z)[\w-]{1,63}(?:\.[\w-]{1,63})*\.?")
_ENDPOINT = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<host>[^:\[\]]*))(?::(?P<port>[^:]*))?", re.DOTALL)
_GO_NETWORK = re.compile(r"(?P<name>[a-z0-9]*)(?:\((?P<address>.*)\))?", re.DOTALL)
# Parameters of Go's form that a `/` follows, which is then taken for the one before the name of the database.
_PARAMETERS_BEFORE_SLASH = re.compile(r"\)/[^/()]*\?[A-Za-z_-]+=")
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
# A host, a path and a query before an `@`: then that `@` belongs to the query, and the credentials ended before.
_QUERY_BEFORE_AT = re.compile(r"@[^@/]*/[^@]*\?[A-Za-z_-]+=", re.DOTALL)


@frozen
class Parts:
    """What a DSN says, not yet judged. `port` is None where it names none; `socket` is a path of the file system."""

    user: str
    password: str = field(repr=False)
    host: str
    port: int | None
    socket: str | None
    database: str
    parameters: tuple[tuple[str, str], ...]


def split_url(url: str) -> Parts:
    """Take a `scheme://user:password@host:port/database?name=value` apart. Raises BadDsn."""
    rest = url.partition("://")[2]
    credentials, _, location = rest.rpartition("@")
    if _QUERY_BEFORE_AT.search(f"@{credentials}" if "@" not in credentials else credentials):
        raise BadDsn("DATABASE_URL: write an @ after the ? as %40, and a ? in the password as %3F")
    if "#" in location:
        raise BadDsn("DATABASE_URL: write a # in the name of the database or in a parameter as %23")
    location, _, query = location.partition("?")
    endpoint, _, database = location.partition("/")
    user, _, password = credentials.partition(":")
    if _decoded(endpoint).startswith("/"):
        # As for libpq, the port follows a colon that is not encoded. The folder may have others here.
        folder, colon, number = endpoint.rpartition(":")
        if not colon or (number and not number.isdecimal()):
            folder, number = endpoint, ""
        host, port, socket = "", parse_port(number) if number else None, _decoded(folder)
    else:
        host, port, socket = (*split_endpoint(_decoded(endpoint)), None)
    return Parts(
        user=_decoded(user),
        password=_decoded(password),
        host=host,
        port=port,
        socket=socket,
        database=_decoded(database),
        # libpq decodes no +, MySQL's URLs are read as Go reads them.
        parameters=_parameters(query, user=user, plus="%2B" if url.lower().startswith("postgres") else "+"),
    )


def split_go(dsn: str) -> Parts:
    """Take a `user:password@tcp(host:port)/database?name=value` apart. Raises BadDsn."""
    head, slash, tail = dsn.rpartition("/")
    if not slash or "@" in tail:
        raise BadDsn("DATABASE_URL names no database: user:password@tcp(host:3306)/database?tls=true")
    credentials, _, network = head.rpartition("@")
    user, _, password = credentials.partition(":")
    database, _, query = tail.partition("?")
    match = _GO_NETWORK.fullmatch(network)
    if match is None or match["name"] not in ("", "tcp", "unix") or (match["address"] and not match["name"]):
        if _PARAMETERS_BEFORE_SLASH.search(network):
            raise BadDsn("DATABASE_URL: write a / in a parameter as %2F")
        raise BadDsn("DATABASE_URL: what follows the last @ must be tcp(host:port) or unix(/path/of/socket)")
    if match["name"] == "unix":
        host, port, socket = "", None, match["address"] or "/tmp/mysql.sock"  # noqa: S108 - the default of MySQL itself
    else:
        host, port, socket = (*split_endpoint(match["address"] or ""), None)
    return Parts(
        user=user,
        password=password,
        host=host,
        port=port,
        socket=socket,
        database=_decoded(database),
        parameters=_parameters(query, user=user),
    )


def split_endpoint(endpoint: str) -> tuple[str, int | None]:
    """Host (empty if it is left out) and port (None if it is left out) of `host`, `host:port` or `[v6]:port`."""
    if "," in endpoint:
        raise BadDsn(
            "DATABASE_URL names several hosts; name one: the writer's address, or that of a proxy or virtual IP which "
            "follows the writer"
        )
    match = _ENDPOINT.fullmatch(endpoint)
    if match is None or (match["host"] and not _HOST.fullmatch(match["host"])) or not _is_v6(match["v6"]):
        raise BadDsn("DATABASE_URL: the host must be a name, an IPv4 address, or an IPv6 address in [brackets]")
    host = match["v6"] or match["host"]
    return host, parse_port(match["port"]) if match["port"] else None


def parse_port(port: str) -> int:
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise BadDsn("DATABASE_URL: the port must be a number from 1 to 65535")
    return int(port)


def parse_address(address: str) -> str:
    """A numeric address, as libpq's `hostaddr` has it: IPv6 without brackets."""
    if "," in address:
        split_endpoint(address)
    try:
        return str(ip_address(address))
    except ValueError:
        raise BadDsn("DATABASE_URL: hostaddr must be an IPv4 or IPv6 address") from None


def _is_v6(address: str | None) -> bool:
    try:
        return address is None or bool(IPv6Address(address))
    except ValueError:
        return False


def _decoded(text: str) -> str:
    try:
        text = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise BadDsn("DATABASE_URL: percent-encoded characters must be UTF-8") from None
    if "\0" in text:
        raise BadDsn("DATABASE_URL must not hold a NUL character")
    return text


def _parameters(query: str, *, user: str, plus: str = "+") -> tuple[tuple[str, str], ...]:
    """Take a query apart. `plus` is the encoded form of a `+`; without a user, its names may be part of a password."""
    for item in query.split("&"):
        name, _, value = item.partition("=")
        if _BROKEN_ESCAPE.search(item):
            what = f"the value of {shown(name)}" if user and _BROKEN_ESCAPE.search(value) else "a parameter"
            raise BadDsn(f"DATABASE_URL: {what} has a % without two hexadecimal digits behind it; write %25 for a %")
    try:
        query = query.replace("+", plus)
        # Without a limit here, thousands of parameters would be a slow way to say that one is unknown.
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict", max_num_fields=64)
    except ValueError:
        raise BadDsn("DATABASE_URL: parameters must be name=value, joined by &, in UTF-8") from None
    return tuple(pairs)
