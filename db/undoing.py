"""A mark on a database whose newest revision is being undone.

Where every statement that defines something commits at once, a `down` that is cut off leaves a revision that counts as
applied and is half gone. The mark, the comment of Alembic's own table, tells the next `up` or `down`. Where tables can
be changed in a transaction it vanishes with it, and a database without comments is one of those.
"""

from __future__ import annotations

from sqlalchemy import Connection, MetaData, Table, inspect
from sqlalchemy.schema import DropTableComment, SetTableComment

#: The table in which Alembic keeps the revision.
VERSION_TABLE = "alembic_version"
_MARK = "undoing "


def mark(connection: Connection, revision: str) -> None:
    """Write down that a revision is being undone."""
    if connection.dialect.supports_comments:
        connection.execute(SetTableComment(_table(_MARK + revision)))


def unmark(connection: Connection) -> None:
    """Take the mark away, if there is one."""
    if _comment(connection).startswith(_MARK):
        connection.execute(DropTableComment(_table()))


def marked(connection: Connection) -> str | None:
    """The revision that was being undone; None when there is none, or no version table yet."""
    comment = _comment(connection)
    return comment.removeprefix(_MARK) if comment.startswith(_MARK) else None


def _comment(connection: Connection) -> str:
    if not connection.dialect.supports_comments:
        return ""
    return inspect(connection).get_table_comment(VERSION_TABLE)["text"] or ""


def _table(comment: str | None = None) -> Table:
    return Table(VERSION_TABLE, MetaData(), comment=comment)
