"""The refused requests: rows are added, listed and pruned, and never changed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from attrs import frozen
from sqlalchemy import Connection, select

from db.dialects.bulk import BulkInsert
from db.dialects.statements import insert_new
from db.queries import rows
from db.records import RefusedRequest
from db.schema import refusals


@frozen
class Filter:
    """Which refusals are meant; None leaves a field open. `since` is included, `until` is not."""

    token_id: str | None = None
    project_id: str | None = None
    code: str | None = None
    since: datetime | None = None
    until: datetime | None = None


_ROWS = select(*rows.columns(refusals, RefusedRequest))
_insert = BulkInsert(insert_new(refusals), rows.names(RefusedRequest))


def create(connection: Connection, refused: Sequence[RefusedRequest]) -> None:
    """Write refusals; those that are there already stay."""
    _insert(connection, refused)


def page(
    connection: Connection, limit: int, after_id: str | None, wanted: Filter
) -> tuple[list[RefusedRequest], str | None]:
    """List refusals, the newest first; see `rows.newest`."""
    column = refusals.c
    found, last = rows.newest(
        connection,
        _ROWS,
        limit,
        rows.Newest(
            time=column.refused_at,
            indexed=[
                (column[name], value)
                for name in ("token_id", "project_id", "code")
                if (value := getattr(wanted, name)) is not None
            ],
            since=wanted.since,
            until=wanted.until,
            after_id=after_id,
        ),
    )
    return [RefusedRequest(*tuple(row)) for row in found], last


def prune(connection: Connection, before: datetime, limit: int) -> int:
    """Delete the oldest refusals from before a time, at most `limit`; say how many they were."""
    return rows.prune(connection, refusals.c.refused_at, before, limit)
