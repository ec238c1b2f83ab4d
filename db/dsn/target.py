"""The address of one database."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Literal

from attrs import field, frozen

#: The values of `DB_DRIVER`. MariaDB is reached as mysql.
Driver = Literal["sqlite", "postgres", "mysql"]

#: What the drivers' databases are called in sentences.
PRODUCTS: Mapping[Driver, str] = {"sqlite": "SQLite", "postgres": "PostgreSQL", "mysql": "MySQL"}


class Tls(Enum):
    """The required level of TLS."""

    OFF = "off"
    ALLOWED = "allowed"  #: only if the server requires it; its certificate is not verified
    PREFERRED = "preferred"  #: if the server offers it; its certificate is not verified
    REQUIRED = "required"  #: always; the certificate is not verified
    VERIFY_CA = "verify-ca"  #: always; the certificate must come from a trusted authority
    VERIFY_FULL = "verify-full"  #: as VERIFY_CA, and it must be for the host in the URL
    CUSTOM = "custom"  #: as VERIFY_FULL, and the authority must be set with DATABASE_TLS_CA


@frozen
class Target:
    """Where a database is and how to log in. The password is left out of `repr`.

    Attributes:
        path: the SQLite file; None for a database in memory, and on servers.
        unix_socket: path of the server's socket, used instead of host and port; TLS is not used on it.
        tls_ca, tls_cert, tls_key: PEM files that the URL names; they override `Options`.
        connect_timeout, read_timeout, write_timeout: seconds, where the URL sets them; they override `Options`.
        application_name: what the server's list of sessions calls this program (PostgreSQL).
        channel_binding: the login must prove that there is no man in the middle (PostgreSQL, SCRAM over TLS).
    """

    driver: Driver
    path: Path | None = None
    host: str = ""
    port: int = 0
    unix_socket: str | None = None
    user: str = ""
    password: str = field(default="", repr=False)
    database: str = ""
    tls: Tls = Tls.OFF
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    connect_timeout: float | None = None
    read_timeout: float | None = None
    write_timeout: float | None = None
    application_name: str = "llm-proxy"
    channel_binding: bool = False

    def same_place(self, other: Target) -> bool:
        """Whether both lead to one database, as far as names tell."""
        if self.path is not None and other.path is not None:
            return self.path.resolve() == other.path.resolve()
        place, theirs = (
            (target.driver, target.host, target.port, target.unix_socket, target.database) for target in (self, other)
        )
        return self.driver != "sqlite" and place == theirs

    def __str__(self) -> str:
        product = PRODUCTS[self.driver]
        if self.driver == "sqlite":
            return f"{product} in memory" if self.path is None else f"{product} file {self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{product} at {self.unix_socket or f'{host}:{self.port}'}, database {self.database}"
