"""Limits, and what they have counted.

A counter has one row per limit and window. Its id is the limit's id, a space and the start of the window, so that
transactions lock counters in one order, and the ledger's rows can name them. A request holds an amount of each of its
counters from its admission to its settlement; which, is in its row.

Lock order: tokens, counters by id, hourly sums.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypedDict

from attrs import asdict, define, evolve, field
from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    bindparam,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)

from db.dialects.bulk import BulkInsert, LockByKeys, SelectByKeys
from db.dialects.statements import Now, for_update, insert_new, upsert_add
from db.queries.rows import Position, Rows, columns, names
from db.records import Limit, LimitCounter, Result, SettledRequest
from db.schema import limit_counters, limits, tokens, usage_hourly

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
#: What a transaction adds to a counter, and what is proven of it; see `Movement`.
COUNTED: Final = ("used", "reserved", "unknown", "unpriced")
_add = BulkInsert(upsert_add(limit_counters, keys=("id",), sums=COUNTED), names(LimitCounter))


def counter_id(limit_id: str, started_at: datetime | None) -> str:
    """The id of a limit's counter for the window that starts then; None if there is one window."""
    return f"{limit_id} " if started_at is None else f"{limit_id} {started_at.strftime(_START)}"


def limit_of(key: str) -> str:
    """The id of a counter's limit."""
    return key[:_ID_LENGTH]


def new_counter(key: str) -> LimitCounter:
    """The counter of this id, empty."""
    start = key[_ID_LENGTH + 1 :]
    # Ten times as fast as `strptime`, in each transaction.
    started_at = datetime.fromisoformat(f"{start}+00:00") if start else None
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
                moved = self.add(limit, key, row, 1)
                if limit.reserves and row.result.kind == "request":
                    moved.reserved -= held

    def replace(self, row: SettledRequest, replaced: SettledRequest) -> None:
        """Charge the row in place of one that was written before."""
        for sign, one in ((-1, replaced), (1, row)):
            for key in one.reservation.limits or {}:
                limit = self.limits.get(limit_of(key))
                if limit is not None:
                    self.add(limit, key, one, sign)

    def add(self, limit: Limit, key: str, row: SettledRequest, sign: int) -> Movement:
        """Charge the row to one counter; with -1, take that back."""
        amount = charge(limit, key, row)
        moved = self.of(key)
        moved.used += sign * amount
        if row.result.outcome == "unknown" and row.result.cost_nanousd is None:
            moved.unknown += sign * amount
        if limit.metric == "cost" and row.result.unpriced:
            moved.unpriced += sign
        return moved

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

    Of a request whose worker died nobody knows what it used: it is charged what it held, until its cost is found out.
    So is one whose answer counts nothing, or that used something without a price: no limit must take that for free.
    """
    result = row.result
    if result.outcome == "void" or limit.metric == "concurrency":
        return 0
    if limit.metric == "requests":
        return int(result.kind == "request")
    is_unknown = result.outcome == "unknown" or result.uncounted
    if limit.metric == "cost":
        is_unknown = result.cost_nanousd is None and (is_unknown or result.unpriced)
    return (row.reservation.limits or {})[key] if is_unknown else _CHARGED[limit.metric](result)


_CHARGED: Final[Mapping[str, Callable[[Result], int]]] = {
    "tokens": lambda result: (result.input_tokens or 0) + (result.output_tokens or 0),
    "input_tokens": lambda result: result.input_tokens or 0,
    "output_tokens": lambda result: result.output_tokens or 0,
    "cost": lambda result: result.cost_nanousd or 0,
}


def of_subjects(connection: Connection, subjects: Iterable[str]) -> tuple[list[Limit], datetime]:
    """The limits of these tokens and projects (an empty one is the whole proxy), and the database's clock."""
    rows = _of_subjects(connection, sorted(set(subjects)))
    now = rows[0][1] if rows else None
    return [limit for limit, _ in rows], now or datetime.now(UTC)


def settle(connection: Connection, rows: Sequence[SettledRequest]) -> None:
    """Turn what these requests held into what they used."""
    moved = _movements(connection, rows)
    for row in rows:
        moved.settle(row)
    moved.write(connection)


def correct(connection: Connection, row: SettledRequest, replaced: SettledRequest) -> None:
    """Charge a settled request in place of what it was before."""
    moved = _movements(connection, [row])
    moved.replace(row, replaced)
    moved.write(connection)


def _movements(connection: Connection, rows: Iterable[SettledRequest]) -> Movements:
    """Movements of the counters that these rows name; no statement if they name none."""
    wanted = {limit_of(key) for row in rows for key in row.reservation.limits or ()}
    return Movements({limit.id: limit for limit in _by_id(connection, sorted(wanted))})


def lock_counters(connection: Connection, keys: Collection[str]) -> dict[str, LimitCounter]:
    """Lock counters, in the order of their ids; those that do not exist are made."""
    wanted = sorted(keys)
    found = {counter.id: counter for counter in _lock(connection, wanted)}
    missing = [key for key in wanted if key not in found]
    if missing:
        make_counters(connection, missing)
        found.update({counter.id: counter for counter in _lock(connection, missing)})
    return found


def lock_free_counters(connection: Connection, keys: Collection[str]) -> tuple[dict[str, LimitCounter], set[str]]:
    """Lock counters without waiting.

    Returns:
        The counters, and the ids of those that do not exist: another transaction may be making them. Those that it
        holds are left out.
    """
    wanted = sorted(keys)
    free = {counter.id: counter for counter in _lock_free(connection, wanted)}
    others = [key for key in wanted if key not in free]
    return free, set(others).difference(counter.id for counter in _read(connection, others))


def make_counters(connection: Connection, keys: Iterable[str]) -> None:
    """Make those of these counters that do not exist."""
    _insert_new(connection, [new_counter(key) for key in sorted(keys)])


class LimitValues(TypedDict, total=False):
    """What an update sets; what is not in it stays as it is."""

    amount: int
    wait_ms: int
    warn_at: int | None
    allow_unpriced: bool


_rows = Rows(limits, Limit, limits.c.id)
get, get_locked = _rows.get, _rows.get_locked
#: The hourly sums of each metric.
_SUMMED: Final[Mapping[str, ColumnElement[int]]] = {
    "requests": usage_hourly.c.requests,
    "tokens": usage_hourly.c.input_tokens + usage_hourly.c.output_tokens,
    "input_tokens": usage_hourly.c.input_tokens,
    "output_tokens": usage_hourly.c.output_tokens,
    "cost": usage_hourly.c.cost_nanousd,
}
_SUBJECTS: Final = {"token": usage_hourly.c.token_id, "project": usage_hourly.c.project_id}


def create(connection: Connection, limit: Limit) -> None:
    """Write a new limit; its token must be locked, so that the next request of it sees the limit."""
    connection.execute(insert(limits), asdict(limit))
    if limit.scope == "token":
        connection.execute(update(tokens).where(tokens.c.id == limit.subject).values(limited=True))


def used_before(connection: Connection, limit: Limit, since: datetime | None) -> dict[str, int]:
    """What its requests have used since then by the hourly sums, by the model that they named, or that answered."""
    conditions = [] if since is None else [usage_hourly.c.hour >= since]
    if limit.scope in _SUBJECTS:
        conditions.append(_SUBJECTS[limit.scope] == limit.subject)
    models = usage_hourly.c.requested_model, func.coalesce(usage_hourly.c.answered_model, usage_hourly.c.model)
    total = func.sum(_SUMMED[limit.metric])
    used: dict[str, int] = {}
    for named, answered, amount in connection.execute(select(*models, total).where(*conditions).group_by(*models)):
        used[named or answered] = used.get(named or answered, 0) + int(amount)
    return used


def open_counter(connection: Connection, key: str, opening: int) -> None:
    """Write the first counter of a new limit."""
    _insert_new(connection, [evolve(new_counter(key), used=opening, opening=opening)])


def page(
    connection: Connection, limit: int, after: Position | None, project_id: str | None, token_id: str | None
) -> list[Limit]:
    """List limits, the newest first; of a project, also those of its tokens."""
    conditions: list[ColumnElement[bool]] = []
    if project_id is not None:
        own = select(tokens.c.id).where(tokens.c.project_id == project_id)
        conditions.append(or_(limits.c.subject == project_id, limits.c.subject.in_(own)))
    if token_id is not None:
        conditions.append(limits.c.subject == token_id)
    return _rows.page(connection, limit, after, *conditions)


def read_counters(connection: Connection, keys: Iterable[str]) -> dict[str, LimitCounter]:
    """Counters by their id, without locks."""
    return {counter.id: counter for counter in _read(connection, sorted(set(keys)))}


def change(connection: Connection, limit: Limit, changes: LimitValues, now: datetime) -> Limit:
    """Change a limit that was read with `get_locked` in this transaction. Its counters stay."""
    values: dict[str, Any] = {**changes, "updated_at": now}
    connection.execute(update(limits).where(limits.c.id == limit.id).values(**values))
    return evolve(limit, **values)


def remove(connection: Connection, limit: Limit) -> None:
    """Delete a limit and its counters. Requests that hold something of it ignore that when they end."""
    connection.execute(delete(limits).where(limits.c.id == limit.id))
    connection.execute(delete(limit_counters).where(limit_counters.c.limit_id == limit.id))
    if limit.scope == "token":
        others = exists().where(limits.c.subject == limit.subject)
        connection.execute(update(tokens).where(tokens.c.id == limit.subject, ~others).values(limited=False))
