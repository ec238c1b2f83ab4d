"""The declared schema: what the migrations must arrive at.

Ids are UUIDs in their canonical text form: readable in any SQL shell, and the same on every database.
Timestamps are UTC with microseconds. Token digests are raw SHA-256 values.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Index, Integer, MetaData, SmallInteger, Table, text

from db.records import DETAIL_SUMS
from db.types import Code, Digest, Id, Json, LongText, Name, Timestamp

#: Names of constraints and indexes, fixed so that migrations can speak of them on every database.
NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}

metadata = MetaData(naming_convention=NAMING)

projects = Table(
    "projects",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", Name, nullable=False, unique=True),
    Column("provider", Code, nullable=False),
    # The sealed form of the key (`enc:v2:…`, or `plain:…` where the operator allowed it), never the key itself.
    Column("api_key", LongText, nullable=False),
    Column("api_key_last4", Code, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Column("updated_at", Timestamp, nullable=False),
    # Whether its tokens may name objects at a provider that `provider_objects` does not know.
    Column("allow_unknown_objects", Boolean, nullable=False, server_default="0"),
    # Whether requests may have labels of their own.
    Column("allow_request_labels", Boolean, nullable=False, server_default="0"),
    # `ask` or `off`, in place of the provider's setting.
    Column("stream_usage", Code, nullable=True),
    # Patterns of the models that its requests may name; null: all.
    Column("models", Json, nullable=True),
    Index("ix_projects_api_key_last4_id", "api_key_last4", "id"),
)

# Keys of providers. Several projects may use one.
credentials = Table(
    "credentials",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", Name, nullable=False, unique=True),
    Column("provider", Code, nullable=False),
    # Sealed like that of a project, and bound to the credential's id.
    Column("api_key", LongText, nullable=False),
    Column("api_key_last4", Code, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Column("updated_at", Timestamp, nullable=False),
)

# Which credential a project uses at a provider.
project_credentials = Table(
    "project_credentials",
    metadata,
    Column("project_id", Id, ForeignKey("projects.id"), primary_key=True),
    Column("provider", Code, primary_key=True),
    Column("credential_id", Id, ForeignKey("credentials.id"), nullable=False, index=True),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Id, primary_key=True),
    Column("project_id", Id, ForeignKey("projects.id"), nullable=False, index=True),
    Column("digest", Digest, nullable=False, unique=True),
    # The last four characters of the secret, so that people can tell their tokens apart.
    Column("last4", Code, nullable=False),
    Column("name", Name, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("expires_at", Timestamp, nullable=True),
    Column("max_requests", BigInteger, nullable=True),
    # Requests admitted and not void: settled plus in flight (the ledger's invariant).
    Column("request_count", BigInteger, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Column("updated_at", Timestamp, nullable=False),
    Column("revoked_at", Timestamp, nullable=True),
    Column("last_used_at", Timestamp, nullable=True),
    Column("labels", Json, nullable=True),
    # Whether there are limits of this token.
    Column("limited", Boolean, nullable=False, server_default="0"),
    # Patterns of the models that its requests may name; null: all.
    Column("models", Json, nullable=True),
    # A name or the last four characters are accepted instead of an id.
    Index("ix_tokens_name_id", "name", "id"),
    Index("ix_tokens_last4_id", "last4", "id"),
)

workers = Table(
    "workers",
    metadata,
    Column("id", Id, primary_key=True),
    Column("hostname", Name, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("version", Code, nullable=False),
    Column("started_at", Timestamp, nullable=False),
    Column("seen_at", Timestamp, nullable=False, index=True),
)

# Open reservations: one row per request that was admitted and is not settled yet. No foreign keys: the row must
# outlive its worker's. No further index: its churn is the database's hottest spot, and the rows are few.
in_flight = Table(
    "in_flight",
    metadata,
    Column("id", Id, primary_key=True),
    Column("worker_id", Id, nullable=False),
    Column("token_id", Id, nullable=False),
    Column("project_id", Id, nullable=False),
    Column("provider", Code, nullable=False),
    Column("method", Code, nullable=False),
    Column("path", LongText, nullable=False),
    Column("admitted_at", Timestamp, nullable=False),
    # What it holds of each limit, by the key of its counter; null if it has no limits.
    Column("limits", Json, nullable=True),
)

# Settled requests, append-only.
requests = Table(
    "requests",
    metadata,
    Column("id", Id, primary_key=True),
    Column("worker_id", Id, nullable=False),
    Column("token_id", Id, nullable=False),
    Column("project_id", Id, nullable=False),
    Column("provider", Code, nullable=False),
    Column("method", Code, nullable=False),
    Column("path", LongText, nullable=False),
    Column("outcome", Code, nullable=False),
    # The status that the client got; null where none was sent.
    Column("status", SmallInteger, nullable=True),
    # The upstream's name of the model, empty where the response named none.
    Column("model", Name, nullable=False),
    Column("streamed", Boolean, nullable=False),
    Column("admitted_at", Timestamp, nullable=False),
    Column("settled_at", Timestamp, nullable=False),
    # Microseconds since admission; null where it did not come to that.
    Column("first_byte_us", BigInteger, nullable=True),
    Column("duration_us", BigInteger, nullable=True),
    Column("request_bytes", BigInteger, nullable=False),
    Column("response_bytes", BigInteger, nullable=False),
    # Token usage as the provider reported it; null where it reported none.
    Column("input_tokens", BigInteger, nullable=True),
    Column("output_tokens", BigInteger, nullable=True),
    Column("cached_tokens", BigInteger, nullable=True),
    # The answer may have reported usage in a form that the proxy could not read.
    Column("unmetered", Boolean, nullable=False, server_default="0"),
    # The id that the provider gave the request, null if it named none.
    Column("provider_request_id", Name, nullable=True),
    # The client's name of the model, empty if the request named none; null in rows of the release before.
    Column("requested_model", Name, nullable=True),
    Column("cache_write_tokens", BigInteger, nullable=True),
    Column("cache_write_1h_tokens", BigInteger, nullable=True),
    Column("reasoning_tokens", BigInteger, nullable=True),
    Column("usage_details", Json, nullable=True),
    Column("service_tier", Code, nullable=True),
    Column("estimated", Boolean, nullable=False, server_default="0"),
    # Null where no price is known.
    Column("cost_nanousd", BigInteger, nullable=True),
    Column("cost_basis", Code, nullable=True),
    Column("price_version", Code, nullable=True),
    Column("labels", Json, nullable=True),
    # Those of the labels that are part of the key of the hourly sums.
    Column("summed_labels", Json, nullable=True),
    # `request`, or `late` for usage that came after the request `origin_id` had ended.
    Column("kind", Code, nullable=False, server_default="request"),
    Column("origin_id", Id, nullable=True),
    # What it held of each limit, by the key of its counter.
    Column("limits", Json, nullable=True),
    # Ids are UUIDv7, so the order of ids is the order of time: it serves listing and pruning without a further index.
    Index("ix_requests_token_id_id", "token_id", "id"),
    Index("ix_requests_project_id_id", "project_id", "id"),
    Index("ix_requests_outcome_id", "outcome", "id"),
    # A provider's ids are random: an index of all of them costs each request a page of its own, 20 µs on SQLite. People
    # look for requests that failed. MySQL and MariaDB have no partial indexes, and index all.
    Index(
        "ix_requests_provider_request_id_id",
        "provider_request_id",
        "id",
        sqlite_where=text("outcome <> 'ok'"),
        postgresql_where=text("outcome <> 'ok'"),
    ),
)

#: Upper bounds of the classes of duration in the hourly sums, in milliseconds; the last class has none.
DURATIONS: tuple[int, ...] = (
    *(50, 100, 200, 400, 700, 1000, 1500, 2000, 3000, 5000, 10000, 20000, 30000, 60000, 120000),
)
#: The columns that count the requests of each class.
DURATION_COLUMNS = (*(f"duration_{bound}" for bound in DURATIONS), "duration_more")

_SUMS_BEFORE = ("requests", "errors", "input_tokens", "output_tokens", "cached_tokens", "pruned", "client_closed")
_SUMS_SINCE = (
    *("unmetered", "estimated", "unpriced", "cache_write_tokens", "cache_write_1h_tokens", "reasoning_tokens"),
    *("cost_nanousd", *DURATION_COLUMNS, "pruned_late", *DETAIL_SUMS),
)
#: The columns that are sums over settled requests that are not void.
SUMS = tuple(name for name in (*_SUMS_BEFORE, *_SUMS_SINCE) if name not in ("pruned", "pruned_late"))

#: The columns that describe a series.
SERIES = ("provider", "answered_model", "requested_model", "labels")

# Sums per hour, token and series; survives the pruning of `requests`. A series is a combination of provider, answered
# model, requested model and summed labels; its key is a digest of them. `pruned` says how many requests have no row any
# more, `pruned_late` how many rows of late usage were deleted. Servers of the release before write rows whose key is
# the answered model, and whose provider is null: so the column of the key is called `model`.
usage_hourly = Table(
    "usage_hourly",
    metadata,
    Column("hour", Timestamp, primary_key=True),
    Column("token_id", Id, primary_key=True),
    Column("model", Name, primary_key=True),
    Column("project_id", Id, nullable=False),
    *(
        Column(name, BigInteger, nullable=False, server_default="0" if name in ("pruned", "client_closed") else None)
        for name in _SUMS_BEFORE
    ),
    Column("provider", Code, nullable=True),
    Column("answered_model", Name, nullable=True),
    Column("requested_model", Name, nullable=True),
    Column("labels", Json, nullable=True),
    *(Column(name, BigInteger, nullable=False, server_default="0") for name in _SUMS_SINCE),
    Index("ix_usage_hourly_token_id_hour", "token_id", "hour"),
    Index("ix_usage_hourly_project_id_hour", "project_id", "hour"),
)

# Sums per day, made of the hourly ones. `scope` is a project's id; empty for the whole proxy, without labels; or
# `label.` and a key for the whole proxy, with this label alone. `series` is the key of one of the hourly rows.
usage_daily = Table(
    "usage_daily",
    metadata,
    Column("scope", Name, primary_key=True),
    Column("day", Timestamp, primary_key=True),
    Column("series", Name, primary_key=True),
    Column("provider", Code, nullable=True),
    Column("answered_model", Name, nullable=False),
    Column("requested_model", Name, nullable=True),
    Column("labels", Json, nullable=True),
    # Servers of the release before write days without details.
    *(Column(name, BigInteger, nullable=False, server_default="0" if name in DETAIL_SUMS else None) for name in SUMS),
)

# Days that have ended. `written` says that the sums of the day are in `usage_daily`. A transaction that changes hourly
# sums of the day later deletes this row.
usage_days = Table(
    "usage_days",
    metadata,
    Column("day", Timestamp, primary_key=True),
    Column("marked_at", Timestamp, nullable=False),
    Column("written", Boolean, nullable=False),
)

# The values of labels that the sums distinguish. The id is the day, a digest of project and key, and a digest of the
# value: all that is asked is how many there are, and whether one is there.
label_values = Table("label_values", metadata, Column("id", Code, primary_key=True))

# Limits of a token, a project, or the whole proxy (then `subject` is empty).
limits = Table(
    "limits",
    metadata,
    Column("id", Id, primary_key=True),
    Column("scope", Code, nullable=False),
    Column("subject", Id, nullable=False, index=True),
    Column("metric", Code, nullable=False),
    # A period; the column is not called `window`, which is a reserved word of MySQL.
    Column("period", Code, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("models", Json, nullable=True),
    Column("policy", Code, nullable=False),
    Column("wait_ms", Integer, nullable=False),
    Column("warn_at", SmallInteger, nullable=True),
    Column("allow_unpriced", Boolean, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Column("updated_at", Timestamp, nullable=False),
)

# What each limit has counted, by window. The id is the limit's id, a space, and the start of the window, so that rows
# are locked in one order by one column. No foreign key: a settlement may come after its limit was deleted.
limit_counters = Table(
    "limit_counters",
    metadata,
    Column("id", Code, primary_key=True),
    Column("limit_id", Id, nullable=False, index=True),
    Column("started_at", Timestamp, nullable=True, index=True),
    *(Column(name, BigInteger, nullable=False) for name in ("used", "reserved", "opening", "unknown", "unpriced")),
)

# Which project created an object that a provider keeps, such as a file or a batch: other projects must not reach it. No
# foreign keys: a row is written with the settlement of a request.
provider_objects = Table(
    "provider_objects",
    metadata,
    Column("provider", Code, primary_key=True),
    Column("object_id", Name, primary_key=True),
    Column("kind", Code, nullable=False),
    Column("project_id", Id, nullable=False, index=True),
    Column("token_id", Id, nullable=False),
    Column("request_id", Id, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    # Null if its usage comes with its request, or it has none. Empty if its usage comes later; then the id of the
    # ledger row that has it, or of the request that saw that there is none.
    Column("usage_id", Id, nullable=True),
    Index(
        "ix_provider_objects_usage_id_created_at",
        "usage_id",
        "created_at",
        sqlite_where=text("usage_id = ''"),
        postgresql_where=text("usage_id = ''"),
    ),
)

# Calls of the management API that changed something or were refused, append-only. The row of a change is written in the
# transaction of the change.
audit = Table(
    "audit",
    metadata,
    # UUIDv7, so the order of ids is the order of time.
    Column("id", Id, primary_key=True),
    Column("occurred_at", Timestamp, nullable=False),
    # Who: the management token has no name of its own. Empty if nobody was authenticated.
    Column("actor", Name, nullable=False),
    # From where: the client's address behind TRUSTED_PROXIES.
    Column("address", Code, nullable=False),
    # What: the operation's name in the OpenAPI document; empty for a call that is no operation.
    Column("operation", Code, nullable=False),
    # On what: its kind and its id; empty if the call names none.
    Column("resource", Code, nullable=False),
    Column("resource_id", Name, nullable=False),
    # `accepted` or `refused`, the status of the answer, and the code of the error, empty if there was none.
    Column("outcome", Code, nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("error", Code, nullable=False),
    # The fields that changed, as JSON objects without secrets; null if there is nothing to show.
    Column("before", Json, nullable=True),
    Column("after", Json, nullable=True),
    Index("ix_audit_resource_id_id", "resource_id", "id"),
)

# Requests that were refused before their admission, append-only, if `RECORD_REFUSALS` is set. No foreign keys.
refusals = Table(
    "refusals",
    metadata,
    # UUIDv7, so the order of ids is the order of time.
    Column("id", Id, primary_key=True),
    Column("refused_at", Timestamp, nullable=False),
    # Empty if the token is not known.
    Column("token_id", Id, nullable=False),
    Column("project_id", Id, nullable=False),
    Column("provider", Code, nullable=False),
    Column("method", Code, nullable=False),
    Column("path", LongText, nullable=False),
    Column("code", Code, nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("model", Name, nullable=False),
    Column("address", Code, nullable=False),
    Column("limit_id", Id, nullable=True),
    Index("ix_refusals_token_id_id", "token_id", "id"),
    Index("ix_refusals_project_id_id", "project_id", "id"),
    Index("ix_refusals_code_id", "code", "id"),
)
