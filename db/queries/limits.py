"""Limits, and what they have counted.

A counter has one row per limit and window. Its id is the limit's id, a space and the start of the window, so that
transactions lock counters in one order, and the ledger's rows can name them. A request holds an amount of each of its
counters from its admission to its settlement; which, is in its row.

Lock order: tokens, counters by id, hourly sums.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from attrs import define, evolve, field
from sqlalchemy import BindParameter, Connection, bindparam, delete, insert, select, update

from db.dialects.bulk import BulkInsert, LockByKeys, SelectByKeys
from db.dialects.statements import Now, for_update, insert_new, upsert_add
from db.queries.rows import Position, Rows, columns, names
from db.records import Limit, LimitCounter, SettledRequest
from db.schema import limit_counters, limits, tokens

#: The starts of windows in the ids of counters.
_START: Final = "%Y-%m-%dT%H:%M"
_ID_LENGTH: Final = 36

_keys: BindParameter[Any] = bindparam("keys", expanding=True)
_of_subjects = SelectByKeys(
    select(*columns(limits, Limit), Now()).where(limits.c.subject.in_(_keys)).order_by(limits.c.id),
    limits.c.subject.type,
    lambda *row: (Limit(*row[:-1]), row[-1]),
)
_by_id = SelectByKeys(select(*columns(limits, Limit)).where(limits.c.id.in_(_keys)), limits.c.id.type, Limit)
_counter = select(*columns(limit_counters, LimitCounter)).where(limit_counters.c.id.in_(_keys))
_read = SelectByKeys(_counter, limit_counters.c.id.type, LimitCounter)
_ordered = _counter.order_by(limit_counters.c.id)
_lock = SelectByKeys(for_update(_ordered, by=limit_counters.c.id), limit_counters.c.id.type, LimitCounter)
_lock_free = LockByKeys(
    for_update(_ordered, by=limit_counters.c.id, skip_locked=True), limit_counters.c.id.type, LimitCounter
)
_insert_new = BulkInsert(insert_new(limit_counters), names(LimitCounter))
_MOVED: Final = ("used", "reserved", "unknown", "unpriced")
_add = BulkInsert(upsert_add(limit_counters, keys=("id",), sums=_MOVED), names(LimitCounter))


def counter_id(limit_id: str, started_at: datetime | None) -> str:
    """The id of a limit's counter for the window that starts then; None if there is one window."""
    return f"{limit_id} " if started_at is None else f"{limit_id} {started_at.strftime(_START)}"


def limit_of(key: str) -> str:
    """The id of a counter's limit."""
    return key[:_ID_LENGTH]


def new_counter(key: str) -> LimitCounter:
    """The counter of this id, empty."""
    start = key[_ID_LENGTH + 1 :]
    started_at = datetime.strptime(start, _START).replace(tzinfo=UTC) if start else None
    return LimitCounter(key, limit_of(key), started_at)


@define
class Movement:
    """What a transaction adds to a counter."""

    used: int = 0
    reserved: int = 0
    unknown: int = 0
    unpriced: int = 0


@define
class Movements:
    """What a transaction adds to counters, by their id."""

    limits: Mapping[str, Limit]
    by_counter: dict[str, Movement] = field(factory=dict)

    def of(self, key: str) -> Movement:
        found = self.by_counter.get(key)
        if found is None:
            found = self.by_counter[key] = Movement()
        return found

    def settle(self, row: SettledRequest) -> None:
        """Turn what an open request holds into what it used."""
        for key, held in (row.reservation.limits or {}).items():
            limit = self.limits.get(limit_of(key))
            if limit is not None:
                if limit.reserves and row.result.kind == "request":
                    self.of(key).reserved -= held
                self._charge(limit, key, row, 1)

    def replace(self, row: SettledRequest, replaced: SettledRequest) -> None:
        """Charge the row in place of one that was written before."""
        for sign, one in ((-1, replaced), (1, row)):
            for key in one.reservation.limits or {}:
                limit = self.limits.get(limit_of(key))
                if limit is not None:
                    self._charge(limit, key, one, sign)

    def _charge(self, limit: Limit, key: str, row: SettledRequest, sign: int) -> None:
        amount = charge(limit, key, row)
        moved = self.of(key)
        moved.used += sign * amount
        if row.result.outcome == "unknown":
            moved.unknown += sign * amount
        if limit.metric == "cost" and row.result.unpriced:
            moved.unpriced += sign

    def write(self, connection: Connection) -> None:
        """Add everything, in one statement, in the order of the counters' ids."""
        moved = [(key, one) for key, one in sorted(self.by_counter.items()) if one != _NOTHING]
        _add(
            connection,
            [
                evolve(
                    new_counter(key), used=one.used, reserved=one.reserved, unknown=one.unknown, unpriced=one.unpriced
                )
                for key, one in moved
            ],
        )


_NOTHING: Final = Movement()


def charge(limit: Limit, key: str, row: SettledRequest) -> int:
    """What a settled request, or late usage, has used of a limit.

    Of a request whose worker died nobody knows what it used: it is charged what it held.
    """
    result = row.result
    if result.outcome == "void" or limit.metric == "concurrency":
        return 0
    if limit.metric == "requests":
        return 1 if result.kind == "request" else 0
    if result.outcome == "unknown":
        return (row.reservation.limits or {})[key]
    match limit.metric:
        case "cost":
            return result.cost_nanousd or 0
        case "input_tokens":
            return result.input_tokens or 0
        case "output_tokens":
            return result.output_tokens or 0
        case _:
            return (result.input_tokens or 0) + (result.output_tokens or 0)


def of_subjects(connection: Connection, subjects: Iterable[str]) -> tuple[list[Limit], datetime]:
    """The limits of these tokens and projects (an empty one is the whole proxy), and the database's clock."""
    rows = _of_subjects(connection, sorted(set(subjects)))
    now = rows[0][1] if rows else None
    return [limit for limit, _ in rows], now or datetime.now(UTC)


def settle(connection: Connection, rows: Sequence[SettledRequest]) -> None:
    """Turn what these requests held into what they used."""
    wanted = {limit_of(key) for row in rows for key in row.reservation.limits or ()}
    if wanted:
        moved = Movements({limit.id: limit for limit in _by_id(connection, sorted(wanted))})
        for row in rows:
            moved.settle(row)
        moved.write(connection)


def lock_counters(
    connection: Connection, keys: Collection[str], *, skip_locked: bool = False
) -> dict[str, LimitCounter]:
    """Lock counters, in the order of their ids; those that do not exist are made.

    With `skip_locked`, those that another transaction holds are left out.
    """
    wanted = sorted(keys)
    lock = _lock_free if skip_locked else _lock
    found = {counter.id: counter for counter in lock(connection, wanted)}
    missing = [key for key in wanted if key not in found]
    if missing and skip_locked:
        held = {counter.id for counter in _read(connection, missing)}
        missing = [key for key in missing if key not in held]
    if missing:
        _insert_new(connection, [new_counter(key) for key in missing])
        found.update({counter.id: counter for counter in lock(connection, missing)})
    return found


_rows = Rows(limits, Limit, limits.c.id)
create, get, get_locked = _rows.create, _rows.get, _rows.get_locked
