"""What the queries need and SQL spells in several ways: statements, and functions of a `Connection`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Column, Connection, Insert, Select, Table, insert
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import SyntaxExtension
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ClauseElement
from sqlalchemy.sql.visitors import InternalTraversal


def for_update(statement: Select[*tuple[Any, ...]], *, skip_locked: bool = False) -> Select[*tuple[Any, ...]]:
    """Lock the rows that are read until the transaction ends; or leave out those that others have locked.

    On SQLite a write transaction has the whole file to itself, so nothing is added. MariaDB before 10.6 cannot leave
    rows out; there it waits.
    """
    return statement.with_for_update(skip_locked=skip_locked)


def upsert_add(table: Table, *, keys: Sequence[str], sums: Sequence[str]) -> Insert:
    """An INSERT, to be executed with a list of rows, that adds `sums` to the row which has the same `keys`.

    The rows of one execution must differ in their keys, and must come in the order of their keys where several
    transactions add at once, because locks are taken in that order. Other columns keep what they were first given.
    """
    return insert(table).ext(_AddOnConflict(table.name, keys, sums))


def clock(connection: Connection) -> datetime:
    """The database's clock at this moment, not at the beginning of the transaction."""
    name = connection.dialect.name
    if name == "sqlite":
        return datetime.now(UTC)
    if name == "postgresql":
        told: datetime = connection.exec_driver_sql("SELECT clock_timestamp()").scalar_one()
        return told
    told = connection.exec_driver_sql("SELECT UTC_TIMESTAMP(6)").scalar_one()
    return told.replace(tzinfo=UTC)


def add_to_counter(
    connection: Connection,
    counter: Column[int],
    amounts: Mapping[str, int],
    also: Mapping[Column[Any], object] | None = None,
) -> None:
    """Add to a counter of many rows, in one round trip whatever their number. Rows that do not exist are left out.

    Args:
        connection: in a transaction that writes.
        counter: the column; the primary key of its table is one `Id`.
        amounts: what to add, by primary key; may be negative.
        also: columns to set to one value in all these rows.
    """
    if not amounts:
        return
    (key,) = counter.table.primary_key.columns
    columns = list(also or {})
    values = [_bound(connection, column, value) for column, value in (also or {}).items()]
    update = _UPDATES.get(connection.dialect.name, _by_cases)
    update(connection, counter, key, columns, values, amounts)


def _bound(connection: Connection, column: Column[Any], value: object) -> object:
    processor = column.type.dialect_impl(connection.dialect).bind_processor(connection.dialect)
    return value if processor is None else processor(value)


def _one_by_one(
    connection: Connection,
    counter: Column[int],
    key: Column[Any],
    columns: list[Column[Any]],
    values: list[object],
    amounts: Mapping[str, int],
) -> None:
    """SQLite: there is no round trip to save, and the driver's loop is C."""
    further = "".join(f", {column.name} = ?" for column in columns)
    table = counter.table.name
    statement = f"UPDATE {table} SET {counter.name} = {counter.name} + ?{further} WHERE {key.name} = ?"  # noqa: S608 - names
    connection.exec_driver_sql(statement, [(amount, *values, row) for row, amount in amounts.items()])


def _by_arrays(
    connection: Connection,
    counter: Column[int],
    key: Column[Any],
    columns: list[Column[Any]],
    values: list[object],
    amounts: Mapping[str, int],
) -> None:
    """PostgreSQL: two arrays, so that the statement stays the same whatever the number of rows."""
    further = "".join(f", {column.name} = ${number}" for number, column in enumerate(columns, start=3))
    statement = (  # the schema's own names, nothing from outside
        f"UPDATE {counter.table.name} SET {counter.name} = {counter.name} + added.amount{further} "  # noqa: S608
        f"FROM unnest($1::varchar[], $2::bigint[]) AS added (id, amount) "
        f'WHERE {counter.table.name}.{key.name} = added.id COLLATE "C"'
    )
    rows, added = "{" + ",".join(amounts) + "}", "{" + ",".join(map(str, amounts.values())) + "}"
    connection.exec_driver_sql(statement, (rows, added, *values))


def _by_cases(
    connection: Connection,
    counter: Column[int],
    key: Column[Any],
    columns: list[Column[Any]],
    values: list[object],
    amounts: Mapping[str, int],
) -> None:
    """MySQL and MariaDB."""
    further = "".join(f", {column.name} = %s" for column in columns)
    cases = " WHEN %s THEN %s" * len(amounts)
    places = ", ".join(["%s"] * len(amounts))
    statement = (  # the schema's own names, nothing from outside
        f"UPDATE {counter.table.name} SET {counter.name} = {counter.name} + "  # noqa: S608
        f"CASE {key.name}{cases} ELSE 0 END{further} "
        f"WHERE {key.name} IN ({places})"
    )
    pairs = [part for pair in amounts.items() for part in pair]
    connection.exec_driver_sql(statement, (*pairs, *values, *amounts))


_UPDATES = {"sqlite": _one_by_one, "postgresql": _by_arrays}


class _AddOnConflict(SyntaxExtension, ClauseElement):
    """What follows the values of `upsert_add`."""

    _traverse_internals = [  # noqa: RUF012 - SQLAlchemy's declaration
        ("table_name", InternalTraversal.dp_string),
        ("keys", InternalTraversal.dp_string_list),
        ("sums", InternalTraversal.dp_string_list),
    ]

    def __init__(self, table_name: str, keys: Sequence[str], sums: Sequence[str]) -> None:
        self.table_name = table_name
        self.keys = list(keys)
        self.sums = list(sums)

    def apply_to_insert(self, insert_stmt: Insert) -> None:
        """Take the place behind the values."""
        insert_stmt.apply_syntax_extension_point(self.append_replacing_same_type, "post_values")


@compiles(_AddOnConflict)
def _on_conflict(clause: _AddOnConflict, _compiler: SQLCompiler, **_: Any) -> str:
    """SQLite and PostgreSQL."""
    sums = ", ".join(f"{name} = {clause.table_name}.{name} + excluded.{name}" for name in clause.sums)
    return f"ON CONFLICT ({', '.join(clause.keys)}) DO UPDATE SET {sums}"


@compiles(_AddOnConflict, "mysql")
def _on_duplicate_key(clause: _AddOnConflict, compiler: SQLCompiler, **_: Any) -> str:
    if getattr(compiler.dialect, "is_mariadb", False):
        return "ON DUPLICATE KEY UPDATE " + ", ".join(f"{name} = {name} + VALUES({name})" for name in clause.sums)
    sums = ", ".join(f"{name} = {clause.table_name}.{name} + added.{name}" for name in clause.sums)
    return f"AS added ON DUPLICATE KEY UPDATE {sums}"
