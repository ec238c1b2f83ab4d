"""What a database server says about itself."""

from __future__ import annotations

from attrs import frozen
from sqlalchemy import Connection


@frozen
class Facts:
    """For people who look into how things are connected.

    Attributes:
        version: product and version.
        tls: the TLS version of the connection, None where it is plain or there is no wire.
        max_connections: the server's limit for all its clients, None where there is none.
    """

    version: str
    tls: str | None
    max_connections: int | None


def tls_version(connection: Connection, attribute: str) -> str | None:
    """The TLS version of the socket that the driver's connection keeps in `attribute`."""
    version = getattr(getattr(connection.connection.dbapi_connection, attribute, None), "version", None)
    return str(version()) if callable(version) else None
