"""Statements for many rows, at a price per row of little more than the driver's own.

SQLAlchemy walks through every parameter of every row each time that it executes; on the ledger's path that is most of
the work of a transaction. Here a statement is compiled once per database. From then on a record becomes a tuple that
goes to the driver unchanged, except for values that need conversion, and a row becomes a record the same way. It raises
SQLAlchemy's errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter, itemgetter
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from attrs import evolve, frozen
from sqlalchemy import Boolean, Column, Connection, Delete, Dialect, Insert, Select, bindparam, delete
from sqlalchemy.exc import OperationalError
from sqlalchemy.types import TypeEngine

from db.dialects.statements import send, skips_locked

T = TypeVar("T")

#: What MariaDB says of a lock that was not to be waited for.
_LOCKED = 1205

#: Values to convert, by position.
_Conversions = tuple[tuple[int, Callable[[Any], Any]], ...]

_PLACES: Mapping[str, Callable[[int], str]] = {
    "qmark": lambda count: ", ".join(["?"] * count),
    "format": lambda count: ", ".join(["%s"] * count),
    "numeric_dollar": lambda count: "$" + ", $".join(map(str, range(1, count + 1))),
}


def tuple_of(get: type[itemgetter[Any] | attrgetter[Any]], names: Sequence[Any]) -> Callable[[Any], tuple[Any, ...]]:
    """What takes these items or attributes of a row as a tuple. The operators make none of a single one."""
    take: Callable[[Any], Any] = get(*names)
    return (lambda row: (take(row),)) if len(names) == 1 else take


@frozen
class _Text:
    """SQL for the driver, split where the keys go, and what to do with values that go in and come out.

    `places` makes the placeholders for a number of keys.
    """

    head: str
    places: Callable[[int], str]
    tail: str
    bound: _Conversions
    read: _Conversions


class BulkInsert:
    """An INSERT, `upsert_add` included, of tuples, or of attributes or members that are named like the columns."""

    def __init__(self, statement: Insert, columns: Sequence[str] | Mapping[str, int]) -> None:
        """Take the statement and the columns to fill; a mapping gives the position of each in a tuple."""
        self._statement = statement
        self._columns = list(columns)
        self._positions = columns if isinstance(columns, Mapping) else {}
        self._compiled: WeakKeyDictionary[Dialect, tuple[str, Sequence[Any], _Conversions]] = WeakKeyDictionary()

    def __call__(self, connection: Connection, rows: Sequence[Any]) -> None:
        """Insert the rows in their order. Without any, nothing is sent."""
        if not rows:
            return
        dialect = connection.dialect
        text, names, conversions = self._compiled.get(dialect) or self._compile(dialect)
        take = tuple_of(itemgetter if self._positions or isinstance(rows[0], Mapping) else attrgetter, names)
        send(connection, text, [_converted(take(row), conversions) for row in rows], many=True, unanswered=True)

    def _compile(self, dialect: Dialect) -> tuple[str, Sequence[Any], _Conversions]:
        compiled = self._statement.compile(dialect=dialect, column_keys=self._columns)
        names = compiled.positiontup or []
        types = [self._statement.table.c[name].type for name in names]
        keys = [self._positions.get(name, name) for name in names]
        self._compiled[dialect] = found = (str(compiled), keys, _conversions(dialect, types, reading=False))
        return found


class _ByKeys:
    """A statement with one parameter, a list of keys."""

    def __init__(self, statement: Select[*tuple[Any, ...]] | Delete, key: TypeEngine[Any]) -> None:
        self._statement = statement
        self._key = key
        self._compiled: WeakKeyDictionary[Dialect, _Text] = WeakKeyDictionary()

    def _text(self, connection: Connection) -> _Text:
        return self._compiled.get(connection.dialect) or self._compile(connection.dialect)

    def _execute(self, connection: Connection, text: _Text, keys: Sequence[Any]) -> Any:
        values = tuple(keys)
        if text.bound:
            ((_, convert),) = text.bound
            values = tuple(map(convert, keys))
        return send(connection, f"{text.head}{text.places(len(keys))}{text.tail}", values)

    def _compile(self, dialect: Dialect) -> _Text:
        head, _, rest = str(self._statement.compile(dialect=dialect)).partition("__[POSTCOMPILE_")
        read = (
            [column.type for column in self._statement.selected_columns] if isinstance(self._statement, Select) else []
        )
        self._compiled[dialect] = text = _Text(
            head=head,
            places=_PLACES[dialect.paramstyle],
            tail=rest.partition("]")[2],
            bound=_conversions(dialect, [self._key], reading=False),
            read=_conversions(dialect, read, reading=True),
        )
        return text


class SelectByKeys(_ByKeys, Generic[T]):
    """A SELECT whose only parameter is a list of keys: `column.in_(bindparam("keys", expanding=True))`."""

    def __init__(self, statement: Select[*tuple[Any, ...]], key: TypeEngine[Any], make: Callable[..., T]) -> None:
        """Take the statement, the type of the keys, and what makes a record of a row's values."""
        super().__init__(statement, key)
        self._make = make

    def __call__(self, connection: Connection, keys: Sequence[Any]) -> list[T]:
        """The records, in the order of the statement. Without keys, nothing is sent."""
        if not keys:
            return []
        text, make = self._text(connection), self._make
        rows = self._execute(connection, text, keys).fetchall()
        return [make(*_converted(row, text.read)) for row in rows]


class LockByKeys(SelectByKeys[T]):
    """A SELECT … FOR UPDATE SKIP LOCKED by keys: it locks those of the rows that nobody else has locked.

    Where there is no SKIP LOCKED, each row is asked for by itself, without waiting for it.
    """

    def __call__(self, connection: Connection, keys: Sequence[Any]) -> list[T]:
        """The records of the rows that were free."""
        ask = super().__call__
        if skips_locked(connection.dialect):
            return ask(connection, keys)
        free = list(keys)
        while True:
            found: list[T] = []
            locked: list[Any] = []
            for key in free:
                try:
                    found += ask(connection, [key])
                except OperationalError as error:
                    if error.orig is None or error.orig.args[0] != _LOCKED:
                        raise
                    locked.append(key)
            if not locked:
                return found
            # That may have rolled back everything so far (innodb_rollback_on_timeout), so all are locked once more.
            free = [key for key in free if key not in locked]

    def _compile(self, dialect: Dialect) -> _Text:
        text = super()._compile(dialect)
        if not skips_locked(dialect):
            text = self._compiled[dialect] = evolve(text, tail=f"{text.tail} NOWAIT")
        return text


class DeleteByKeys(_ByKeys):
    """A DELETE of rows by their primary key, which reaches no other row.

    MySQL and MariaDB read a small table whole otherwise, and wait for each row that somebody else has locked: for as
    long as others come and go, where each transaction has rows of its own. MySQL takes a hint, from 8.0.20 on. MariaDB
    takes none for a DELETE, and joins the keys with the table, one after the other.
    """

    def __init__(self, key: Column[Any]) -> None:
        """Take the column, the only one of its table's primary key."""
        table = key.table
        hint = f"/*+ INDEX({table.name} PRIMARY) */"
        statement = delete(table).where(key.in_(bindparam("keys", expanding=True))).prefix_with(hint, dialect="mysql")
        super().__init__(statement, key.type)
        self._table = table.name
        self._name = key.name

    def __call__(self, connection: Connection, keys: Sequence[Any]) -> int:
        """Delete, and say how many rows there were. Without keys, nothing is sent."""
        return int(self._execute(connection, self._text(connection), keys).rowcount) if keys else 0

    def _compile(self, dialect: Dialect) -> _Text:
        text = super()._compile(dialect)
        if getattr(dialect, "is_mariadb", False):
            text = evolve(
                text,
                head=f"DELETE {self._table} FROM (SELECT ",
                places=lambda count: f"%s AS wanted{' UNION ALL SELECT %s' * (count - 1)}",
                tail=f") AS given STRAIGHT_JOIN {self._table} ON {self._table}.{self._name} = given.wanted",
            )
            self._compiled[dialect] = text
        return text


def _conversions(dialect: Dialect, types: Sequence[TypeEngine[Any]], *, reading: bool) -> _Conversions:
    found = []
    for position, kind in enumerate(types):
        impl = kind.dialect_impl(dialect)
        if isinstance(impl, Boolean) and not reading:
            # Every driver takes a bool.
            continue
        convert = impl.result_processor(dialect, None) if reading else impl.bind_processor(dialect)
        if convert is not None:
            found.append((position, convert))
    return tuple(found)


def _converted(row: Sequence[Any], conversions: _Conversions) -> Sequence[Any]:
    if not conversions:
        return row
    values = list(row)
    for position, convert in conversions:
        # Every conversion keeps None.
        if (value := values[position]) is not None:
            values[position] = convert(value)
    return values
