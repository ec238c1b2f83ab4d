"""Retention: old rows of the ledger are deleted, and the hourly sums keep the number of deleted rows.

So the ledger still adds up: counter = settled + pruned + in flight = hourly sums + in flight.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Any

from attrs import frozen
from sqlalchemy import Connection, and_, or_, select

from db.dialects.bulk import BulkInsert
from db.dialects.statements import for_update, upsert_add
from db.queries.ledger import delete_requests, hour_of, live_workers, series_of
from db.queries.rows import first_id
from db.schema import requests, usage_hourly

_Bucket = tuple[datetime, str, str]

_KEYS = ("hour", "token_id", "model")
# Columns without a default, for a row that is there already.
_ZERO = ("requests", "errors", "input_tokens", "output_tokens", "cached_tokens")


@frozen
class Pruned:
    """The result of one transaction.

    Attributes:
        rows: number of deleted rows.
        kept: number of old rows that were kept because the hourly sums do not include them.
    """

    rows: int
    kept: int


_note = BulkInsert(
    upsert_add(usage_hourly, keys=_KEYS, sums=("pruned", "pruned_late")),
    [*_KEYS, "project_id", *_ZERO, "pruned", "pruned_late"],
)


def is_first(connection: Connection, worker_id: str, dead_after: timedelta) -> bool:
    """Whether this worker is the one of all live workers that prunes.

    No lock is needed: if two workers take themselves for the first one, each skips the rows that the other has locked.
    """
    live = [worker.id for worker in live_workers(connection, dead_after)]
    return bool(live) and min(live) == worker_id


def prune(connection: Connection, before: datetime, limit: int, after_id: str = "") -> tuple[Pruned, str | None]:
    """Delete settled requests that were admitted before a time, the oldest first.

    A row is deleted only if its hourly sum counts at least as many requests as there are rows, so that nothing is lost.
    Void requests and late usage count as no request and are always deleted. The sums keep the number of the latter too.

    Args:
        connection: a transaction.
        before: the time, UTC.
        limit: maximum number of rows to check.
        after_id: check the rows after this id.

    Returns:
        The result, and the id of the last row that was checked; None if there are no more.
    """
    # Ids begin with the time (RFC 9562, version 7), so old rows are found without an index of their own.
    found = connection.execute(
        for_update(
            select(
                requests.c.id,
                requests.c.token_id,
                requests.c.project_id,
                requests.c.provider,
                requests.c.model,
                requests.c.requested_model,
                requests.c.summed_labels,
                requests.c.outcome,
                requests.c.kind,
                requests.c.admitted_at,
            )
            .where(requests.c.id > after_id, requests.c.id < first_id(before), requests.c.admitted_at < before)
            .order_by(requests.c.id)
            .limit(limit),
            skip_locked=True,
        )
    ).all()
    if not found:
        return Pruned(0, 0), None
    rows = [(row, _bucket(row)) for row in found]
    counted = Counter(bucket for row, bucket in rows if _counts(row))
    late = Counter(bucket for row, bucket in rows if row.kind == "late")
    known = _known(connection, [*{*counted, *late}])
    good = {bucket for bucket, count in counted.items() if known.get(bucket, 0) >= count}
    gone = [(row, bucket) for row, bucket in rows if not _counts(row) or bucket in good]
    projects = {bucket: row.project_id for row, bucket in rows}
    _note(
        connection,
        [
            {**dict(zip(_KEYS, bucket, strict=True)), "project_id": projects[bucket], **dict.fromkeys(_ZERO, 0)}
            | {"pruned": counted[bucket] if bucket in good else 0, "pruned_late": late[bucket]}
            for bucket in sorted(good | (late.keys() & known.keys()))
        ],
    )
    deleted = delete_requests(connection, [row.id for row, _ in gone])
    return Pruned(deleted, len(rows) - len(gone)), found[-1].id


def _counts(row: Any) -> bool:
    return bool(row.outcome != "void" and row.kind == "request")


def _bucket(row: Any) -> _Bucket:
    series = series_of(row.provider, row.model, row.requested_model, row.summed_labels)
    return hour_of(row.admitted_at), row.token_id, series


def _known(connection: Connection, buckets: list[_Bucket]) -> dict[_Bucket, int]:
    """The number of requests in the hourly sums that are not pruned yet. Locks the sums, in the order of keys."""
    if not buckets:
        return {}
    sums = usage_hourly.c
    wanted = or_(
        *(and_(sums.hour == hour, sums.token_id == token, sums.model == series) for hour, token, series in buckets)
    )
    ordered = select(sums.hour, sums.token_id, sums.model, sums.requests - sums.pruned).where(wanted)
    locked = for_update(ordered.order_by(sums.hour, sums.token_id, sums.model))
    return {(hour, token, series): int(count) for hour, token, series, count in connection.execute(locked)}
