"""How commands come to the database itself: to look at it beside a running server, or to change it without one."""

from __future__ import annotations

from contextlib import AbstractContextManager

from db import dsn
from db.database import Database, opened
from llm_proxy.cli.failures import Failure
from llm_proxy.services import database_options, database_target
from llm_proxy.settings import Settings


def look_at(settings: Settings) -> AbstractContextManager[Database]:
    """Open the configured database for reading; a server may be using it.

    Raises:
        Failure: there is no such SQLite file; it is not made.
        db.errors.DatabaseError: it cannot be opened.
    """
    target = database_target(settings)
    if target.path is not None and not target.path.exists():
        raise Failure(f"there is no SQLite file {target.path}; 'llm-proxy migrate up' makes it")
    return opened(target, database_options(settings), exclusive=False)


def look_at_or_imagine(settings: Settings) -> AbstractContextManager[Database]:
    """Open the configured database for reading; where there is no SQLite file yet, an empty one in memory."""
    target = database_target(settings)
    if target.path is not None and not target.path.exists():
        target = dsn.parse("sqlite", None, ":memory:")
    return opened(target, database_options(settings), exclusive=False)


def change(settings: Settings) -> AbstractContextManager[Database]:
    """Open the configured database for writing. A SQLite file is made where there is none, and locked.

    Raises:
        db.errors.FileInUse: a server has the SQLite file.
        db.errors.DatabaseError: it cannot be opened.
    """
    return opened(database_target(settings), database_options(settings))
