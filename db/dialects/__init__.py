"""Where the databases differ; nothing outside names one of them.

`sqlite`, `postgresql` and `mysql` (with MariaDB) connect each in their own way and know what their errors mean.
`server` and `wire` are the connections to a server, `migration_lock` the wait for another migration, and `failure` the
meaning of an error. `statements` holds what the queries need and SQL spells in several ways, `bulk` what they do with
many rows at once.
"""

from __future__ import annotations

from db.dialects.mysql import MySqlBackend
from db.dialects.postgresql import PostgresBackend
from db.dialects.server import ServerFacts
from db.dialects.sqlite import SqliteBackend
from db.dialects.statements import clock
from db.dsn.target import Target
from db.options import Options

__all__ = ["Backend", "ServerFacts", "backend_for", "clock"]

Backend = SqliteBackend | PostgresBackend | MySqlBackend


def backend_for(target: Target, options: Options, *, exclusive: bool) -> Backend:
    """The backend for a target; nothing is opened yet. Raises BadDsn for TLS files that cannot be used."""
    match target.driver:
        case "sqlite":
            return SqliteBackend(target, options, exclusive=exclusive)
        case "postgres":
            return PostgresBackend(target, options)
        case "mysql":
            return MySqlBackend(target, options)
