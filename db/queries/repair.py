"""Repairs a ledger that does not add up: it adds no rows and never lowers a sum.

A sum that is lower than its rows, including pruned ones, is raised to them; a higher one is kept. The counter becomes
the sum of the hourly sums and the open reservations.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta

from attrs import frozen
from sqlalchemy import Connection, delete, func, select, update

from db.dialects.statements import for_update
from db.queries.ledger import hour_of, roll_up
from db.queries.rows import columns
from db.records import SettledRequest
from db.schema import in_flight, requests, tokens, usage_hourly

_HOUR = timedelta(hours=1)

#: Columns that cannot be computed for pruned requests.
_LOST = ("errors", "client_closed", "input_tokens", "output_tokens", "cached_tokens")


@frozen
class _Sum:
    """The sums of one hour."""

    requests: int
    pruned: int
    errors: int
    client_closed: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int


_SUMS = columns(usage_hourly, _Sum)

#: Hour and model: the key of a token's row of the hourly sums.
_Bucket = tuple[datetime, str]


def repair(connection: Connection, token_id: str) -> None:
    """Make a token's hourly sums and counter agree with its requests. No request is admitted by it meanwhile."""
    connection.execute(for_update(select(tokens.c.id).where(tokens.c.id == token_id)))
    summed = _summed(connection, token_id)
    for bucket, count in sorted(_settled(connection, token_id).items()):
        known = summed.get(bucket)
        if known is None or count + known.pruned > known.requests:
            _sum_up(connection, token_id, bucket, known)
    # One statement, so one snapshot: a settlement moves a request from one of the two to the other.
    rolled_up = select(func.coalesce(func.sum(usage_hourly.c.requests), 0)).where(usage_hourly.c.token_id == token_id)
    flying = select(func.count()).select_from(in_flight).where(in_flight.c.token_id == token_id)
    total = connection.execute(select(rolled_up.scalar_subquery() + flying.scalar_subquery())).scalar_one()
    connection.execute(update(tokens).where(tokens.c.id == token_id).values(request_count=int(total)))


def _summed(connection: Connection, token_id: str) -> dict[_Bucket, _Sum]:
    """The hourly sums. Locks them: what is settled meanwhile is added afterwards."""
    sums = select(usage_hourly.c.hour, usage_hourly.c.model, *_SUMS)
    ordered = sums.where(usage_hourly.c.token_id == token_id).order_by(usage_hourly.c.hour, usage_hourly.c.model)
    rows = connection.execute(for_update(ordered))
    return {(hour, model): _Sum(*map(int, sums)) for hour, model, *sums in rows}


def _settled(connection: Connection, token_id: str) -> Counter[_Bucket]:
    """The requests that count (void ones do not), by hour and model."""
    rows = connection.execute(
        select(requests.c.admitted_at, requests.c.model).where(
            requests.c.token_id == token_id, requests.c.outcome != "void"
        ),
        execution_options={"yield_per": 1000},
    )
    return Counter((hour_of(admitted_at), model) for admitted_at, model in rows)


def _sum_up(connection: Connection, token_id: str, bucket: _Bucket, before: _Sum | None) -> None:
    """Rewrite a row of the hourly sums from its requests.

    Of pruned requests only the number is known, so an old sum is kept if it is higher.
    """
    hour, model = bucket
    this = (usage_hourly.c.hour == hour, usage_hourly.c.token_id == token_id, usage_hourly.c.model == model)
    connection.execute(delete(usage_hourly).where(*this))
    rows = connection.execute(
        select(*columns(requests, SettledRequest)).where(
            requests.c.token_id == token_id,
            requests.c.model == model,
            requests.c.admitted_at >= hour,
            requests.c.admitted_at < hour + _HOUR,
        )
    )
    roll_up(connection, [SettledRequest.of(row) for row in rows.mappings()])
    if before is None or not before.pruned:
        return
    now = _Sum(*map(int, connection.execute(select(*_SUMS).where(*this)).one()))
    kept = {name: max(getattr(before, name), getattr(now, name)) for name in _LOST}
    connection.execute(
        update(usage_hourly).where(*this).values(requests=now.requests + before.pruned, pruned=before.pruned, **kept)
    )
