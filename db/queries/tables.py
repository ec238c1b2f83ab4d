"""Whole tables, a piece at a time in the order of their primary keys: what copying and comparing them takes.

A row is a tuple of its columns' values, in the order of the declaration; a key that of its primary key's. The order of
keys is the same on every database, because ids and names compare by code point on all of them (`db.types`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from operator import itemgetter
from typing import Any, Final

import msgspec
from attrs import define
from sqlalchemy import Column, ColumnElement, Connection, Table, and_, delete, func, insert, or_, select, update

from db.dialects.bulk import BulkInsert, tuple_of

Row = tuple[Any, ...]
Key = tuple[Any, ...]

_sorted_json: Final = msgspec.json.Encoder(order="sorted").encode


@define
class RowsDigest:
    """What a set of rows comes to, in whatever order they are added.

    Two sets with equal digests are the same, but for a chance of one in 2^128 or so. Counts alone would not notice a
    changed value, and a digest of a sequence would depend on an order.
    """

    rows: int = 0
    total: int = 0

    def add(self, rows: Iterable[Row]) -> None:
        """Take rows in: the sum of their SHA-256 values, modulo 2^256."""
        for row in rows:
            # Equal values of the types that columns have are written equally, and others differently. The order of the
            # members of an object is no difference: releases have their own.
            values = [_sorted_json(value) if isinstance(value, dict) else value for value in row]
            text = repr(tuple(values)).encode("utf-8", "backslashreplace")
            self.total = (self.total + int.from_bytes(hashlib.sha256(text).digest(), "big")) % (1 << 256)
            self.rows += 1

    def __str__(self) -> str:
        """The digest as people compare it: 16 digits of 64."""
        return f"{self.total:064x}"[:16]


def key_of(table: Table, row: Row) -> Key:
    return _key_getter(table)(row)


def count(connection: Connection, table: Table) -> int:
    return connection.execute(select(func.count()).select_from(table)).scalar_one()


def stretch(connection: Connection, table: Table, after: Key | None, last: Key | None, limit: int) -> list[Row]:
    """The rows behind one key up to and with another, at most `limit`; None is the beginning, or the end."""
    query = select(table).order_by(*table.primary_key.columns).limit(limit)
    if after is not None:
        query = query.where(_behind(table, after))
    if last is not None:
        query = query.where(~_behind(table, last))
    return [tuple(row) for row in connection.execute(query)]


def first_key(connection: Connection, table: Table) -> Key | None:
    """The lowest key; None in an empty table."""
    row = connection.execute(select(*table.primary_key.columns).order_by(*table.primary_key.columns).limit(1)).first()
    return None if row is None else tuple(row)


def add(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    names = table.columns.keys()
    _insert(table)(connection, [dict(zip(names, row, strict=True)) for row in rows])


def change(connection: Connection, table: Table, row: Row) -> None:
    """Give the row of the same key these values."""
    values = dict(zip(table.columns.keys(), row, strict=True))
    connection.execute(update(table).where(*_is(table, key_of(table, row))).values(values))


def remove(connection: Connection, table: Table, keys: Iterable[Key]) -> None:
    for key in keys:
        connection.execute(delete(table).where(*_is(table, key)))


@cache
def _insert(table: Table) -> BulkInsert:
    return BulkInsert(insert(table), table.columns.keys())


@cache
def _key_getter(table: Table) -> Callable[[Row], Key]:
    names = table.columns.keys()
    return tuple_of(itemgetter, [names.index(column.name) for column in table.primary_key.columns])


def _is(table: Table, key: Key) -> list[ColumnElement[bool]]:
    return [column == value for column, value in zip(table.primary_key.columns, key, strict=True)]


def _behind(table: Table, key: Key) -> ColumnElement[bool]:
    # Spelt out, because a comparison of row values keeps SQLite and MySQL from using an index.
    columns: list[Column[Any]] = list(table.primary_key.columns)
    cases = []
    for place, column in enumerate(columns):
        before = [columns[number] == key[number] for number in range(place)]
        cases.append(and_(*before, column > key[place]))
    return or_(*cases)
