"""The settled requests, as people look at them: a page at a time, the newest first."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import msgspec
from attrs import field, frozen
from sqlalchemy import Connection, bindparam, func, select, type_coerce

from db.queries.rows import Newest, columns, newest
from db.records import SettledRequest
from db.schema import requests
from db.types import LongText


@frozen
class Filter:
    """Which requests are meant; None leaves a field open. `since` is included, `until` is not."""

    project_id: str | None = None
    token_id: str | None = None
    outcome: str | None = None
    id: str | None = None
    provider_request_id: str | None = None
    model: str | None = None
    status: int | None = None
    since: datetime | None = None
    until: datetime | None = None
    labels: Mapping[str, str] = field(factory=dict)


#: Conditions that an index of their own serves, the most selective first; any further one is checked row by row.
_INDEXED = ("token_id", "project_id", "outcome")


_ROWS = select(*columns(requests, SettledRequest))
_NEWEST_FIRST = _ROWS.order_by(requests.c.id.desc())


#: Rows of successful requests that are searched for a provider's id, the newest: about a second's work.
SEARCHED = 1_000_000


def find(connection: Connection, identity: str) -> SettledRequest | None:
    """Find a settled request by its own id or by the provider's.

    By the provider's id: the newest request that failed, else the newest of the last `SEARCHED`. Only the former are
    indexed.
    """
    by_provider = requests.c.provider_request_id == identity
    newest = select(requests.c.id).order_by(requests.c.id.desc())
    oldest = newest.offset(SEARCHED).limit(1).scalar_subquery()
    for wanted in (
        (requests.c.id == identity.lower(),),
        # Written into the statement: a planner uses a partial index only for a condition that it can read.
        (by_provider, requests.c.outcome != bindparam("ok", "ok", literal_execute=True)),
        (by_provider, requests.c.id > func.coalesce(oldest, "")),
    ):
        row = connection.execute(_NEWEST_FIRST.where(*wanted).limit(1)).mappings().first()
        if row is not None:
            return SettledRequest.of(row)
    return None


def page(
    connection: Connection, limit: int, after_id: str | None, wanted: Filter
) -> tuple[list[SettledRequest], str | None]:
    """List settled requests in the order of their admission, the newest first.

    Args:
        connection: a transaction.
        limit: maximum number of rows. There can be fewer before the end, because few rows fit.
        after_id: the id that the page before returned.
        wanted: which ones.

    Returns:
        The requests, and the id for the next page; None if there is none.
    """
    column = requests.c
    rows, last = newest(
        connection,
        _ROWS,
        limit,
        Newest(
            time=column.admitted_at,
            indexed=[
                (column[name], value) for name in ("id", *_INDEXED) if (value := getattr(wanted, name)) is not None
            ],
            further=[
                *(
                    column[name] == value
                    for name in ("provider_request_id", "model", "status")
                    if (value := getattr(wanted, name)) is not None
                ),
                *(
                    type_coerce(column.labels, LongText).contains(_member(key, value), autoescape=True)
                    for key, value in wanted.labels.items()
                ),
            ],
            since=wanted.since,
            until=wanted.until,
            after_id=after_id,
        ),
    )
    found = [SettledRequest.of(row._mapping) for row in rows]  # noqa: SLF001 (SQLAlchemy's public name)
    return [row for row in found if wanted.labels.items() <= (row.result.labels or {}).items()], last


def _member(key: str, value: str) -> str:
    """A label as it is written in its column."""
    return msgspec.json.encode({key: value}).decode()[1:-1]
