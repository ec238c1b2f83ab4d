"""What the queries need and SQL spells in several ways: statements, and functions of a `Connection`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from attrs import frozen
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Dialect,
    Insert,
    Select,
    Table,
    UniqueConstraint,
    insert,
    select,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import SyntaxExtension
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ClauseElement
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.util import ClauseAdapter
from sqlalchemy.sql.visitors import InternalTraversal

from db.types import Timestamp


def for_update(
    statement: Select[*tuple[Any, ...]], *, by: Column[Any] | None = None, skip_locked: bool = False
) -> Select[*tuple[Any, ...]]:
    """Lock the rows that are read until the transaction ends.

    On SQLite a write transaction has the whole file to itself, so nothing is added.

    Args:
        statement: the rows.
        by: the column, unique or the primary key, by whose values the statement names its rows. They are reached by
            its index: MySQL and MariaDB read a small table whole otherwise, and wait for each row that somebody else
            has locked, whether or not it is wanted.
        skip_locked: leave out rows that others have locked. MariaDB before 10.6 cannot; there it waits.
    """
    locking = statement.with_for_update(skip_locked=skip_locked)
    return locking if by is None else locking.with_hint(by.table, f"FORCE INDEX ({_index_of(by)})", "mysql")


def newest_first(
    connection: Connection,
    statement: Select[*tuple[Any, ...]],
    key: Column[str],
    ids: tuple[str | None, str | None],
    of: tuple[Column[Any], object] | None,
) -> Select[*tuple[Any, ...]]:
    """Read rows in the order of their ids, the newest first, by the index of a column and the id.

    Args:
        connection: in a block of `without_sorting`.
        statement: the rows.
        key: the id.
        ids: the first id, and the first one that is too new.
        of: the column and its value; without it, the primary key is read.
    """
    first, after = ids
    if first is not None:
        statement = statement.where(key >= first)
    if after is not None:
        statement = statement.where(key < after)
    column, value = of or (key, None)
    if column is not key:
        statement = by_index(connection, statement, (column, key), [value])
    else:
        statement = statement.where(*([] if of is None else [key == value]))
        statement = statement.with_hint(key.table, "FORCE INDEX (PRIMARY)", "mysql")
    return statement.order_by(key.desc())


def by_index(
    connection: Connection,
    statement: Select[*tuple[Any, ...]],
    columns: tuple[Column[Any], Column[Any]],
    values: Sequence[object],
) -> Select[*tuple[Any, ...]]:
    """Read the rows that have one of these values in the first column, by the index of both columns.

    Planners may read the primary key instead, because they assume that such rows come soon, or are many. If they are
    not, that reads the whole table.

    Args:
        connection: in a block of `without_sorting`.
        statement: the rows, with conditions of the second column.
        columns: those of the index.
        values: of the first column, at least one.
    """
    column, second = columns
    if connection.dialect.name == "postgresql":
        # Only this index has the order of both. Of a single value, the order would be that of the second column alone.
        wanted = column.in_([*values, values[0]])
        return statement.where(wanted).order_by(column.desc(), second.desc())
    hint = f"FORCE INDEX (ix_{column.table.name}_{column.name}_{second.name})"
    return statement.where(column.in_(values)).with_hint(column.table, hint, "mysql")


def by_key(connection: Connection, statement: Select[*tuple[Any, ...]], *key: Column[Any]) -> Select[*tuple[Any, ...]]:
    """Read rows by their primary key, up to a limit.

    PostgreSQL may otherwise read the table from its beginning, because it expects to find as many rows as the limit
    soon: if they are at its end, that reads the whole table. Or it collects all rows in a bitmap before the first one.

    Args:
        connection: in a block of `without_sorting`.
        statement: the rows, with conditions of the key.
        key: the first columns of the primary key.
    """
    return statement.order_by(*key) if connection.dialect.name == "postgresql" else statement


@contextmanager
def without_sorting(connection: Connection) -> Iterator[None]:
    """Have PostgreSQL read rows by the index that has their order, rather than by another one and sort them."""
    if connection.dialect.name != "postgresql":
        yield
        return
    connection.exec_driver_sql("SET LOCAL enable_sort = off")
    yield
    connection.exec_driver_sql("SET LOCAL enable_sort = DEFAULT")


def by_sorting(statement: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    """Read all rows of a table in their order, and group them by sorting.

    MySQL and MariaDB otherwise look each row up in the order of an index, or rewrite a row of a temporary table for
    each row that they read.
    """
    return statement.prefix_with("SQL_BIG_RESULT", dialect="mysql")


def checked(
    connection: Connection, statement: Select[*tuple[Any, ...]], conditions: Sequence[ColumnElement[bool]]
) -> Select[*tuple[Any, ...]]:
    """Check conditions of the selected columns on the rows of a statement with a limit; their order stays.

    PostgreSQL may otherwise find the rows by an index of these conditions, and read many more than the limit.
    """
    if connection.dialect.name != "postgresql":
        return statement.where(*conditions)
    rows = statement.subquery()
    adapter = ClauseAdapter(rows)
    order = (adapter.traverse(column) for column in statement._order_by_clauses)  # noqa: SLF001 - has no public name
    return select(*rows.c).where(*(adapter.traverse(condition) for condition in conditions)).order_by(*order)


def skips_locked(dialect: Dialect) -> bool:
    """Whether the database knows SKIP LOCKED, or needs none; MariaDB does from 10.6 on."""
    return not getattr(dialect, "is_mariadb", False) or (dialect.server_version_info or ()) >= (10, 6)


def _index_of(column: Column[Any]) -> str:
    """The name that MySQL has for the index of a unique column."""
    if column.primary_key:
        return "PRIMARY"
    unique = (constraint for constraint in column.table.constraints if isinstance(constraint, UniqueConstraint))
    (name,) = [str(constraint.name) for constraint in unique if list(constraint.columns) == [column]]
    return name


def upsert_add(table: Table, *, keys: Sequence[str], sums: Sequence[str]) -> Insert:
    """An INSERT, to be executed with a list of rows, that adds `sums` to the row which has the same `keys`.

    The rows of one execution must differ in their keys, and must come in the order of their keys where several
    transactions add at once, because locks are taken in that order. Other columns keep what they were first given.
    """
    return insert(table).ext(_AddOnConflict(table.name, keys, sums))


def insert_new(table: Table) -> Insert:
    """An INSERT, to be executed with a list of rows, that leaves rows alone which are there already, by primary key."""
    keys = [column.name for column in table.primary_key.columns]
    return insert(table).ext(_AddOnConflict(table.name, keys, ()))


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


class Now(FunctionElement[datetime]):
    """The database's clock at this moment, as a column; null on SQLite, whose clock is the process's."""

    type = Timestamp()
    inherit_cache = True


@compiles(Now)
def _now_sqlite(_: Now, _compiler: SQLCompiler, **__: Any) -> str:
    return "NULL"


@compiles(Now, "postgresql")
def _now_postgresql(_: Now, _compiler: SQLCompiler, **__: Any) -> str:
    return "clock_timestamp()"


@compiles(Now, "mysql")
def _now_mysql(_: Now, _compiler: SQLCompiler, **__: Any) -> str:
    return "UTC_TIMESTAMP(6)"


class HourOf(FunctionElement[datetime]):
    """The hour that a timestamp is in."""

    inherit_cache = True

    def __init__(self, column: Column[datetime]) -> None:
        super().__init__(column)
        self.type = column.type


class DayOf(HourOf):
    """The day that a timestamp is in, in UTC."""

    inherit_cache = True


def send(
    connection: Connection, text: str, values: Sequence[Any], *, many: bool = False, unanswered: bool = False
) -> Any:
    """Run a statement, in the driver's words, on the driver's cursor, and return that.

    Compared with `exec_driver_sql` this saves what surrounds each statement, and raises the same errors.

    Args:
        connection: in a transaction.
        text: the statement.
        values: its parameters; with `many`, those of each row.
        many: run it once for each row.
        unanswered: nobody reads the answer. Then a driver that can sends it with the next statement or the commit,
            which raises its error.
    """
    cursor: Any = None
    try:
        cursor = connection.connection.cursor()
        if unanswered and hasattr(cursor, "defer"):
            cursor.defer(text, values if many else [values])
        else:
            (cursor.executemany if many else cursor.execute)(text, values)
    except BaseException as error:  # noqa: BLE001 - it is raised again
        # There is no public way to translate an error, and to give up connections after it, as SQLAlchemy does.
        connection._handle_dbapi_exception(error, text, values, cursor, None)  # noqa: SLF001 - it is named above
    return cursor


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
    addition = _Addition(
        table=counter.table.name,
        key=key.name,
        counter=counter.name,
        columns=tuple(column.name for column in also or {}),
        values=tuple(_bound(connection, column, value) for column, value in (also or {}).items()),
        amounts=amounts,
    )
    statement, parameters = _ADDITIONS.get(connection.dialect.name, _by_cases)(addition)
    send(connection, statement, parameters, many=isinstance(parameters, list), unanswered=True)


@frozen
class _Addition:
    """What `add_to_counter` is to do, in the names and values that the driver takes."""

    table: str
    key: str
    counter: str
    columns: tuple[str, ...]
    values: tuple[object, ...]
    amounts: Mapping[str, int]


def _bound(connection: Connection, column: Column[Any], value: object) -> object:
    processor = column.type.bind_processor(connection.dialect)
    return value if processor is None else processor(value)


def _one_by_one(add: _Addition) -> tuple[str, Any]:
    """SQLite: there is no round trip to save, and the driver's loop over the rows is C."""
    further = "".join(f", {column} = ?" for column in add.columns)
    statement = (
        f"UPDATE {add.table} SET {add.counter} = {add.counter} + ?{further} "  # noqa: S608 - our own names
        f"WHERE {add.key} = ?"
    )
    return statement, [(amount, *add.values, key) for key, amount in add.amounts.items()]


def _by_arrays(add: _Addition) -> tuple[str, Any]:
    """PostgreSQL: two arrays, so that the statement stays the same whatever the number of rows."""
    further = "".join(f", {column} = ${number}" for number, column in enumerate(add.columns, start=3))
    statement = (
        f"UPDATE {add.table} SET {add.counter} = {add.counter} + added.amount{further} "  # noqa: S608 - our own names
        f"FROM unnest($1::varchar[], $2::bigint[]) AS added (id, amount) "
        f'WHERE {add.table}.{add.key} = added.id COLLATE "C"'
    )
    keys, amounts = ",".join(add.amounts), ",".join(map(str, add.amounts.values()))
    return statement, (f"{{{keys}}}", f"{{{amounts}}}", *add.values)


def _by_cases(add: _Addition) -> tuple[str, Any]:
    """MySQL and MariaDB: as many cases as there are different amounts, which are mostly few.

    Rows are reached by the index: see `for_update`.
    """
    further = "".join(f", {column} = %s" for column in add.columns)
    rows: dict[int, list[str]] = {}
    for key, amount in add.amounts.items():
        rows.setdefault(amount, []).append(key)
    cases = "".join(f" WHEN {add.key} IN ({_places(keys)}) THEN %s" for keys in rows.values())
    added = f"CASE{cases} END" if len(rows) > 1 else "%s"
    parameters = [part for amount, keys in rows.items() for part in (*(keys if len(rows) > 1 else ()), amount)]
    statement = (
        f"UPDATE {add.table} FORCE INDEX (PRIMARY) "  # noqa: S608 - our own names
        f"SET {add.counter} = {add.counter} + {added}{further} WHERE {add.key} IN ({_places(add.amounts)})"
    )
    return statement, (*parameters, *add.values, *add.amounts)


def _places(values: Sized) -> str:
    return ", ".join(["%s"] * len(values))


_ADDITIONS: Mapping[str, Callable[[_Addition], tuple[str, Any]]] = {
    "sqlite": _one_by_one,
    "postgresql": _by_arrays,
}


class _AddOnConflict(SyntaxExtension, ClauseElement):
    """What follows the values of `upsert_add` and `insert_new`."""

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
        insert_stmt.apply_syntax_extension_point(self.append_replacing_same_type, "post_values")


@compiles(_AddOnConflict)
def _on_conflict(clause: _AddOnConflict, _compiler: SQLCompiler, **_: Any) -> str:
    """SQLite and PostgreSQL."""
    if not clause.sums:
        return f"ON CONFLICT ({', '.join(clause.keys)}) DO NOTHING"
    sums = ", ".join(f"{name} = {clause.table_name}.{name} + excluded.{name}" for name in clause.sums)
    return f"ON CONFLICT ({', '.join(clause.keys)}) DO UPDATE SET {sums}"


@compiles(_AddOnConflict, "mysql")
def _on_duplicate_key(clause: _AddOnConflict, compiler: SQLCompiler, **_: Any) -> str:
    if not clause.sums:
        key = clause.keys[0]
        return f"ON DUPLICATE KEY UPDATE {key} = {clause.table_name}.{key}"
    if getattr(compiler.dialect, "is_mariadb", False):
        return "ON DUPLICATE KEY UPDATE " + ", ".join(f"{name} = {name} + VALUES({name})" for name in clause.sums)
    sums = ", ".join(f"{name} = {clause.table_name}.{name} + added.{name}" for name in clause.sums)
    return f"AS added ON DUPLICATE KEY UPDATE {sums}"


#: How to write the start of the hour and of the day that a timestamp is in.
_STARTS: Mapping[str, tuple[str, str]] = {
    "sqlite": ("substr({0}, 1, 13) || ':00:00.000000'", "substr({0}, 1, 10) || ' 00:00:00.000000'"),
    "postgresql": ("date_trunc('hour', {0}, 'UTC')", "date_trunc('day', {0}, 'UTC')"),
    "mysql": ("TIMESTAMP(DATE({0}), MAKETIME(HOUR({0}), 0, 0))", "TIMESTAMP(DATE({0}))"),
}


@compiles(HourOf)
def _start(element: HourOf, compiler: SQLCompiler, **options: Any) -> str:
    hour, day = _STARTS[compiler.dialect.name]
    return (day if isinstance(element, DayOf) else hour).format(compiler.process(element.clauses, **options))
