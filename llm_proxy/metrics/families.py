"""Every metric, declared once."""

from __future__ import annotations

from typing import Final, Literal

from attrs import frozen

OverWorkers = Literal["sum", "lowest", "highest", "any"]

#: Upper bounds in seconds. Responses of language models take from milliseconds to many minutes (reasoning).
_DURATIONS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TRANSACTIONS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
_BATCHES: Final = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)


@frozen
class Label:
    """A label; `values` describes its values for the reference page."""

    name: str
    values: str


@frozen
class Family:
    """One metric.

    Attributes:
        name: as shown, without the suffixes of its kind.
        over_workers: how the values of several workers are combined: their sum, the lowest, the highest, or the value
            of the worker that answers, if all have the same.
        bounds: upper bounds of a histogram, inclusive and ascending, without the last bucket.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[Label, ...] = ()
    over_workers: OverWorkers = "sum"
    bounds: tuple[float, ...] = ()

    @property
    def is_counter(self) -> bool:
        """Whether its values stay when the process ends."""
        return self.kind != "gauge"

    @property
    def size(self) -> int:
        """Number of cells of a series: for a histogram, one for each bucket and one for the sum."""
        return len(self.bounds) + 2 if self.kind == "histogram" else 1


def _counter(name: str, text: str, *labels: Label) -> Family:
    return Family(name, "counter", text, labels)


def _gauge(name: str, text: str, *labels: Label, over_workers: OverWorkers = "sum") -> Family:
    return Family(name, "gauge", text, labels, over_workers)


def _histogram(name: str, text: str, bounds: tuple[float, ...], *labels: Label) -> Family:
    return Family(name, "histogram", text, labels, bounds=bounds)


_PROVIDER: Final = Label("provider", "the name of a configured provider, or `other`")
_STATE: Final = Label("state", "`in_use` or `idle`")
_OUTCOME: Final = Label(
    "outcome",
    "`ok`, `rejected`, `client_closed`, `upstream_error`, `upstream_timeout`, `proxy_error`, `void`, `unknown` "
    "or `other`",
)
_STATUS: Final = Label("status", "`1xx` to `5xx`, or `none` if nothing was sent to the client")
_FAILURE: Final = Label(
    "cause",
    "`commit_unknown`, `contention`, `disconnected`, `duplicate`, `read_only`, `reference`, `refused`, "
    "`schema`, `unanswered` or `unavailable`",
)
WORKER: Final = Label("worker", "the number of the worker, from 0")

REQUESTS: Final = _counter("llm_proxy_requests", "Admitted requests that have ended.", _PROVIDER, _OUTCOME, _STATUS)
DURATION: Final = _histogram(
    "llm_proxy_request_duration_seconds", "Time from a request's arrival to its end.", _DURATIONS, _PROVIDER
)
FIRST_BYTE: Final = _histogram(
    "llm_proxy_time_to_first_byte_seconds",
    "Time from a request's arrival to the first byte of the response body.",
    _DURATIONS,
    _PROVIDER,
)
TOKENS: Final = _counter(
    "llm_proxy_tokens",
    "Tokens of requests, reported or estimated.",
    _PROVIDER,
    Label("kind", "`input`, `output` or `cached`"),
)
UNPRICED: Final = _counter(
    "llm_proxy_unpriced_requests", "Requests that used something and whose cost is unknown.", _PROVIDER
)
COST: Final = _counter(
    "llm_proxy_cost_usd", "Cost of requests in USD, as far as it is known when they end: without late usage.", _PROVIDER
)
ESTIMATED: Final = _counter(
    "llm_proxy_estimated_requests", "Requests whose token usage was not reported and is an estimate.", _PROVIDER
)
UNMETERED: Final = _counter(
    "llm_proxy_unmetered_requests",
    "Requests whose response may have had token usage that could not be read.",
    _PROVIDER,
)
LATE_USAGE: Final = _counter(
    "llm_proxy_late_usage",
    "Usage of background responses, runs and batches that came after their request.",
    Label(
        "result",
        "`booked`; `lost` if it was not seen within 25 hours, `failed` if an object could not be asked for it, both "
        "with `LATE_USAGE_POLL` only",
    ),
)
REFUSALS: Final = _counter(
    "llm_proxy_refusals",
    "Requests that the proxy refused, by error code.",
    Label("code", "an error code, such as `token_invalid`"),
)
REFUSALS_UNRECORDED: Final = _counter(
    "llm_proxy_refusals_unrecorded",
    "Refused requests that are missing in the table `refusals` because there were too many; 0 without "
    "`RECORD_REFUSALS`.",
)
LIMIT_WARNINGS: Final = _counter(
    "llm_proxy_limit_warnings",
    "Windows of limits in which `warn_at` or the amount of a `warn` limit was reached, counted once by each process.",
    Label("scope", "`token`, `project` or `proxy`"),
)
RESERVATION_EXCEEDED: Final = _counter(
    "llm_proxy_reservation_exceeded",
    "Reservations that were smaller than what the request used in the end. It is charged anyway.",
    _PROVIDER,
)
UPSTREAM_REQUESTS: Final = _gauge(
    "llm_proxy_upstream_in_flight_requests", "Requests that are in flight to a provider.", _PROVIDER
)
UPSTREAM_CONNECTIONS: Final = _gauge("llm_proxy_upstream_connections", "Connections to providers by state.", _STATE)

DATABASE_UP: Final = _gauge(
    "llm_proxy_database_up", "Whether the last transaction of the ledger was committed.", over_workers="lowest"
)
DATABASE_INFO: Final = _gauge(
    "llm_proxy_database_info",
    "Kind of the database; always 1.",
    Label("driver", "`sqlite`, `postgres` or `mysql`"),
    over_workers="any",
)
CONNECTIONS: Final = _gauge("llm_proxy_database_connections", "Open connections to the database by state.", _STATE)
CONNECTIONS_LIMIT: Final = _gauge("llm_proxy_database_connections_limit", "Maximum number of open connections.")
CONNECTIONS_WAITING: Final = _gauge(
    "llm_proxy_database_connections_waiting_tasks", "Tasks that wait for a free connection."
)
TRANSACTIONS: Final = _counter(
    "llm_proxy_database_transactions", "Transactions that were committed.", Label("kind", "`read` or `write`")
)
LAST_TRANSACTION: Final = _gauge(
    "llm_proxy_database_last_transaction_timestamp_seconds",
    "When a transaction last succeeded, in seconds since 1970.",
    over_workers="lowest",
)
TRANSACTION_SECONDS: Final = _histogram(
    "llm_proxy_database_transaction_seconds",
    "Duration of a shared transaction of the ledger, with the wait for its thread.",
    _TRANSACTIONS,
)
BATCH_ADMITTED: Final = _histogram(
    "llm_proxy_database_batch_admitted_requests", "Requests admitted by one shared transaction.", _BATCHES
)
BATCH_SETTLED: Final = _histogram(
    "llm_proxy_database_batch_settled_requests", "Requests settled by one shared transaction.", _BATCHES
)
WAITING: Final = _gauge("llm_proxy_database_waiting_requests", "Requests that wait for their admission.")
UNSETTLED: Final = _gauge("llm_proxy_database_unsettled_requests", "Settlements that are not in the database yet.")
SETTLE_LAG: Final = _gauge(
    "llm_proxy_database_settle_lag_seconds",
    "Age of the oldest settlement that is not in the database yet; 0 if all are.",
    over_workers="highest",
)
GRACE_ADMISSIONS: Final = _counter(
    "llm_proxy_database_grace_admissions", "Requests that were admitted while the database was unavailable."
)
SPOOLED: Final = _gauge(
    "llm_proxy_database_spooled_requests",
    "Requests in the spool: admitted or ended while the database was unavailable, and not written to it yet.",
)
PRUNED: Final = _counter(
    "llm_proxy_database_pruned_requests", "Rows of the ledger that were deleted after `LEDGER_RETENTION`."
)
LAST_PRUNING: Final = _gauge(
    "llm_proxy_database_last_pruning_timestamp_seconds",
    "When a worker last completed a deletion of old rows, in seconds since 1970; 0 if never.",
    over_workers="highest",
)
RETRIES: Final = _counter(
    "llm_proxy_database_retries",
    "Transactions that were retried, by cause.",
    Label("cause", "`contention`, `disconnected` or `read_only`"),
)
FAILURES: Final = _counter(
    "llm_proxy_database_failures", "Transactions that failed after all retries, by cause.", _FAILURE
)
SCHEMA_REVISION: Final = _gauge(
    "llm_proxy_database_schema_revision", "Current revision of the schema; 0 before the first.", over_workers="any"
)
SCHEMA_HEAD: Final = _gauge(
    "llm_proxy_database_schema_head", "Latest revision of the schema that this version knows.", over_workers="any"
)
SIZE: Final = _gauge("llm_proxy_database_size_bytes", "Size of the database, without its log.", over_workers="any")
SQLITE_WAL: Final = _gauge(
    "llm_proxy_database_sqlite_wal_bytes", "Size of the write-ahead log beside the file.", over_workers="any"
)
SQLITE_PAGES: Final = _gauge("llm_proxy_database_sqlite_pages", "Pages of the file.", over_workers="any")
SQLITE_FREE_PAGES: Final = _gauge(
    "llm_proxy_database_sqlite_free_pages", "Free pages of the file, which will be used again.", over_workers="any"
)

BUILD: Final = _gauge(
    "llm_proxy_build_info",
    "Version of the program; always 1.",
    Label("version", "of this program"),
    over_workers="highest",
)
WORKERS: Final = _gauge("llm_proxy_workers", "Worker processes that are alive.")
WORKER_STARTS: Final = _counter("llm_proxy_worker_starts", "Worker processes that were started.")
LOG_LINES_LOST: Final = _counter("llm_proxy_log_lines_lost", "Log lines that could not be written.")

#: The Prometheus library's metrics of a process, on Linux.
PROCESS: Final = (
    _counter("llm_proxy_process_cpu_seconds", "User and system CPU time spent in seconds.", WORKER),
    _gauge("llm_proxy_process_max_fds", "Maximum number of open files.", WORKER),
    _gauge("llm_proxy_process_open_fds", "Open files, including connections.", WORKER),
    _gauge("llm_proxy_process_resident_memory_bytes", "Memory in use.", WORKER),
    _gauge("llm_proxy_process_start_time_seconds", "When it started, in seconds since 1970.", WORKER),
    _gauge("llm_proxy_process_virtual_memory_bytes", "Virtual memory.", WORKER),
)

#: All metrics, in the order of the reference page.
SECTIONS: Final[dict[str, tuple[Family, ...]]] = {
    "Requests": (
        REQUESTS,
        DURATION,
        FIRST_BYTE,
        TOKENS,
        COST,
        UNPRICED,
        ESTIMATED,
        UNMETERED,
        LATE_USAGE,
        REFUSALS,
        REFUSALS_UNRECORDED,
    ),
    "Limits": (LIMIT_WARNINGS, RESERVATION_EXCEEDED),
    "Upstream": (UPSTREAM_REQUESTS, UPSTREAM_CONNECTIONS),
    "Database": (
        *(DATABASE_UP, DATABASE_INFO, LAST_TRANSACTION),
        *(CONNECTIONS, CONNECTIONS_LIMIT, CONNECTIONS_WAITING),
        *(TRANSACTIONS, RETRIES, FAILURES),
        *(TRANSACTION_SECONDS, BATCH_ADMITTED, BATCH_SETTLED),
        *(WAITING, UNSETTLED, SETTLE_LAG),
        *(GRACE_ADMISSIONS, SPOOLED),
        *(PRUNED, LAST_PRUNING),
        *(SCHEMA_REVISION, SCHEMA_HEAD),
        *(SIZE, SQLITE_WAL, SQLITE_PAGES, SQLITE_FREE_PAGES),
    ),
    "Process": (BUILD, WORKERS, WORKER_STARTS, LOG_LINES_LOST, *PROCESS),
}
