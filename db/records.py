"""What the queries return and take: plain immutable records, one per table, free of SQL.

All timestamps are timezone-aware UTC `datetime`s; all ids are canonical UUID text. A field that `repr` leaves out is
secret, and the audit log does not show its value either.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from attrs import field, frozen
from msgspec import Meta
from msgspec.structs import asdict, astuple

#: How a request ended. `ok`: relayed whole with a status below 400, or its terminal event was relayed. `rejected`: the
#: provider answered 4xx. `upstream_error`: it answered 5xx, reported an error inside a stream, or disconnected. `void`:
#: admitted, but no byte went upstream, so its count is given back. `unknown`: its worker died before it could say;
#: counted as served.
Outcome = Literal[
    "ok", "rejected", "client_closed", "upstream_error", "upstream_timeout", "proxy_error", "void", "unknown"
]

#: The outcomes that the hourly sums count as errors.
ERRORS: frozenset[Outcome] = frozenset({"rejected", "upstream_error", "upstream_timeout", "proxy_error", "unknown"})


#: Where a cost is from: the provider's own figure, a table of prices, or a table of prices and estimated tokens.
CostBasis = Literal["provider", "price", "estimate"]

RowKind = Literal["request", "late"]


@frozen
class Project:
    """A tenant: uses the credentials of providers, and owns any number of tokens.

    `provider` is the one of paths that name none. `api_key` is the sealed key of its credential there, bound to the
    project's id; it is what servers of the release before read.
    """

    id: str
    name: str
    provider: str
    api_key: str = field(repr=False)
    api_key_last4: str
    active: bool
    created_at: datetime
    updated_at: datetime
    allow_unknown_objects: bool = False
    allow_request_labels: bool = False
    stream_usage: str | None = None
    models: dict[str, list[str]] | None = None


@frozen
class Credential:
    """A key of a provider, for any number of projects. `api_key` is the sealed form, bound to the credential's id."""

    id: str
    name: str
    provider: str
    api_key: str = field(repr=False)
    api_key_last4: str
    active: bool
    created_at: datetime
    updated_at: datetime


class ProviderObject(msgspec.Struct, frozen=True, gc=False):
    """An object that a provider keeps, such as a file, and the project that created it with this request.

    `usage_id` is empty if its usage comes later, and then the id of the ledger row that has it; see the schema.
    """

    provider: str
    object_id: str
    kind: str
    project_id: str
    token_id: str
    request_id: str
    created_at: datetime
    usage_id: str | None = None


class SealedKey(msgspec.Struct, frozen=True, gc=False):
    """A key as a project may use it.

    Attributes:
        owner: the id that it is sealed for: its credential's, or the project's own.
        sealed: the sealed form.
        active: whether its credential is.
    """

    owner: str
    sealed: str
    active: bool


class Account(msgspec.Struct, frozen=True):
    """What a request needs to know of its token's project: the project, and its key at each provider.

    `limited`: there are limits of the project, or of the whole proxy.
    """

    project: Project
    keys: dict[str, SealedKey]
    limited: bool = False


@frozen
class Token:
    """A token; its secret is known by the 32-byte SHA-256 `digest` only.

    `max_requests` None means unlimited, `expires_at` None means never. `labels` are those of its requests.
    """

    id: str
    project_id: str
    digest: bytes = field(repr=False)
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
    labels: dict[str, str] | None = None
    limited: bool = False
    models: dict[str, list[str]] | None = None


#: What a limit counts. `tokens` are input and output.
Metric = Literal["requests", "tokens", "input_tokens", "output_tokens", "cost", "concurrency"]
#: After which time it counts from zero again: calendar periods in UTC, weeks from Monday on.
Period = Literal["total", "minute", "hour", "day", "week", "month"]
#: `settled`: requests are admitted while what is settled is below the limit. `reserved`: a request is admitted if its
#: worst case fits. `warn`: none is refused.
Policy = Literal["settled", "reserved", "warn"]
#: Whose requests a limit counts. Its subject is the id of the token or project; empty for the whole proxy.
Scope = Literal["token", "project", "proxy"]


@frozen
class Limit:
    """A limit of requests, tokens, money or concurrent requests.

    Attributes:
        scope, subject: whose requests it counts.
        metric, period: what it counts, and for how long; the period of `concurrency` is `total`.
        amount: the limit; 10^-9 USD for `cost`.
        models: `{"patterns": [...]}`: it counts only requests that name such a model; None: all requests.
        policy: what happens when it is reached.
        wait_ms: milliseconds that a request waits until running ones have ended.
        warn_at: percentage of the amount at which a warning is logged; None: no warning.
        allow_unpriced: a limit of `cost` admits models without a price.
    """

    id: str
    scope: Scope
    subject: str
    metric: Metric
    period: Period
    amount: int
    models: dict[str, list[str]] | None
    policy: Policy
    wait_ms: int
    warn_at: int | None
    allow_unpriced: bool
    created_at: datetime
    updated_at: datetime

    @property
    def reserves(self) -> bool:
        """Whether an open request counts as much as it holds."""
        return self.metric in ("requests", "concurrency") or self.policy == "reserved"


@frozen
class LimitCounter:
    """What a limit has counted in one window.

    Attributes:
        id: the limit's id, a space, and the start of the window; see `db.queries.limits`.
        started_at: the start of the window; None if it has none.
        used: by settled requests, `opening` and `unknown` included.
        reserved: held by open requests.
        opening: used before the limit was made.
        unknown: charged to requests whose worker died.
        unpriced: number of requests whose cost is unknown.
    """

    id: str
    limit_id: str
    started_at: datetime | None
    used: int = 0
    reserved: int = 0
    opening: int = 0
    unknown: int = 0
    unpriced: int = 0


@frozen
class Worker:
    """A server process that writes to the ledger, alive while `seen_at` is fresh."""

    id: str
    hostname: str
    pid: int
    version: str
    started_at: datetime
    seen_at: datetime


def doc(text: str) -> Meta:
    """Describe a column, for the management API."""
    return Meta(description=text)


#: A UUID in lower case.
Id = Annotated[str, Meta(extra_json_schema={"format": "uuid"})]
#: A count that every JSON reader keeps exactly (RFC 8259, section 6).
Count = Annotated[int, Meta(ge=0, le=2**53 - 1)]
Status = Annotated[int, Meta(ge=100, le=999)]
Timestamp = Annotated[datetime, Meta(tz=True)]


class Reservation(msgspec.Struct, frozen=True, gc=False):
    """A request that was admitted and counted, and is not settled yet: one row of `in_flight`."""

    id: Annotated[Id, doc("The request's id, as in the header X-LLM-Proxy-Request-ID.")]
    worker_id: Annotated[Id, doc("The server process that handled it.")]
    token_id: Annotated[Id, doc("The token that it was sent with.")]
    project_id: Annotated[Id, doc("The token's project.")]
    provider: Annotated[str, doc("The provider that it was sent to.")]
    method: Annotated[str, doc("Its method.")]
    path: Annotated[str, doc("Its path, without the query.")]
    admitted_at: Annotated[Timestamp, doc("When it was admitted.")]
    limits: Annotated[
        dict[str, int] | None, doc("What it was admitted to hold of each limit, by counter; null if it has no limits.")
    ] = None


class Result(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """How an admitted request ended.

    Each field is a column of `requests`, a member of the request log's line and of the management API's answer: a new
    one needs a column in the schema, a migration, and the code that computes it.

    Durations are microseconds since admission. Token counts are None if they are unknown; `unmetered` says that the
    provider may have reported them in a form that could not be read. Classes of tokens overlap: cached tokens and those
    written to the cache are part of the input, reasoning is part of the output. `provider_request_id` is the id by
    which the provider, and the error that an SDK raises, names the request.

    A row of kind `late` is the usage that a provider reported after the request of `origin_id` had ended. It counts as
    no request.
    """

    outcome: Annotated[Outcome, doc("How it ended.")]
    status: Annotated[Status | None, doc("The status that the client got.")] = None
    model: Annotated[str, doc("The model that the provider named; may be empty.")] = ""
    requested_model: Annotated[
        str | None, doc("The model that the request named; may be empty. Null in rows of older versions.")
    ] = None
    streamed: Annotated[bool, doc("Whether the response was an event stream.")] = False
    first_byte_us: Annotated[Count | None, doc("Microseconds from admission to the first byte.")] = None
    duration_us: Annotated[Count | None, doc("Microseconds from admission to the end.")] = None
    request_bytes: Annotated[Count, doc("Length of its body.")] = 0
    response_bytes: Annotated[Count, doc("Length of the response's body, as far as it was passed on.")] = 0
    input_tokens: Annotated[Count | None, doc("Tokens of the prompt.")] = None
    output_tokens: Annotated[Count | None, doc("Tokens of the response.")] = None
    cached_tokens: Annotated[Count | None, doc("Tokens of the prompt from the provider's cache.")] = None
    cache_write_tokens: Annotated[Count | None, doc("Tokens of the prompt that were written to the cache.")] = None
    cache_write_1h_tokens: Annotated[Count | None, doc("Those of them that are kept for an hour.")] = None
    reasoning_tokens: Annotated[Count | None, doc("Tokens of the response that are reasoning.")] = None
    usage_details: Annotated[
        dict[str, int] | None,
        doc("Other parts of the tokens, and extras such as web searches, by name; `{}` if the answer counts nothing."),
    ] = None
    service_tier: Annotated[str | None, doc("The service tier that the provider named.")] = None
    estimated: Annotated[bool, doc("Whether the numbers of tokens are an estimate.")] = False
    cost_nanousd: Annotated[Count | None, doc("The cost in 10^-9 USD; null if it is unknown.")] = None
    cost_basis: Annotated[CostBasis | None, doc("Where the cost is from.")] = None
    price_version: Annotated[str | None, doc("The version of the price table.")] = None
    labels: Annotated[dict[str, str] | None, doc("Its labels.")] = None
    summed_labels: Annotated[dict[str, str] | None, doc("Those of them that the hourly sums distinguish.")] = None
    kind: Annotated[RowKind, doc("Whether it is a request, or the late usage of one.")] = "request"
    origin_id: Annotated[Id | None, doc("The request whose late usage this is.")] = None
    unmetered: Annotated[bool, doc("Whether the response may have had usage that could not be read.")] = False
    provider_request_id: Annotated[str | None, doc("The provider's id of the request, which SDKs show.")] = None

    @property
    def uncounted(self) -> bool:
        """Whether something was used, and nothing says how much."""
        return self.usage_details == {} and self.input_tokens is None

    @property
    def unpriced(self) -> bool:
        """Whether something was used, and its cost is unknown."""
        if self.cost_nanousd is not None:
            return False
        return not (self.input_tokens is None and self.output_tokens is None and self.usage_details is None)


#: The fields of a result that are classes of tokens.
TOKENS = (
    *("input_tokens", "cached_tokens", "cache_write_tokens", "cache_write_1h_tokens"),
    *("output_tokens", "reasoning_tokens"),
)
#: The names in `usage_details` that are summed too, because most vendors have prices of their own for them. All others
#: are in the rows only.
DETAIL_SUMS = (
    *("input_audio_tokens", "output_audio_tokens", "input_image_tokens", "output_image_tokens", "web_searches"),
)

#: Nothing was sent to the provider: the count is given back.
VOID = Result(outcome="void")
#: The worker died before it could say how the request ended.
UNKNOWN = Result(outcome="unknown", requested_model="")


class SettledRequest(msgspec.Struct, frozen=True, gc=False):
    """One row of the ledger, the table `requests`: a request that has ended, in whatever way."""

    reservation: Reservation
    result: Result
    settled_at: Annotated[Timestamp, doc("When it ended.")]

    @property
    def id(self) -> str:
        """The request's id."""
        return self.reservation.id

    @classmethod
    def of(cls, columns: Mapping[Any, Any]) -> SettledRequest:
        """Make the record of values by column name; those that have a default may be missing."""
        reservation = {name: columns[name] for name in Reservation.__struct_fields__ if name in columns}
        result = {name: columns[name] for name in Result.__struct_fields__ if name in columns}
        return cls(Reservation(**reservation), Result(**result), columns["settled_at"])

    def values(self) -> tuple[Any, ...]:
        """The values of the columns."""
        return (*astuple(self.reservation), *astuple(self.result), self.settled_at)

    def by_column(self) -> dict[str, Any]:
        """The values by column name."""
        return {**asdict(self.reservation), **asdict(self.result), "settled_at": self.settled_at}


AuditOutcome = Literal["accepted", "refused"]


class AuditEntry(msgspec.Struct, frozen=True):
    """One row of the audit log: a call of the management API that was accepted as a change, or was refused."""

    id: Annotated[Id, doc("The request id of the call (X-LLM-Proxy-Request-ID); its second entry has one of its own.")]
    occurred_at: Annotated[Timestamp, doc("When the call came.")]
    actor: Annotated[str, doc("Who called: `management token`; empty if the call was not authenticated.")]
    address: Annotated[str, doc("The client's address, behind TRUSTED_PROXIES.")]
    operation: Annotated[str, doc("The operationId; empty if the method and the path are no operation.")]
    resource: Annotated[str, doc("The kind of resource, such as `project`; empty if the path belongs to none.")]
    resource_id: Annotated[str, doc("The resource's id; empty if the call names none.")]
    outcome: Annotated[AuditOutcome, doc("Whether the change was made.")]
    status: Annotated[Status, doc("The status of the answer.")]
    error: Annotated[str, doc("The code of the error; empty if the call was accepted.")] = ""
    before: Annotated[dict[str, Any] | None, doc("The fields that changed, before; null if there was nothing.")] = None
    after: Annotated[dict[str, Any] | None, doc("The fields that changed, after; null if there is nothing.")] = None


class RefusedRequest(msgspec.Struct, frozen=True, gc=False):
    """One row of the table `refusals`: a request that was refused before its admission."""

    id: Annotated[Id, doc("The request's id, as in the header X-LLM-Proxy-Request-ID.")]
    refused_at: Annotated[Timestamp, doc("When it was refused.")]
    token_id: Annotated[str, doc("The id of its token; empty if the token is not known.")]
    project_id: Annotated[str, doc("The id of the token's project; empty if the token is not known.")]
    provider: Annotated[str, doc("The provider that it was meant for; empty if it is not known.")]
    method: Annotated[str, doc("Its method.")]
    path: Annotated[str, doc("Its path, without the query.")]
    code: Annotated[str, doc("The code of the error.")]
    status: Annotated[Status, doc("The status of the answer.")]
    model: Annotated[str, doc("The model that it named; empty if the token is not known, or the model was not read.")]
    address: Annotated[str, doc("The client's address, behind TRUSTED_PROXIES.")]
    limit_id: Annotated[Id | None, doc("The limit that refused it; null if none did.")] = None
