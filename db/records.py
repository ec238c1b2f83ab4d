"""What the queries return and take: plain frozen records, one per table, free of SQL.

All moments are timezone-aware UTC `datetime`s; all ids are canonical UUID text.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from attrs import field, frozen

#: How a request ended. `ok`: relayed whole with a status below 400, or its terminal event was relayed. `rejected`: the
#: provider answered 4xx. `upstream_error`: it answered 5xx, reported an error inside a stream, or broke off. `void`:
#: admitted, but no byte went upstream, so its count is given back. `unknown`: its worker died before it could say;
#: counted as served.
Outcome = Literal[
    "ok", "rejected", "client_closed", "upstream_error", "upstream_timeout", "proxy_error", "void", "unknown"
]

#: The outcomes that the hourly sums count as errors.
ERRORS: frozenset[Outcome] = frozenset({"rejected", "upstream_error", "upstream_timeout", "proxy_error", "unknown"})


@frozen
class Project:
    """A tenant: owns one provider key and any number of tokens. `api_key` is the sealed form."""

    id: str
    name: str
    provider: str
    api_key: str = field(repr=False)
    api_key_last4: str
    active: bool
    created_at: datetime
    updated_at: datetime


@frozen
class Token:
    """A withering token; its secret is known by the 32-byte SHA-256 `digest` only.

    `max_requests` None means unlimited, `expires_at` None means never.
    """

    id: str
    project_id: str
    digest: bytes
    last4: str
    name: str
    active: bool
    expires_at: datetime | None
    max_requests: int | None
    request_count: int
    created_at: datetime
    updated_at: datetime
    revoked_at: datetime | None
    last_used_at: datetime | None


@frozen
class Worker:
    """A server process that writes to the ledger, alive while `seen_at` is fresh."""

    id: str
    hostname: str
    pid: int
    version: str
    started_at: datetime
    seen_at: datetime


@frozen
class Reservation:
    """A request that was admitted and counted, and is not settled yet."""

    id: str
    worker_id: str
    token_id: str
    project_id: str
    provider: str
    method: str
    path: str
    admitted_at: datetime


@frozen
class SettledRequest:
    """One row of the ledger: a request that has ended, in whatever way.

    Durations are microseconds since admission. Token counts are None where the provider reported none; `unmetered`
    says that it may have, in a form that could not be read. `provider_request_id` is the id by which the provider, and
    the error that an SDK raises, names the request.
    """

    id: str
    worker_id: str
    token_id: str
    project_id: str
    provider: str
    method: str
    path: str
    outcome: Outcome
    status: int | None
    model: str
    streamed: bool
    admitted_at: datetime
    settled_at: datetime
    first_byte_us: int | None
    duration_us: int | None
    request_bytes: int
    response_bytes: int
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    unmetered: bool = False
    provider_request_id: str | None = None
