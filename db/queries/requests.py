"""The settled requests, as people look at them: a page at a time, the newest first."""

from __future__ import annotations

from datetime import datetime

from attrs import field, frozen
from sqlalchemy import Connection, bindparam, func, select

from db.queries.rows import columns
from db.records import SettledRequest
from db.schema import requests, usage_hourly


@frozen
class Filter:
    """Which requests are meant; None leaves a field open."""

    project_id: str | None = None
    token_id: str | None = None
    outcome: str | None = None


@frozen(kw_only=True)
class UnpricedModel:
    """A model that was used without a cost, and all that was used of it; its fields are those of a usage.

    Attributes:
        requested_model: the name in the requests.
        unpriced: number of requests without a cost.
        details, service_tier: not known, because the hourly sums do not tell them apart.
    """

    provider: str
    model: str
    requested_model: str
    requests: int
    unpriced: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    cache_write_1h_tokens: int
    reasoning_tokens: int
    details: None = field(default=None, init=False)
    service_tier: str = field(default="", init=False)


_SUMMED = (
    *("requests", "unpriced", "input_tokens", "output_tokens", "cached_tokens"),
    *("cache_write_tokens", "cache_write_1h_tokens", "reasoning_tokens"),
)

_NEWEST_FIRST = select(*columns(requests, SettledRequest)).order_by(requests.c.id.desc())


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


def unpriced_models(connection: Connection, since: datetime) -> list[UnpricedModel]:
    """The models that were used without a cost since an hour, by provider and name."""
    table = usage_hourly.c
    key = table.provider, table.answered_model, table.requested_model
    sums = [func.sum(table[name]).label(name) for name in _SUMMED]
    query = select(*key, *sums).where(table.hour >= since, table.provider.is_not(None)).group_by(*key).order_by(*key)
    return [
        UnpricedModel(
            provider=row.provider,
            model=row.answered_model or "",
            requested_model=row.requested_model or "",
            **{name: int(getattr(row, name)) for name in _SUMMED},
        )
        for row in connection.execute(query.having(func.sum(table.unpriced) > 0))
    ]
