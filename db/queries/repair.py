"""Repairs a ledger that does not add up: it adds no rows and never lowers a sum.

A sum that is lower than its rows, including pruned ones, is raised to them; a higher one is kept. The counter becomes
the sum of the hourly sums and the open reservations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, func, select, update

from db.dialects.statements import for_update
from db.queries.ledger import hour_of, roll_up, series_of
from db.queries.rows import columns
from db.records import SettledRequest
from db.schema import SUMS, in_flight, requests, tokens, usage_hourly

_HOUR = timedelta(hours=1)

#: Sums that cannot be computed for pruned requests.
_LOST = tuple(name for name in SUMS if name != "requests")

_SUMS = [usage_hourly.c[name] for name in (*SUMS, "pruned")]

#: Hour and series: the key of a token's row of the hourly sums.
_Bucket = tuple[datetime, str]


def repair(connection: Connection, token_id: str) -> None:
    """Make a token's hourly sums and counter agree with its requests. No request is admitted by it meanwhile."""
    connection.execute(for_update(select(tokens.c.id).where(tokens.c.id == token_id)))
    summed = _summed(connection, token_id)
    for bucket, count in sorted(_settled(connection, token_id).items()):
        known = summed.get(bucket)
        if known is None or count + known["pruned"] > known["requests"]:
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


def _settled(connection: Connection, token_id: str) -> Counter[_Bucket]:
    """The requests that count (void ones and late usage do not), by hour and series."""
    columns = requests.c.provider, requests.c.model, requests.c.requested_model, requests.c.summed_labels
    rows = connection.execute(
        select(requests.c.admitted_at, *columns).where(
            requests.c.token_id == token_id, requests.c.outcome != "void", requests.c.kind == "request"
        ),
        execution_options={"yield_per": 1000},
    )
    return Counter((hour_of(admitted_at), series_of(*values)) for admitted_at, *values in rows)


def _sum_up(connection: Connection, token_id: str, bucket: _Bucket, before: dict[str, int] | None) -> None:
    """Rewrite a row of the hourly sums from its requests.

    Of pruned requests only the number is known, so an old sum is kept if it is higher.
    """
    hour, series = bucket
    this = (usage_hourly.c.hour == hour, usage_hourly.c.token_id == token_id, usage_hourly.c.model == series)
    connection.execute(delete(usage_hourly).where(*this))
    rows = connection.execute(
        select(*columns(requests, SettledRequest)).where(
            requests.c.token_id == token_id,
            requests.c.admitted_at >= hour,
            requests.c.admitted_at < hour + _HOUR,
        )
    )
    settled = [SettledRequest.of(row) for row in rows.mappings()]
    roll_up(connection, [row for row in settled if _series(row) == series])
    if before is None or not before["pruned"]:
        return
    now = _by_name(connection.execute(select(*_SUMS).where(*this)).one())
    kept = {name: max(before[name], now[name]) for name in _LOST}
    total = now["requests"] + before["pruned"]
    connection.execute(update(usage_hourly).where(*this).values(requests=total, pruned=before["pruned"], **kept))


def _series(row: SettledRequest) -> str:
    result = row.result
    return series_of(row.reservation.provider, result.model, result.requested_model, result.summed_labels)
