"""How commands come to the database itself, without a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from db import dsn
from db.database import Database, opened
from llm_proxy.cli.failures import Failure
from llm_proxy.services import database_options, database_target
from llm_proxy.settings import Settings


@contextmanager
def open_existing(settings: Settings) -> Iterator[Database]:
    """Open the configured database; a SQLite file that is not there is not made.

    Raises:
        Failure: there is no such file.
        db.errors.DatabaseError: it cannot be opened.
    """
    target = database_target(settings)
    if target.path is not None and not target.path.exists():
        raise Failure(f"there is no SQLite file {target.path}; 'llm-proxy migrate up' makes it")
    with opened(target, database_options(settings)) as database:
        yield database


@contextmanager
def open_or_imagine(settings: Settings) -> Iterator[Database]:
    """Open the configured database; in place of a SQLite file that is not there, an empty one in memory."""
    target = database_target(settings)
    if target.path is not None and not target.path.exists():
        target = dsn.parse("sqlite", None, ":memory:")
    with opened(target, database_options(settings)) as database:
        yield database


@contextmanager
def open_or_create(settings: Settings) -> Iterator[Database]:
    """Open the configured database, and make a SQLite file that is not there."""
    with opened(database_target(settings), database_options(settings)) as database:
        yield database
