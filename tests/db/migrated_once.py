"""Preloaded where processes that migrate are forked: a first migration reads, compiles and caches for 50 ms of CPU."""

from __future__ import annotations

from sqlalchemy.dialects.mysql.reflection import MySQLTableDefinitionParser

from db.dialects.mysql import MySqlDialect
from db.dsn.target import Target
from tests.databases.scratch import upgrade

upgrade(Target("sqlite"))  # in memory

_dialect = MySqlDialect()
MySQLTableDefinitionParser(_dialect, _dialect.identifier_preparer)
