"""Every metric, declared once."""

from __future__ import annotations

from typing import Final, Literal

from attrs import frozen

PREFIX: Final = "llm_proxy_"

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
        kind: Prometheus' type.
        text: one sentence that explains it.
        over_workers: how the values of several workers are combined: their sum, the lowest, the highest, or the value
            of the worker that answers, if all have the same.
        bounds: upper bounds of a histogram, inclusive and ascending, without the last bucket.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[Label, ...] = ()
    over_workers: Literal["sum", "lowest", "highest", "any"] = "sum"
    bounds: tuple[float, ...] = ()

    @property
    def is_counter(self) -> bool:
        """Whether its values stay when the process ends: a counter or a histogram."""
        return self.kind != "gauge"

    @property
    def size(self) -> int:
        """Number of cells of a series: for a histogram, one for each bucket and one for the sum."""
        return len(self.bounds) + 2 if self.kind == "histogram" else 1


_PROVIDER: Final = Label("provider", "the name of a configured provider, or `other`")
WORKER: Final = Label("worker", "the number of the worker, from 0")

REQUESTS: Final = Family(
    "llm_proxy_requests",
    "counter",
    "Admitted requests that have ended.",
    (
        _PROVIDER,
        Label(
            "outcome",
            "`ok`, `rejected`, `client_closed`, `upstream_error`, `upstream_timeout`, `proxy_error`, `void`, `unknown` "
            "or `other`",
        ),
        Label("status", "`1xx` to `5xx`, or `none` if nothing was sent to the client"),
    ),
)
DURATION: Final = Family(
    "llm_proxy_request_duration_seconds",
    "histogram",
    "Time from a request's arrival to its end.",
    (_PROVIDER,),
    bounds=_DURATIONS,
)
FIRST_BYTE: Final = Family(
    "llm_proxy_time_to_first_byte_seconds",
    "histogram",
    "Time from a request's arrival to the first byte of the response body.",
    (_PROVIDER,),
    bounds=_DURATIONS,
)
TOKENS: Final = Family(
    "llm_proxy_tokens",
    "counter",
    "Tokens that providers reported.",
    (_PROVIDER, Label("kind", "`input`, `output` or `cached`")),
)
REFUSALS: Final = Family(
    "llm_proxy_refusals",
    "counter",
    "Requests that the proxy refused, by error code.",
    (Label("code", "an error code, such as `token_invalid`"),),
)
UPSTREAM_REQUESTS: Final = Family(
    "llm_proxy_upstream_in_flight_requests", "gauge", "Requests that are in flight to a provider.", (_PROVIDER,)
)
UPSTREAM_CONNECTIONS: Final = Family(
    "llm_proxy_upstream_connections",
    "gauge",
    "Connections to providers by state.",
    (Label("state", "`in_use` or `idle`"),),
)

DATABASE_UP: Final = Family(
    "llm_proxy_database_up", "gauge", "Whether the last transaction of the ledger was committed.", (), "lowest"
)
DATABASE_INFO: Final = Family(
    "llm_proxy_database_info",
    "gauge",
    "Kind of the database; always 1.",
    (Label("driver", "`sqlite`, `postgres` or `mysql`"),),
    "any",
)
CONNECTIONS: Final = Family(
    "llm_proxy_database_connections",
    "gauge",
    "Open connections to the database by state.",
    (Label("state", "`in_use` or `idle`"),),
)
CONNECTIONS_LIMIT: Final = Family(
    "llm_proxy_database_connections_limit", "gauge", "Maximum number of open connections."
)
CONNECTIONS_WAITING: Final = Family(
    "llm_proxy_database_connections_waiting_tasks", "gauge", "Tasks that wait for a free connection."
)
TRANSACTIONS: Final = Family(
    "llm_proxy_database_transactions",
    "counter",
    "Transactions that were committed.",
    (Label("kind", "`read` or `write`"),),
)
LAST_TRANSACTION: Final = Family(
    "llm_proxy_database_last_transaction_timestamp_seconds",
    "gauge",
    "When a transaction last succeeded, in seconds since 1970.",
    (),
    "lowest",
)
TRANSACTION_SECONDS: Final = Family(
    "llm_proxy_database_transaction_seconds",
    "histogram",
    "Duration of a shared transaction of the ledger, with the wait for its thread.",
    bounds=_TRANSACTIONS,
)
BATCH_ADMITTED: Final = Family(
    "llm_proxy_database_batch_admitted_requests",
    "histogram",
    "Requests admitted by one shared transaction.",
    bounds=_BATCHES,
)
BATCH_SETTLED: Final = Family(
    "llm_proxy_database_batch_settled_requests",
    "histogram",
    "Requests settled by one shared transaction.",
    bounds=_BATCHES,
)
WAITING: Final = Family("llm_proxy_database_waiting_requests", "gauge", "Requests that wait for their admission.")
UNSETTLED: Final = Family(
    "llm_proxy_database_unsettled_requests", "gauge", "Settlements that are not in the database yet."
)
SETTLE_LAG: Final = Family(
    "llm_proxy_database_settle_lag_seconds",
    "gauge",
    "Age of the oldest settlement that is not in the database yet; 0 if all are.",
    (),
    "highest",
)
GRACE_ADMISSIONS: Final = Family(
    "llm_proxy_database_grace_admissions", "counter", "Requests that were admitted while the database was unavailable."
)
SPOOLED: Final = Family(
    "llm_proxy_database_spooled_requests",
    "gauge",
    "Requests in the spool: admitted or ended while the database was unavailable, and not written to it yet.",
)
PRUNED: Final = Family(
    "llm_proxy_database_pruned_requests", "counter", "Rows of the ledger that were deleted after `LEDGER_RETENTION`."
)
LAST_PRUNING: Final = Family(
    "llm_proxy_database_last_pruning_timestamp_seconds",
    "gauge",
    "When a worker last completed a deletion of old rows, in seconds since 1970; 0 if never.",
    (),
    "highest",
)
RETRIES: Final = Family(
    "llm_proxy_database_retries",
    "counter",
    "Transactions that were retried, by cause.",
    (Label("cause", "`contention`, `disconnected` or `read_only`"),),
)
FAILURES: Final = Family(
    "llm_proxy_database_failures",
    "counter",
    "Transactions that failed after all retries, by cause.",
    (
        Label(
            "cause",
            "`commit_unknown`, `contention`, `disconnected`, `duplicate`, `read_only`, `reference`, `refused`, "
            "`schema`, `unanswered` or `unavailable`",
        ),
    ),
)
SCHEMA_REVISION: Final = Family(
    "llm_proxy_database_schema_revision", "gauge", "Current revision of the schema; 0 before the first.", (), "any"
)
SCHEMA_HEAD: Final = Family(
    "llm_proxy_database_schema_head", "gauge", "Latest revision of the schema that this version knows.", (), "any"
)
SIZE: Final = Family("llm_proxy_database_size_bytes", "gauge", "Size of the database, without its log.", (), "any")
SQLITE_WAL: Final = Family(
    "llm_proxy_database_sqlite_wal_bytes", "gauge", "Size of the write-ahead log beside the file.", (), "any"
)
SQLITE_PAGES: Final = Family("llm_proxy_database_sqlite_pages", "gauge", "Pages of the file.", (), "any")
SQLITE_FREE_PAGES: Final = Family(
    "llm_proxy_database_sqlite_free_pages",
    "gauge",
    "Free pages of the file, which will be used again.",
    (),
    "any",
)

BUILD: Final = Family(
    "llm_proxy_build_info",
    "gauge",
    "Version of the program; always 1.",
    (Label("version", "of this program"),),
    "highest",
)
WORKERS: Final = Family("llm_proxy_workers", "gauge", "Worker processes that are alive.")
WORKER_STARTS: Final = Family("llm_proxy_worker_starts", "counter", "Worker processes that were started.")
LOG_LINES_LOST: Final = Family("llm_proxy_log_lines_lost", "counter", "Log lines that could not be written.")

#: The Prometheus library's metrics of a process, on Linux.
PROCESS: Final = (
    Family("llm_proxy_process_cpu_seconds", "counter", "User and system CPU time spent in seconds.", (WORKER,)),
    Family("llm_proxy_process_max_fds", "gauge", "Maximum number of open files.", (WORKER,)),
    Family("llm_proxy_process_open_fds", "gauge", "Open files, including connections.", (WORKER,)),
    Family("llm_proxy_process_resident_memory_bytes", "gauge", "Memory in use.", (WORKER,)),
    Family("llm_proxy_process_start_time_seconds", "gauge", "When it started, in seconds since 1970.", (WORKER,)),
    Family("llm_proxy_process_virtual_memory_bytes", "gauge", "Virtual memory.", (WORKER,)),
)

#: All metrics, in the order of the reference page.
SECTIONS: Final[dict[str, tuple[Family, ...]]] = {
    "Requests": (REQUESTS, DURATION, FIRST_BYTE, TOKENS, REFUSALS),
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
