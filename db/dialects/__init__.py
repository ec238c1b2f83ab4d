"""Where the databases differ; nothing outside names one of them.

`sqlite`, `postgresql` and `mysql` (with MariaDB) each connect in their own way and know what their errors mean.
`statements` holds what the queries need and SQL spells in several ways.
"""

from __future__ import annotations

from db.dialects.sqlite import SqliteBackend
from db.dsn import Target
from db.options import Options

Backend = SqliteBackend


def backend_for(target: Target, options: Options) -> Backend:
    """The backend for a target; nothing is opened yet. Raises BadDsn for TLS files that cannot be used."""
    return SqliteBackend(target, options)
