"""Between rows and records: a record's fields are columns of the same names."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from attrs import fields, frozen, has
from sqlalchemy import Column, ColumnElement, Connection, Table, and_, or_, select

from db.records import Reservation, Result, SettledRequest


@frozen
class Position:
    """Where a page of a listing ended: the last row's time and id, which together no other row has."""

    created_at: datetime
    id: str


@frozen
class Named:
    """A row that a name may mean."""

    id: str
    name: str


#: Rows that are read of those that one name means.
MAX_CANDIDATES = 5

_LAST4 = 4


def find_named(connection: Connection, table: Table, last4: Column[str], name: str) -> list[Named]:
    """The rows of this name, else those with these last four characters."""
    conditions = [table.c.name == name]
    if len(name) == _LAST4 and name.isascii():
        conditions.append(last4 == name)
    for condition in conditions:
        query = select(table.c.id, table.c.name).where(condition).order_by(table.c.id).limit(MAX_CANDIDATES)
        found = [Named(*row) for row in connection.execute(query)]
        if found:
            return found
    return []


def names(record: type) -> tuple[str, ...]:
    """Give the names of a record's fields, which are those of its columns."""
    if has(record):
        return tuple(field.name for field in fields(record))
    found: tuple[str, ...] = record.__struct_fields__  # type: ignore[attr-defined] # all other records are structs
    return found


#: The columns of a settled request: where its record has the value of each.
SETTLED: Mapping[str, str] = {
    **{name: f"reservation.{name}" for name in names(Reservation)},
    **{name: f"result.{name}" for name in names(Result)},
    "settled_at": "settled_at",
}


def columns(table: Table, record: type) -> list[Column[Any]]:
    """Give the columns that a record is made of, in the order of its fields."""
    return [table.c[name] for name in (SETTLED if record is SettledRequest else names(record))]


def older_than(table: Table, position: Position) -> ColumnElement[bool]:
    """Say which rows come after a position in the order "newest first, then by descending id"."""
    # Spelt out, because a comparison of row values keeps SQLite and MySQL from using an index.
    return or_(
        table.c.created_at < position.created_at,
        and_(table.c.created_at == position.created_at, table.c.id < position.id),
    )


def first_id(time: datetime) -> str:
    """The lower bound of all ids of version 7 (RFC 9562) that are made at this time or later."""
    digits = f"{int(time.timestamp() * 1000):012x}"
    return f"{digits[:8]}-{digits[8:]}"
