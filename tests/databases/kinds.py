"""The four databases that the project promises to run on."""

from __future__ import annotations

from enum import StrEnum

import pytest


class Kind(StrEnum):
    """A database that tests run on. MySQL and MariaDB share a driver and are tested apart."""

    SQLITE = "sqlite"
    POSTGRES = "postgres"
    MYSQL = "mysql"
    MARIADB = "mariadb"

    @property
    def driver(self) -> str:
        """The value of `DB_DRIVER` that reaches it."""
        return "mysql" if self is Kind.MARIADB else self.value

    @property
    def variable(self) -> str:
        """The environment variable that names a running server of this kind."""
        return f"TEST_{self.name}_URL"


#: Those that live in a server process of their own.
SERVERS = (Kind.POSTGRES, Kind.MYSQL, Kind.MARIADB)


def on(*kinds: Kind | str) -> pytest.MarkDecorator:
    """Limit a database test to some kinds: `@on("postgres", "mysql")`. Without it, a test runs on all four."""
    return pytest.mark.parametrize("database_kind", [Kind(kind) for kind in kinds], ids=str, indirect=True)
