"""Repairs a ledger that does not add up: it adds no rows, and never lowers a number of requests.

A number of requests that is lower than its rows, including pruned ones, is raised to them; a higher one is kept. So are
tokens and cost, but if all rows are there, these become what the rows say. The counter becomes the sum of the hourly
sums and the open reservations.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, func, select, update

from db.dialects.statements import for_update
from db.queries.ledger import hour_of, roll_up, series_of
from db.queries.proof import PROVEN
from db.queries.rows import columns
from db.records import SettledRequest
from db.schema import SUMS, in_flight, requests, tokens, usage_hourly

_HOUR = timedelta(hours=1)

#: Sums that cannot be computed for pruned requests.
_LOST = tuple(name for name in SUMS if name != "requests")

_KEPT = ("pruned", "pruned_late")

_SUMS = [usage_hourly.c[name] for name in (*SUMS, *_KEPT)]

#: Hour and series: the key of a token's row of the hourly sums.
_Bucket = tuple[datetime, str]


def repair(connection: Connection, token_id: str) -> None:
    """Make a token's hourly sums and counter agree with its requests. No request is admitted by it meanwhile."""
    connection.execute(for_update(select(tokens.c.id).where(tokens.c.id == token_id)))
    summed, settled = _summed(connection, token_id), _settled(connection, token_id)
    missing: defaultdict[datetime, Counter[str]] = defaultdict(Counter)
    for (hour, _), rows in settled.items():
        missing[hour].update(rows)
    for (hour, _), sums in summed.items():
        missing[hour].subtract({**{name: sums[name] for name in PROVEN}, "requests": sums["requests"] - sums["pruned"]})
    for bucket, rows in sorted(settled.items()):
        known = summed.get(bucket)
        if _is_lost(rows, missing[bucket[0]]) if known is None else _differs(rows, known):
            _sum_up(connection, token_id, bucket, known)
    # One statement, so one snapshot: a settlement moves a request from one of the two to the other.
    rolled_up = select(func.coalesce(func.sum(usage_hourly.c.requests), 0)).where(usage_hourly.c.token_id == token_id)
    flying = select(func.count()).select_from(in_flight).where(in_flight.c.token_id == token_id)
    total = connection.execute(select(rolled_up.scalar_subquery() + flying.scalar_subquery())).scalar_one()
    connection.execute(update(tokens).where(tokens.c.id == token_id).values(request_count=int(total)))


def _summed(connection: Connection, token_id: str) -> dict[_Bucket, dict[str, int]]:
    """The hourly sums. Locks them: what is settled meanwhile is added afterwards."""
    keys = usage_hourly.c.hour, usage_hourly.c.model
    rows = connection.execute(
        for_update(select(*keys, *_SUMS).where(usage_hourly.c.token_id == token_id).order_by(*keys))
    )
    return {(hour, series): _by_name(sums) for hour, series, *sums in rows}


def _by_name(sums: Iterable[Any]) -> dict[str, int]:
    return {column.name: int(value) for column, value in zip(_SUMS, sums, strict=True)}


def _settled(connection: Connection, token_id: str) -> defaultdict[_Bucket, Counter[str]]:
    """The sums of the rows that count (void ones do not; late usage is no request), by hour and series."""
    parts = requests.c.provider, requests.c.model, requests.c.requested_model, requests.c.summed_labels
    rows = connection.execute(
        select(requests.c.admitted_at, requests.c.kind, *parts, *(requests.c[name] for name in PROVEN)).where(
            requests.c.token_id == token_id, requests.c.outcome != "void"
        ),
        execution_options={"yield_per": 1000},
    )
    found: defaultdict[_Bucket, Counter[str]] = defaultdict(Counter)
    for admitted_at, kind, *values in rows:
        sums = found[hour_of(admitted_at), series_of(*values[: len(parts)])]
        sums["requests"] += kind == "request"
        for name, number in zip(PROVEN, values[len(parts) :], strict=True):
            sums[name] += number or 0
    return found


def _is_lost(rows: Mapping[str, int], missing: Mapping[str, int]) -> bool:
    """Whether there were sums of these rows, by what is missing in their hour.

    After `migrate down`, sums have keys that cannot be computed from their rows any more. Then no request is missing.
    """
    if missing["requests"] > 0:
        return True
    return not rows["requests"] and any(missing[name] > 0 for name in PROVEN)


def _differs(rows: Mapping[str, int], sums: Mapping[str, int]) -> bool:
    missing = sums["requests"] - sums["pruned"] - rows["requests"]
    if missing or sums["pruned"] or sums["pruned_late"]:
        return missing < 0 or any(rows[name] > sums[name] for name in PROVEN)
    return any(rows[name] != sums[name] for name in PROVEN)


def _sum_up(connection: Connection, token_id: str, bucket: _Bucket, before: dict[str, int] | None) -> None:
    """Rewrite a row of the hourly sums from its requests.

    Of requests without a row only the number is known, so an old sum is kept if it is higher.
    """
    hour, series = bucket
    this = (usage_hourly.c.hour == hour, usage_hourly.c.token_id == token_id, usage_hourly.c.model == series)
    connection.execute(delete(usage_hourly).where(*this))
    rows = connection.execute(
        select(*columns(requests, SettledRequest)).where(
            requests.c.token_id == token_id,
            requests.c.admitted_at >= hour,
            requests.c.admitted_at < hour + _HOUR,
        ),
        # Servers end a transaction that is idle while many rows are summed up.
        execution_options={"yield_per": 1000},
    )
    settled = map(SettledRequest.of, rows.mappings())
    roll_up(connection, (row for row in settled if _series(row) == series))
    if before is None:
        return
    now = _by_name(connection.execute(select(*_SUMS).where(*this)).one())
    total = max(now["requests"] + before["pruned"], before["requests"])
    if total == now["requests"] and not before["pruned_late"]:
        return
    kept = {name: max(before[name], now[name]) for name in _LOST} | {name: before[name] for name in _KEPT}
    connection.execute(update(usage_hourly).where(*this).values(requests=total, **kept))


def _series(row: SettledRequest) -> str:
    result = row.result
    return series_of(row.reservation.provider, result.model, result.requested_model, result.summed_labels)
