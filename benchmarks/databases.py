"""The databases to measure on: those that the tests run on too, found or started in the same ways.

`Databases().empty(kind)` makes a database for a `with` block; its `env` are the settings that lead a server to it.
"""

from __future__ import annotations

from tests.databases.kinds import Kind
from tests.databases.scratch import Databases, Scratch
from tests.databases.servers import Missing

__all__ = ["NAMES", "Databases", "Kind", "Missing", "Scratch"]

#: What people call them.
NAMES = {Kind.SQLITE: "SQLite", Kind.POSTGRES: "PostgreSQL", Kind.MYSQL: "MySQL", Kind.MARIADB: "MariaDB"}
