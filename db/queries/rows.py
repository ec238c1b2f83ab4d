"""Between rows and records: a record's fields are columns of the same names."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from attrs import fields, frozen
from sqlalchemy import Column, ColumnElement, Table, and_, or_


@frozen
class Position:
    """Where a page of a listing ended: the last row's time and id, which together no other row has."""

    created_at: datetime
    id: str


def columns(table: Table, record: type) -> list[Column[Any]]:
    """Give the columns that a record is made of, in the order of its fields."""
    return [table.c[field.name] for field in fields(record)]


def older_than(table: Table, position: Position) -> ColumnElement[bool]:
    """Say which rows come after a position in the order "newest first, then by descending id"."""
    # Spelt out, because a comparison of row values keeps SQLite and MySQL from using an index.
    return or_(
        table.c.created_at < position.created_at,
        and_(table.c.created_at == position.created_at, table.c.id < position.id),
    )
