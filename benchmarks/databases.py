"""The databases to measure on: those that the tests run on too, found or started in the same ways.

`Databases().empty(kind)` makes a database for a `with` block; its `env` are the settings that lead a server to it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from tests.databases.kinds import Kind
from tests.databases.scratch import Databases, Scratch
from tests.databases.servers import Missing

__all__ = ["NAMES", "Databases", "Kind", "Missing", "Scratch", "describe", "find"]

#: What people call them.
NAMES = {Kind.SQLITE: "SQLite", Kind.POSTGRES: "PostgreSQL", Kind.MYSQL: "MySQL", Kind.MARIADB: "MariaDB"}


def find(databases: Databases, kinds: Iterable[Kind]) -> tuple[list[Kind], dict[Kind, str]]:
    """Return those kinds that this machine has, and why it has not the others.

    Raises:
        RuntimeError: there is a server that does not work. That is never ignored.
    """
    found, missing = [], {}
    for kind in kinds:
        try:
            if kind is not Kind.SQLITE:
                databases.server(kind)
        except Missing as error:
            missing[kind] = str(error)
        else:
            found.append(kind)
    return found, missing


def describe(databases: Databases, kinds: Iterable[Kind]) -> dict[str, str]:
    """Return what was measured on, by name: each version, and whose server it is."""
    about = {}
    for kind in kinds:
        if kind is Kind.SQLITE:
            about[NAMES[kind]] = f"{sqlite3.sqlite_version}, each commit flushed to the disk"
            continue
        server = databases.server(kind)
        if server.origin == kind.variable:
            whose = "set up by its owner"
        elif server.origin == "docker":
            whose = "a container with the image's own settings"
        else:
            whose = "started for this run, with its own defaults for what a commit survives"
        about[NAMES[kind]] = f"{server.version}, {whose}"
    return about
