"""Rows for tables as they are at any revision."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, DateTime, Integer, MetaData, SmallInteger, Table, insert, inspect
from sqlalchemy.types import TypeEngine

from db import Connection, schema
from db.types import Digest, Timestamp
from tests.db.schemas import TABLES


def value_for(column: Column[Any], number: int) -> object:
    """Any value that the column takes; the same for keys and what refers to them."""
    if column.name == "id" or column.foreign_keys:
        return f"id-{number}"
    values: list[tuple[type[TypeEngine[Any]], object]] = [
        (Boolean, True),
        (SmallInteger, 200),
        (BigInteger, 2**40 + number),
        (Integer, number),
        (Timestamp, datetime(2026, 1, 1, 0, 0, 0, number, tzinfo=UTC)),
        (Digest, bytes([number]) * 32),
    ]
    return next((value for kind, value in values if isinstance(column.type, kind)), f"{column.name}-{number}")


def fill(connection: Connection, table: Table) -> None:
    """Put two rows into a table as it is at this revision, whatever its columns."""
    rows = [{column.name: value_for(column, number) for column in table.columns} for number in (1, 2)]
    connection.execute(insert(table), rows)


def reflect(connection: Connection) -> dict[str, Table]:
    """The tables as they are, with times and digests as our types."""
    found = MetaData()
    found.reflect(connection, only=lambda name, _: name in TABLES)
    for table in found.tables.values():
        for column in table.columns:
            if isinstance(column.type, DateTime):
                column.type = Timestamp()
            elif column.name == "digest":
                column.type = Digest()
    return dict(found.tables)


def contents(connection: Connection) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of the tables that are there, by their names; values as the driver gives them."""
    return {
        name: sorted((tuple(row) for row in connection.exec_driver_sql(f"SELECT * FROM {name}")), key=str)
        for name in inspect(connection).get_table_names()
        if name in TABLES
    }


def fill_new(connection: Connection, already: Collection[str]) -> None:
    """Put two rows into every table that is there, but for those that have some `already`."""
    found = reflect(connection)
    for table in schema.metadata.sorted_tables:
        if table.name in found and table.name not in already:
            fill(connection, found[table.name])


def agree(some: list[tuple[Any, ...]], others: list[tuple[Any, ...]]) -> bool:
    """Whether both are the same rows, as far as both have their columns; a revision adds columns behind the others."""
    width = min((len(row) for row in [*some, *others]), default=0)
    return [row[:width] for row in some] == [row[:width] for row in others]
