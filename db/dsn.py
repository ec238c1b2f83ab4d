"""Where the database is: `DB_DRIVER`, `DATABASE_URL` and `DATABASE_PATH` read into a `Target`. Pure; no I/O."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Literal

from attrs import field, frozen

from db.errors import BadDsn

Driver = Literal["sqlite", "postgres", "mysql"]


class Tls(Enum):
    """How much of TLS is asked for."""

    OFF = "off"
    PREFERRED = "preferred"
    REQUIRED = "required"
    VERIFY_CA = "verify-ca"
    VERIFY_FULL = "verify-full"


@frozen
class Target:
    """One database, wherever it is. The password is left out of `repr`.

    Attributes:
        path: the SQLite file; None for a database in memory, and on servers.
    """

    driver: Driver
    path: Path | None = None
    host: str = "localhost"
    port: int = 0
    unix_socket: str | None = None
    user: str = ""
    password: str = field(default="", repr=False)
    database: str = ""
    tls: Tls = Tls.OFF

    def __str__(self) -> str:
        """The target in words, for messages: nothing secret in it."""
        return f"SQLite {self.path or 'in memory'}"


def parse(driver: str | None, url: str | None, path: str | None) -> Target:
    """Read the three settings. Raises BadDsn with what is wrong and what is allowed."""
    if driver not in (None, "", "sqlite") or url:
        raise BadDsn("DB_DRIVER must be sqlite")
    if not path or path == ":memory:":
        return Target("sqlite")
    return Target("sqlite", path=Path(path))
