"""All SQL; does not depend on the proxy.

The package `dsn` turns `DB_DRIVER`, `DATABASE_URL` and `DATABASE_PATH` into a `Target`: `dsn.syntax` takes URLs apart,
`dsn.parameters` judges their parameters. `options` says how to connect.
`database` runs plain functions `(Connection, …) -> T` in one transaction and one thread hop each;
`statistics` counts them.
`dialects` is the only place that knows how SQLite, PostgreSQL, MySQL and MariaDB differ.
`types`, `schema` and `records` declare the tables and what rows look like in Python; `queries` holds the functions.
`migrate` brings a database to the schema, with the revisions of the `migrations` package, and checks whether a newer
schema suits this version.
`copy` copies a database into another one. `spool` keeps records on this machine's disk until the database has them.
`errors` is all that callers have to catch: its messages are fit for users and never hold a driver's words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Connection
else:

    def __getattr__(name: str) -> object:
        """Import SQLAlchemy only if `Connection` is asked for: commands without a database start in half the time."""
        if name != "Connection":
            raise AttributeError(name)
        from sqlalchemy import Connection  # noqa: PLC0415 (slow to import)

        return Connection


__all__ = ["Connection"]
