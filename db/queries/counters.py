"""The counters of limits as part of the ledger: their proof from the rows, their repair, and which are deleted.

A counter is `used` = opening amount + charges of the rows that name it, and `reserved` = what open requests hold of it.
A proof runs in one transaction that only reads, and so sees one state of the database: it is true also while servers
are writing. Counters and rows are read in pieces, so that memory does not grow with them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from attrs import field, frozen
from sqlalchemy import ColumnElement, Connection, Select, delete, func, or_, select, update

from db.dialects.statements import clock, for_update
from db.queries.limits import COUNTED, Movement, Movements, counter_id, limit_of, lock_counters, new_counter
from db.queries.rows import columns, first_id
from db.records import Limit, LimitCounter, Period, Reservation, SettledRequest
from db.schema import in_flight, limit_counters, limits, requests, usage_hourly

#: How long a counter is kept after the end of its window.
KEPT: Final = timedelta(days=2)
#: Counters that are proven in one pass over the rows, and rows of one statement.
COUNTERS: Final = 50_000
ROWS: Final = 1000
#: Rows of requests that were admitted up to so long before a limit was made may name it: they were admitted without the
#: database, and written later.
BEFORE: Final = timedelta(days=1)
#: Counters that are repaired in one transaction.
REPAIRED: Final = 200

#: The start of the window of this period in which a time lies; None if the period has no windows.
WindowOf = Callable[[Period, datetime], datetime | None]


@frozen
class WrongCounter:
    """A figure of a counter that is not what the rows say. If rows are missing, it is too low."""

    limit_id: str
    window: datetime | None
    figure: str
    expected: int
    found: int

    @property
    def key(self) -> str:
        """The id of the counter."""
        return counter_id(self.limit_id, self.window)


@frozen
class UnprovenWindow:
    """A window of a limit some of whose rows, or whose counter, may have been deleted by now."""

    limit_id: str
    window: datetime | None


@frozen
class CounterProof:
    """The counters that do not add up, and those of which only that they are not too low is known."""

    wrong: list[WrongCounter] = field(factory=list)
    unproven: list[UnprovenWindow] = field(factory=list)


@frozen
class _Rules:
    """What is needed to judge a counter."""

    limits: Mapping[str, Limit]
    #: The start of the oldest window of each period whose counter is kept.
    oldest: Mapping[str, datetime | None]
    #: No row from then on was pruned.
    pruned_until: datetime | None

    @classmethod
    def read(cls, connection: Connection, window_of: WindowOf) -> _Rules:
        found = {row[0]: Limit(*row) for row in connection.execute(select(*columns(limits, Limit)))}
        hour = connection.scalar(
            select(func.max(usage_hourly.c.hour)).where(or_(usage_hourly.c.pruned > 0, usage_hourly.c.pruned_late > 0))
        )
        pruned_until = None if hour is None else hour + timedelta(hours=1)
        return cls(found, _oldest(connection, window_of, {limit.period for limit in found.values()}), pruned_until)

    def is_old(self, counter: LimitCounter) -> bool:
        """Whether it may be deleted at any time, and made again by a late settlement."""
        oldest = self.oldest[self.limits[counter.limit_id].period]
        return oldest is not None and counter.started_at is not None and counter.started_at < oldest

    def is_whole(self, counter: LimitCounter) -> bool:
        """Whether no row that names it was pruned."""
        if self.pruned_until is None:
            return True
        began = self.limits[counter.limit_id].created_at - BEFORE
        if counter.started_at is not None:
            began = max(began, counter.started_at)
        return began >= self.pruned_until


def _oldest(connection: Connection, window_of: WindowOf, periods: Collection[Period]) -> dict[str, datetime | None]:
    before = clock(connection) - KEPT
    return {period: window_of(period, before) for period in periods}


def prove(connection: Connection, window_of: WindowOf) -> CounterProof:
    """Compare every counter with the rows that name it."""
    rules = _Rules.read(connection, window_of)
    proof = CounterProof()
    if not rules.limits:
        return proof
    ordered = select(*columns(limit_counters, LimitCounter)).order_by(limit_counters.c.id).limit(COUNTERS)
    last = ""
    while True:
        found = {row[0]: LimitCounter(*row) for row in connection.execute(ordered.where(limit_counters.c.id > last))}
        start, last = last, max(found, default="") if len(found) == COUNTERS else ""
        expected = _expected(connection, rules.limits, _between(start, last))
        for key in sorted({*found, *expected}):
            counter = found.get(key) or new_counter(key)
            if counter.limit_id in rules.limits:
                _compare(rules, counter, expected.get(key) or Movement(), proof, exists=key in found)
        if not last:
            return proof


def _between(start: str, last: str) -> Callable[[str], bool]:
    return lambda key: start < key and (not last or key <= last)


def _compare(rules: _Rules, counter: LimitCounter, rows: Movement, proof: CounterProof, *, exists: bool) -> None:
    old, whole = rules.is_old(counter), rules.is_whole(counter)
    if exists and (old or not whole):
        proof.unproven.append(UnprovenWindow(counter.limit_id, counter.started_at))
    for name in COUNTED:
        expected, found = getattr(rows, name), getattr(counter, name)
        if name == "used":
            expected += counter.opening
        if name != "reserved":
            if old:
                continue
            if not whole:
                expected = max(expected, found)
        if expected != found:
            proof.wrong.append(WrongCounter(counter.limit_id, counter.started_at, name, expected, found))


def _expected(connection: Connection, known: Mapping[str, Limit], wanted: Callable[[str], bool]) -> dict[str, Movement]:
    """What the rows say of the wanted counters."""
    movements = Movements(known)
    since = first_id(min(limit.created_at for limit in known.values()) - BEFORE)
    settled = select(*columns(requests, SettledRequest)).where(requests.c.id > since, requests.c.limits.is_not(None))
    for found in _pieces(connection, settled, requests.c.id):
        row = SettledRequest.of(found._mapping)  # noqa: SLF001 (SQLAlchemy's public name)
        for key in row.reservation.limits or {}:
            if (limit := known.get(limit_of(key))) is not None and wanted(key):
                movements.add(limit, key, row, 1)
    open_ = select(*columns(in_flight, Reservation)).where(in_flight.c.limits.is_not(None))
    for found in _pieces(connection, open_, in_flight.c.id):
        for key, held in (found.limits or {}).items():
            if (limit := known.get(limit_of(key))) is not None and limit.reserves and wanted(key):
                movements.of(key).reserved += held
    return movements.by_counter


def _pieces(connection: Connection, query: Select[Any], key: ColumnElement[str]) -> Iterator[Any]:
    last = ""
    while rows := connection.execute(query.where(key > last).order_by(key).limit(ROWS)).all():
        yield from rows
        last = rows[-1].id


def repair(connection: Connection, window_of: WindowOf, keys: Sequence[str]) -> None:
    """Set these counters to what the rows say. No request that they count is admitted or settled meanwhile.

    Where rows were pruned, what is used is raised to them and never lowered.
    """
    # First the locks: what is read from now on has all that was committed to these counters.
    counters = lock_counters(connection, keys)
    rules = _Rules.read(connection, window_of)
    known = {key: limit for key in keys if (limit := rules.limits.get(limit_of(key))) is not None}
    if not known:
        return
    expected = _expected(connection, {limit.id: limit for limit in known.values()}, known.__contains__)
    for key in sorted(known):
        proof = CounterProof()
        _compare(rules, counters[key], expected.get(key) or Movement(), proof, exists=True)
        if proof.wrong:
            values = {one.figure: one.expected for one in proof.wrong}
            connection.execute(update(limit_counters).where(limit_counters.c.id == key).values(**values))


def prune(connection: Connection, window_of: WindowOf, limit: int) -> int:
    """Delete counters of windows that ended long ago, of which nothing is reserved, and of limits that do not exist.

    Returns:
        How many were deleted, at most `limit`.
    """
    counter = limit_counters.c
    periods = set(connection.scalars(select(limits.c.period).distinct()))
    ended = [
        (limits.c.period == period) & (counter.started_at < start)
        for period, start in _oldest(connection, window_of, periods).items()
        if start is not None
    ]
    old = counter.started_at.is_not(None) & (counter.reserved == 0) & or_(*ended) if ended else None
    gone = limits.c.id.is_(None)
    query = (
        select(counter.id)
        .outerjoin_from(limit_counters, limits, limits.c.id == counter.limit_id)
        .where(gone if old is None else or_(gone, old))
        .limit(limit)
    )
    ids = sorted(connection.scalars(query))
    if not ids:
        return 0
    locked = select(counter.id, counter.limit_id, counter.reserved).where(counter.id.in_(ids)).order_by(counter.id)
    free = list(connection.execute(for_update(locked, by=counter.id, skip_locked=True)))
    there = set(connection.scalars(select(limits.c.id).where(limits.c.id.in_({row.limit_id for row in free}))))
    # A late settlement may have reserved something of it since, and a limit that was not committed yet may be now.
    chosen = [row.id for row in free if row.limit_id not in there or not row.reserved]
    connection.execute(delete(limit_counters).where(counter.id.in_(chosen)))
    return len(chosen)
