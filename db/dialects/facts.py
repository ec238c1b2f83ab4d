"""What a database server says about itself."""

from __future__ import annotations

from attrs import frozen
from sqlalchemy import Connection


@frozen
class Facts:
    """For people who look into how things are connected.

    Attributes:
        version: product and version.
        tls: TLS version of the connection, None where it is not encrypted or there is no wire.
        max_connections: the server's limit for all its clients, None for SQLite.
        allowed_connections: how many of those this user may have at most, if nobody else had any: some are reserved for
            administrators, and a role or a database may have a limit of its own. None for SQLite.
        open_connections: how many all clients have at this moment, the one that asks left out. None for SQLite.
    """

    version: str
    tls: str | None
    max_connections: int | None = None
    allowed_connections: int | None = None
    open_connections: int | None = None


def tls_version(connection: Connection, attribute: str) -> str | None:
    """The TLS version of the socket that the driver's connection keeps in `attribute`."""
    version = getattr(getattr(connection.connection.dbapi_connection, attribute, None), "version", None)
    return str(version()) if callable(version) else None
