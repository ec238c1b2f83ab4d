"""Daily sums, which long reports read: made of the hourly sums when nothing changes them any more.

A day is marked first, and summed up a while later. From the mark on, a transaction that changes hourly sums of the day
deletes the mark (`ledger.roll_up`); then the day is marked and summed up again. The while is longer than a transaction:
one that did not see the mark has ended before the hourly sums are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, case, delete, func, insert, literal, select, update

from db.dialects.bulk import BulkInsert
from db.dialects.statements import clock, insert_new
from db.schema import SERIES, SUMS, projects, usage_daily, usage_days, usage_hourly
from db.types import Timestamp

#: What begins the scope of the sums by one label.
LABEL = "label."

_DAY = timedelta(days=1)
#: After the end of a day and before its mark: an hour more than changes without notice are possible, for clocks.
_SETTLED = timedelta(hours=2)
#: After the mark, before the sums are read: longer than any transaction.
_WAIT = timedelta(minutes=1)
#: Days that are marked in one transaction.
_MARKS = 400

_mark = BulkInsert(insert_new(usage_days), ["day", "marked_at", "written"])
_write = BulkInsert(insert(usage_daily), ["scope", "day", "series", *SERIES, *SUMS])


class DayChanged(Exception):
    """Somebody has changed hourly sums of the day, and it is not marked any more."""


def summed(table: Table) -> list[ColumnElement[int]]:
    """What is added up, named like the sums. Hourly rows without a provider are of the release before: unpriced."""
    columns: dict[str, ColumnElement[int]] = {name: table.c[name] for name in SUMS}
    columns["unpriced"] = case((table.c.provider.is_(None), table.c.requests), else_=table.c.unpriced)
    return [columns[name].label(name) for name in SUMS]


def sums_of(table: Table) -> list[ColumnElement[int]]:
    """All sums, added up."""
    return [func.sum(column) for column in summed(table)]


def answered_model(table: Table) -> ColumnElement[Any]:
    """The answered model, which is the key of hourly rows of the release before."""
    return func.coalesce(table.c.answered_model, table.c.model) if table is usage_hourly else table.c.answered_model


def mark(connection: Connection) -> int:
    """Mark days that have ended and are not marked, the newest first; say how many."""
    now = clock(connection)
    first = connection.execute(select(func.min(usage_hourly.c.hour))).scalar_one()
    if first is None:
        return 0
    marked = set(connection.scalars(select(usage_days.c.day)))
    missing: list[datetime] = []
    day = (now - _SETTLED).replace(hour=0, minute=0, second=0, microsecond=0) - _DAY
    while day > first - _DAY and len(missing) < _MARKS:
        if day not in marked:
            missing.append(day)
        day -= _DAY
    _mark(connection, [{"day": day, "marked_at": now, "written": False} for day in sorted(missing)])
    return len(missing)


def waiting(connection: Connection) -> list[tuple[datetime, datetime]]:
    """Days that can be summed up, the newest first, each with the time of its mark."""
    days = usage_days.c
    due = days.written.is_(False) & (days.marked_at <= clock(connection) - _WAIT)
    return [
        (row.day, row.marked_at) for row in connection.execute(select(usage_days).where(due).order_by(days.day.desc()))
    ]


def project_ids(connection: Connection, after: str, limit: int) -> list[str]:
    """Ids of projects behind one, in their order."""
    query = select(projects.c.id).where(projects.c.id > after).order_by(projects.c.id)
    return list(connection.scalars(query.limit(limit)))


def sum_up(connection: Connection, day: datetime, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Write the sums of these projects; return them without the projects, for the sums of the whole proxy."""
    hourly, daily = usage_hourly.c, usage_daily.c
    connection.execute(delete(usage_daily).where(daily.scope.in_(ids), daily.day == day))
    model = answered_model(usage_hourly)
    made = (
        select(
            *(hourly.project_id, literal(day, Timestamp()), hourly.model),
            *(func.min(hourly.provider), func.min(model), func.min(hourly.requested_model), func.min(hourly.labels)),
            *sums_of(usage_hourly),
        )
        .where(hourly.project_id.in_(ids), hourly.hour >= day, hourly.hour < day + _DAY)
        .group_by(hourly.project_id, hourly.model)
    )
    connection.execute(insert(usage_daily).from_select(["scope", "day", "series", *SERIES, *SUMS], made))
    keys = [daily[name] for name in SERIES]
    total = (
        select(*keys, func.min(daily.series), *(func.sum(daily[name]) for name in SUMS))
        .where(daily.scope.in_(ids), daily.day == day)
        .group_by(*keys)
    )
    names = (*SERIES, "series", *SUMS)
    return [
        {name: int(value) if name in SUMS else value for name, value in zip(names, row, strict=True)}
        for row in connection.execute(total)
    ]


def merge(totals: dict[tuple[Any, ...], dict[str, Any]], rows: Iterable[dict[str, Any]]) -> None:
    """Add rows of `sum_up` to the sums of the whole proxy: without labels, and for each label by itself."""
    for row in rows:
        labels = row["labels"] or {}
        for scope, label in (("", None), *((LABEL + key, {key: value}) for key, value in labels.items())):
            one = {**row, "scope": scope, "labels": label}
            total = totals.setdefault(key_of(one), one)
            if total is one:
                continue
            total["series"] = min(total["series"], row["series"])
            for name in SUMS:
                total[name] += row[name]


def key_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The key of a row of a day in the sums of the whole proxy."""
    label = row["labels"]
    return row["scope"], *(row[name] for name in SERIES[:-1]), None if label is None else repr(label)


def finish(connection: Connection, day: datetime, marked_at: datetime, totals: Iterable[dict[str, Any]]) -> None:
    """Write the sums of the whole proxy, after those of all projects. From then on, reports read them.

    Raises:
        DayChanged: the mark is not there any more.
    """
    rows = list(totals)
    scopes = sorted({"", *(row["scope"] for row in rows)})
    daily, days = usage_daily.c, usage_days.c
    connection.execute(delete(usage_daily).where(daily.scope.in_(scopes), daily.day == day))
    _write(connection, [{**row, "day": day} for row in sorted(rows, key=lambda row: (row["scope"], row["series"]))])
    mine = (days.day == day, days.marked_at == marked_at)
    if not connection.execute(update(usage_days).where(*mine).values(written=True)).rowcount:
        raise DayChanged


def written(connection: Connection, since: datetime, until: datetime) -> set[datetime]:
    """Days between two times whose sums are written."""
    days = usage_days.c
    query = select(days.day).where(days.day >= since, days.day <= until - _DAY, days.written.is_(True))
    return set(connection.scalars(query))
