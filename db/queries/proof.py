"""The proof that the ledger adds up: request counters, hourly sums and daily sums, in one snapshot.

The transaction must see one state of the database, as each that only reads does. So the proof is true also while
servers are writing.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from attrs import frozen
from sqlalchemy import Connection, and_, delete, exists, func, literal, or_, select, union_all

from db.dialects.statements import DayOf, HourOf, by_sorting
from db.queries import daily, ledger
from db.queries.ledger import Imbalance
from db.records import TOKENS
from db.schema import SERIES, SUMS, requests, tokens, usage_daily, usage_days, usage_hourly

#: The hourly sums that are proven, besides the number of requests.
PROVEN = (*TOKENS, "cost_nanousd")

_DAY = timedelta(days=1)


@frozen
class WrongHour:
    """A sum of an hour and a token that is not that of its rows."""

    token_id: str
    hour: datetime
    sum: str
    expected: int
    found: int


@frozen
class WrongDay:
    """A sum of a day that is not that of the hourly sums. `series` and `scope` are those of the daily row."""

    day: datetime
    scope: str
    series: str
    sum: str
    expected: int
    found: int


@frozen
class Proof:
    """What does not add up.

    Attributes:
        tokens, hours, days: the differences.
        unproven: hours of tokens where rows were pruned: only that the sums are not too low is known.
        pruned: the number of these rows.
    """

    tokens: list[Imbalance]
    hours: list[WrongHour]
    days: list[WrongDay]
    unproven: int
    pruned: int

    @property
    def differences(self) -> list[Imbalance | WrongHour | WrongDay]:
        return [*self.tokens, *self.hours, *self.days]


def prove(connection: Connection) -> Proof:
    """Compare counters with rows and hourly sums, hourly sums with rows, and daily sums with hourly ones."""
    days = [*_project_days(connection), *_other_days(connection)]
    wrong_tokens = [*ledger.verify(connection), *_lost_tokens(connection)]
    return Proof(wrong_tokens, list(_hours(connection)), days, *_pruned(connection))


def _lost_tokens(connection: Connection) -> Iterator[Imbalance]:
    """Tokens that have sums, and are not there themselves: a copy that was cut off. No token is ever deleted."""
    hourly = usage_hourly.c
    lost = ~exists().where(tokens.c.id == hourly.token_id)
    sums = select(hourly.token_id, func.sum(hourly.requests)).where(lost).group_by(hourly.token_id)
    for token_id, count in connection.execute(sums.order_by(hourly.token_id)):
        yield Imbalance(token_id, 0, int(count), int(count), 0)


def _hours(connection: Connection) -> Iterator[WrongHour]:
    hour = HourOf(requests.c.admitted_at)
    nothing = [literal(0) for _ in PROVEN]
    # A void request has no usage. If one of the release before has, it was late usage before `migrate down`.
    counts = or_(requests.c.outcome != "void", requests.c.requested_model.is_(None))
    settled = (
        select(
            *(requests.c.token_id, hour.label("hour"), literal(0).label("pruned")),
            *(func.coalesce(func.sum(requests.c[name]), 0).label(f"rows_{name}") for name in PROVEN),
            *(zero.label(f"sums_{name}") for name, zero in zip(PROVEN, nothing, strict=True)),
        )
        .where(counts)
        .group_by(requests.c.token_id, hour)
    )
    hourly = usage_hourly.c
    summed = select(
        *(hourly.token_id, hourly.hour, (hourly.pruned + hourly.pruned_late).label("pruned")),
        *nothing,
        *(hourly[name] for name in PROVEN),
    )
    both = union_all(by_sorting(settled), summed).subquery("both")
    of_rows = [func.sum(both.c[f"rows_{name}"]) for name in PROVEN]
    of_sums = [func.sum(both.c[f"sums_{name}"]) for name in PROVEN]
    pruned = func.sum(both.c.pruned)
    pairs = list(zip(of_rows, of_sums, strict=True))
    wrong = or_(
        *(rows > sums for rows, sums in pairs),
        and_(pruned == 0, or_(*(rows != sums for rows, sums in pairs))),
    )
    query = select(both.c.token_id, both.c.hour, pruned, *of_rows, *of_sums).group_by(both.c.token_id, both.c.hour)
    found = connection.execute(by_sorting(query).having(wrong).order_by(both.c.token_id, both.c.hour))
    for token_id, at, gone, *numbers in found:
        for name, rows, sums in zip(PROVEN, numbers[: len(PROVEN)], numbers[len(PROVEN) :], strict=True):
            if rows > sums or (not gone and rows != sums):
                yield WrongHour(token_id, at, name, int(rows), int(sums))


def _pruned(connection: Connection) -> tuple[int, int]:
    gone = func.sum(usage_hourly.c.pruned + usage_hourly.c.pruned_late).label("gone")
    keys = (usage_hourly.c.token_id, usage_hourly.c.hour)
    hours = by_sorting(select(gone)).group_by(*keys).having(gone > 0).subquery("hours")
    count, rows = connection.execute(select(func.count(), func.sum(hours.c.gone)).select_from(hours)).one()
    return int(count), int(rows or 0)


def _project_days(connection: Connection) -> Iterator[WrongDay]:
    """Sums of projects."""
    hourly, made, days = usage_hourly.c, usage_daily.c, usage_days.c
    day = DayOf(hourly.hour)
    nothing = [literal(0) for _ in SUMS]
    expected = (
        select(
            *(hourly.project_id.label("scope"), day.label("day"), hourly.model.label("series")),
            *(total.label(f"hours_{name}") for name, total in zip(SUMS, daily.sums_of(usage_hourly), strict=True)),
            *(zero.label(f"days_{name}") for name, zero in zip(SUMS, nothing, strict=True)),
        )
        .join(usage_days, days.day == day)
        .where(days.written)
        .group_by(hourly.project_id, day, hourly.model)
    )
    of_projects = and_(made.scope != "", ~made.scope.startswith(daily.LABEL))
    found = (
        select(made.scope, made.day, made.series, *nothing, *(made[name] for name in SUMS))
        .join(usage_days, days.day == made.day)
        .where(days.written, of_projects)
    )
    both = union_all(by_sorting(expected), found).subquery("both")
    of_hours = [func.sum(both.c[f"hours_{name}"]) for name in SUMS]
    of_days = [func.sum(both.c[f"days_{name}"]) for name in SUMS]
    keys = (both.c.day, both.c.scope, both.c.series)
    wrong = or_(*(one != other for one, other in zip(of_hours, of_days, strict=True)))
    query = select(*keys, *of_hours, *of_days).group_by(*keys).having(wrong).order_by(*keys)
    for at, scope, series, *numbers in connection.execute(by_sorting(query)):
        yield from _differences(at, scope, series, numbers[: len(SUMS)], numbers[len(SUMS) :])


def _other_days(connection: Connection) -> Iterator[WrongDay]:
    """Sums of the whole proxy, and of each label."""
    hourly, made = usage_hourly.c, usage_daily.c
    parts = (hourly.provider, daily.answered_model(usage_hourly), hourly.requested_model, hourly.labels)
    of_labels = made.scope >= daily.LABEL, made.scope < daily.LABEL[:-1] + "/"
    scopes = {"", *connection.scalars(select(made.scope).where(*of_labels).distinct())}
    written = select(usage_days.c.day).where(usage_days.c.written).order_by(usage_days.c.day)
    for day in list(connection.scalars(written)):
        query = select(*parts, func.min(hourly.model), *daily.sums_of(usage_hourly))
        rows = connection.execute(query.where(hourly.hour >= day, hourly.hour < day + _DAY).group_by(*parts))
        names = (*SERIES, "series", *SUMS)
        totals: dict[tuple[Any, ...], dict[str, Any]] = {}
        daily.merge(totals, (dict(zip(names, _integers(row), strict=True)) for row in rows))
        query = select(made.scope, *(made[name] for name in names)).where(made.scope.in_(scopes), made.day == day)
        for scope, *values in connection.execute(query):
            row = {**dict(zip(names, values, strict=True)), "scope": scope}
            expected = totals.pop(daily.key_of(row), dict.fromkeys(SUMS, 0))
            yield from _differences(
                day, scope, row["series"], [expected[name] for name in SUMS], [row[name] for name in SUMS]
            )
        for row in totals.values():
            yield from _differences(day, row["scope"], row["series"], [row[name] for name in SUMS], [0] * len(SUMS))


def _integers(row: Any) -> list[Any]:
    width = len(SERIES) + 1
    return [*row[:width], *map(int, row[width:])]


def _differences(day: datetime, scope: str, series: str, expected: list[Any], found: list[Any]) -> Iterator[WrongDay]:
    for name, one, other in zip(SUMS, expected, found, strict=True):
        if int(one) != int(other):
            yield WrongDay(day, scope, series, name, int(one), int(other))


def sum_up_again(connection: Connection, days: set[datetime]) -> None:
    """Have the daily sums of these days made again by a server."""
    connection.execute(delete(usage_days).where(usage_days.c.day.in_(days)))
