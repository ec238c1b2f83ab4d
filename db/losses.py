"""What undoing revisions deletes, for people who are about to do it."""

from __future__ import annotations

from attrs import frozen
from sqlalchemy import Connection, inspect

from db import migrate
from db.database import Database, opened
from db.dsn.target import Target
from db.options import Options
from db.queries import tables
from db.schema import metadata


@frozen
class Loss:
    """A table that is deleted, or one of its columns, with the number of rows in the table."""

    table: str
    column: str | None
    rows: int


def losses(database: Database, to: str | None = None) -> tuple[Loss, ...] | None:
    """Find what `migrate.down` would delete, by comparing the schema with a fresh one at the revision `to`.

    Returns:
        The tables and columns; None when there is no revision to undo.

    Raises:
        Refused, SchemaMismatch: as `migrate.down` does.
    """
    # On a connection that may write: one that only reads leaves SQLite's log behind when it is closed.
    kept, undone = database.write_now(migrate.steps_down, to)
    if not undone:
        return None
    left = _columns_at(kept[-1].id) if kept else {}

    def look(connection: Connection) -> tuple[Loss, ...]:
        found = []
        for table, columns in _columns(connection).items():
            gone = sorted(columns - left[table]) if table in left else [None]
            if gone:
                rows = tables.count(connection, metadata.tables[table])
                found += [Loss(table, column, rows) for column in gone]
        return tuple(found)

    return database.read_now(look)


def _columns_at(revision: str) -> dict[str, set[str]]:
    with opened(Target("sqlite"), Options()) as fresh:
        migrate.up(fresh)
        migrate.down(fresh, revision)
        return fresh.read_now(_columns)


def _columns(connection: Connection) -> dict[str, set[str]]:
    """The columns of our tables."""
    found = inspect(connection)
    names = [name for name in metadata.tables if found.has_table(name)]
    return {name: {column["name"] for column in found.get_columns(name)} for name in names}
