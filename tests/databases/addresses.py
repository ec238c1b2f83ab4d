"""Where a database server is reached: just enough of the DSN forms to administer a test server.

Deliberately apart from `db.dsn`, which is itself under test here.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote, urlsplit

from attrs import field, frozen

#: Everything up to the database's name, the name, the options: for URLs and for the Go driver's form alike.
_PARTS = re.compile(r"(?P<head>.*/)(?P<database>[^/?]*)(?P<options>\?.*)?", re.DOTALL)
_GO_FORM = re.compile(
    r"(?:(?P<user>[^:@]*)(?::(?P<password>.*))?@)?"
    r"(?:tcp\((?P<host>[^:)]+)(?::(?P<port>\d+))?\)|unix\((?P<socket>[^)]+)\))?/.*",
    re.DOTALL,
)


@frozen
class Address:
    """Host (or socket) and credentials of a server; the password stays out of `repr`."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    socket: str | None = None

    @classmethod
    def parse(cls, url: str, default_port: int) -> Address:
        """Read a `postgres://` or `mysql://` URL, or the Go driver's `user:password@tcp(host:port)/name`.

        Raises:
            ValueError: it is none of these.
        """
        if "://" in url:
            parts = urlsplit(url)
            return cls(
                host=parts.hostname or "127.0.0.1",
                port=parts.port or default_port,
                user=unquote(parts.username or ""),
                password=unquote(parts.password or ""),
            )
        match = _GO_FORM.fullmatch(url)
        if match is None:
            message = "neither a URL nor user:password@tcp(host:port)/name"
            raise ValueError(message)
        return cls(
            host=match["host"] or "127.0.0.1",
            port=int(match["port"] or default_port),
            user=match["user"] or "",
            password=match["password"] or "",
            socket=match["socket"],
        )

    def mysql_arguments(self) -> dict[str, Any]:
        """Keyword arguments for `pymysql.connect`; the password as bytes, so that any character passes."""
        where: dict[str, Any] = {"unix_socket": self.socket} if self.socket else {"host": self.host, "port": self.port}
        return {**where, "user": self.user, "password": self.password.encode(), "connect_timeout": 5}

    def postgres_arguments(self) -> dict[str, Any]:
        """Keyword arguments for `pg8000.native.Connection`."""
        return {
            "user": self.user,
            "password": self.password or None,
            "host": self.host,
            "port": self.port,
            "timeout": 30,
        }


def with_database(url: str, name: str) -> str:
    """The same server and options, another database."""
    match = _PARTS.fullmatch(url)
    if match is None:
        message = "a database URL has a '/' before the name of the database"
        raise ValueError(message)
    return f"{match['head']}{name}{match['options'] or ''}"


def with_endpoint(url: str, host: str, port: int) -> str:
    """The same credentials, database and options, reached through another host and port (a proxy on the wire)."""
    if "://" in url:
        parts = urlsplit(url)
        credentials = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        return parts._replace(netloc=f"{credentials}{host}:{port}").geturl()
    head, _, rest = url.rpartition("@")
    return f"{head}{'@' if head else ''}tcp({host}:{port})/{rest.partition('/')[2]}"
