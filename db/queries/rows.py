"""Between rows and records: a record's fields are columns of the same names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from attrs import AttrsInstance, asdict, fields, frozen, has
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Row,
    Select,
    Table,
    and_,
    bindparam,
    delete,
    insert,
    or_,
    select,
)

from db.dialects.statements import checked, for_update, newest_first, without_sorting
from db.records import Reservation, Result, SettledRequest

R = TypeVar("R", bound=AttrsInstance)


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


def names(record: type) -> tuple[str, ...]:
    """Give the names of a record's fields, which are those of its columns."""
    if has(record):
        return tuple(field.name for field in fields(record))
    found: tuple[str, ...] = record.__struct_fields__  # type: ignore[attr-defined] # all other records are structs
    return found


#: The columns of a settled request, and the position of each in `SettledRequest.values`.
SETTLED: Mapping[str, int] = {
    name: position for position, name in enumerate((*names(Reservation), *names(Result), "settled_at"))
}


def columns(table: Table, record: type) -> list[Column[Any]]:
    """Give the columns that a record is made of, in the order of its fields."""
    return [table.c[name] for name in (SETTLED if record is SettledRequest else names(record))]


class Rows(Generic[R]):
    """The rows of a table as records; each has an id, a time of creation, a name, and a secret's last characters."""

    def __init__(self, table: Table, record: type[R], last4: Column[str]) -> None:
        self._table = table
        self._record = record
        self._last4 = last4
        self._all = select(*columns(table, record))
        self._one = self._all.where(table.c.id == bindparam("id"))
        self._one_locked = self._one.with_for_update()
        several = self._all.where(table.c.id.in_(bindparam("ids", expanding=True))).order_by(table.c.id)
        self._several_locked = for_update(several, by=table.c.id)

    def create(self, connection: Connection, record: R) -> None:
        """Write a new row.

        Raises:
            db.errors.Duplicate: there is a row of this name, and names are unique.
            db.errors.BrokenReference: there is no such row as the one that it refers to.
        """
        connection.execute(insert(self._table), asdict(record))

    def get(self, connection: Connection, row_id: str) -> R | None:
        row = connection.execute(self._one, {"id": row_id}).one_or_none()
        return None if row is None else self._record(*row)

    def get_locked(self, connection: Connection, row_id: str) -> R | None:
        """Read one row and keep others from changing or using it until the transaction ends."""
        row = connection.execute(self._one_locked, {"id": row_id}).one_or_none()
        return None if row is None else self._record(*row)

    def lock(self, connection: Connection, ids: Iterable[str]) -> list[R]:
        """Read rows, and keep others from changing them until the transaction ends, in the order of their ids."""
        wanted = sorted(set(ids))
        rows = connection.execute(self._several_locked, {"ids": wanted}) if wanted else ()
        return [self._record(*row) for row in rows]

    def find(self, connection: Connection, name: str) -> list[Named]:
        """The rows of this name, else those with these last four characters."""
        table, conditions = self._table, [self._table.c.name == name]
        if len(name) == _LAST4 and name.isascii():
            conditions.append(self._last4 == name)
        for condition in conditions:
            query = select(table.c.id, table.c.name).where(condition).order_by(table.c.id).limit(MAX_CANDIDATES)
            found = [Named(*row) for row in connection.execute(query)]
            if found:
                return found
        return []

    def page(
        self, connection: Connection, limit: int, after: Position | None, *conditions: ColumnElement[bool]
    ) -> list[R]:
        """List rows, the newest first.

        Args:
            connection: a transaction.
            limit: maximum number of rows.
            after: where the page before ended.
            conditions: of the rows that are wanted.
        """
        column = self._table.c
        query = self._all.where(*conditions).order_by(column.created_at.desc(), column.id.desc()).limit(limit)
        if after is not None:
            # Spelt out, because a comparison of row values keeps SQLite and MySQL from using an index.
            query = query.where(
                or_(
                    column.created_at < after.created_at,
                    and_(column.created_at == after.created_at, column.id < after.id),
                )
            )
        return [self._record(*row) for row in connection.execute(query)]


#: Rows that a page of the newest rows examines at most.
EXAMINED = 20_000
#: An id is made before the time of its row, by so much at most.
_WAIT = timedelta(minutes=10)


@frozen(kw_only=True)
class Newest:
    """Which rows of an append-only table are wanted; `since` is included, `until` is not.

    Attributes:
        time: the column of their time.
        indexed: columns with the values that they must have, each with an index of its own, the most selective first.
        further: conditions that are checked row by row.
        after_id: the id that the page before returned.
    """

    time: Column[datetime]
    indexed: Sequence[tuple[Column[Any], object]]
    further: Sequence[ColumnElement[bool]] = ()
    since: datetime | None
    until: datetime | None
    after_id: str | None


def newest(
    connection: Connection, rows: Select[*tuple[Any, ...]], limit: int, wanted: Newest
) -> tuple[list[Row[Any]], str | None]:
    """Read a page of rows in the order of their ids, the newest first.

    Returns:
        The rows, and the id for the next page; None if there is none. There can be fewer rows than `limit` before the
        end, because few rows fit.
    """
    key, time = wanted.time.table.c.id, wanted.time
    # The first one decides which index is read.
    of = next(iter(wanted.indexed), None)
    further = [*(column == value for column, value in wanted.indexed[1:]), *wanted.further]
    first, after = made_in(wanted.since, wanted.until)
    if wanted.after_id is not None:
        after = wanted.after_id if after is None else min(after, wanted.after_id)
    if wanted.since is not None:
        further.append(time >= wanted.since)
    if wanted.until is not None:
        further.append(time < wanted.until)
    last = None
    with without_sorting(connection):
        if further:
            ids = newest_first(connection, select(key), key, (first, after), of)
            last = connection.execute(ids.offset(EXAMINED - 1).limit(1)).scalar()
        query = newest_first(connection, rows, key, (last or first, after), of)
        if further:
            query = checked(connection, query.limit(EXAMINED), further)
        found = list(connection.execute(query.limit(limit + 1)))
    if len(found) > limit:
        last = found[limit - 1]._mapping["id"]  # noqa: SLF001 (SQLAlchemy's public name)
    return found[:limit], last


def prune(connection: Connection, time: Column[datetime], before: datetime, limit: int) -> int:
    """Delete the oldest rows of an append-only table from before a time, at most `limit`; say how many they were."""
    # Ids begin with the time, so old rows are found without an index of their own.
    key = time.table.c.id
    return delete_first(connection, key, limit, key < first_id(before), time < before)


def delete_first(connection: Connection, key: Column[str], limit: int, *conditions: ColumnElement[bool]) -> int:
    """Delete the first rows by their key that meet conditions, at most `limit`, unless somebody has locked them.

    Returns:
        How many they were.
    """
    found = select(key).where(*conditions).order_by(key).limit(limit)
    ids = list(connection.scalars(for_update(found, by=key, skip_locked=True)))
    if ids:
        connection.execute(delete(key.table).where(key.in_(ids)))
    return len(ids)


def first_id(time: datetime) -> str:
    """The lower bound of all ids of version 7 (RFC 9562) that are made at this time or later."""
    digits = f"{int(time.timestamp() * 1000):012x}"
    return f"{digits[:8]}-{digits[8:]}"


def made_in(since: datetime | None, until: datetime | None) -> tuple[str | None, str | None]:
    """The first id of rows from a time, and the first one that is too new; there are some of other times."""
    return (
        None if since is None else first_id(since - _WAIT),
        None if until is None else first_id(until + _WAIT),
    )
