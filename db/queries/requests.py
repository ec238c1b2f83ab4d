"""The settled requests, as people look at them: a page at a time, the newest first."""

from __future__ import annotations

from attrs import frozen
from sqlalchemy import Connection, select

from db.queries.rows import columns
from db.records import SettledRequest
from db.schema import requests


@frozen
class Filter:
    """Which requests are meant; None leaves a field open."""

    project_id: str | None = None
    token_id: str | None = None
    outcome: str | None = None


_NEWEST_FIRST = select(*columns(requests, SettledRequest)).order_by(requests.c.id.desc())


def find(connection: Connection, identity: str) -> SettledRequest | None:
    """Find a settled request by its own id or by the provider's: the newest that has it, if several do."""
    for wanted in (requests.c.id == identity.lower(), requests.c.provider_request_id == identity):
        row = connection.execute(_NEWEST_FIRST.where(wanted).limit(1)).mappings().first()
        if row is not None:
            return SettledRequest.of(row)
    return None


def page(connection: Connection, limit: int, after_id: str | None, wanted: Filter) -> list[SettledRequest]:
    """List settled requests in the order of their admission, the newest first.

    Args:
        connection: a transaction.
        limit: most rows.
        after_id: id of the last row of the page before.
        wanted: which ones.
    """
    query = _NEWEST_FIRST.limit(limit)
    if after_id is not None:
        query = query.where(requests.c.id < after_id)
    for name in ("project_id", "token_id", "outcome"):
        value = getattr(wanted, name)
        if value is not None:
            query = query.where(requests.c[name] == value)
    return [SettledRequest.of(row) for row in connection.execute(query).mappings()]
