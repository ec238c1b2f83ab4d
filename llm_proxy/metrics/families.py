"""Every metric, declared once."""

from __future__ import annotations

from typing import Final, Literal

from attrs import frozen

PREFIX: Final = "llm_proxy_"

#: Upper bounds in seconds. Answers of language models take from milliseconds (a refusal) to many minutes (reasoning).
_DURATIONS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TRANSACTIONS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
_BATCHES: Final = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)


@frozen
class Label:
    """What tells the series of a family apart; `values` says in words which there can be."""

    name: str
    values: str


@frozen
class Family:
    """One metric.

    Attributes:
        name: as it is shown, without the endings that a kind adds.
        kind: what Prometheus calls its type. Only counters and histograms outlive a worker.
        text: one sentence that explains it.
        labels: what tells its series apart.
        over_workers: the figure of a server with several workers: their sum, the lowest, the highest, or that of the
            worker that answers, where all would say the same.
        bounds: of a histogram: upper bounds, inclusive, ascending; what is above them goes into a last bucket.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[Label, ...] = ()
    over_workers: Literal["sum", "lowest", "highest", "any"] = "sum"
    bounds: tuple[float, ...] = ()

    @property
    def lasting(self) -> bool:
        """Whether its figures outlive the process that counted them."""
        return self.kind != "gauge"

    @property
    def size(self) -> int:
        """How many cells a series has: a histogram a count for each bucket, and the sum."""
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
        Label("status", "`1xx` to `5xx`, or `none` where the client was sent nothing"),
    ),
)
DURATION: Final = Family(
    "llm_proxy_request_duration_seconds",
    "histogram",
    "From a request's arrival to its end.",
    (_PROVIDER,),
    bounds=_DURATIONS,
)
FIRST_BYTE: Final = Family(
    "llm_proxy_time_to_first_byte_seconds",
    "histogram",
    "From a request's arrival to the first byte of the answer's body.",
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
    "Requests that the proxy answered itself, by error code.",
    (Label("code", "an error code, such as `token_invalid`"),),
)
UPSTREAM_REQUESTS: Final = Family(
    "llm_proxy_upstream_in_flight_requests", "gauge", "Requests that are with their provider.", (_PROVIDER,)
)
UPSTREAM_CONNECTIONS: Final = Family(
    "llm_proxy_upstream_connections",
    "gauge",
    "Connections to providers by state.",
    (Label("state", "`in_use` or `idle`"),),
)

DATABASE_UP: Final = Family(
    "llm_proxy_database_up", "gauge", "Whether the database took the last transaction of the ledger.", (), "lowest"
)
DATABASE_INFO: Final = Family(
    "llm_proxy_database_info",
    "gauge",
    "Which database it is; always 1.",
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
    "llm_proxy_database_connections_limit", "gauge", "Connections that may be open at the same time."
)
CONNECTIONS_WAITING: Final = Family(
    "llm_proxy_database_connections_waiting_tasks", "gauge", "Tasks that wait for a connection to be free."
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
    "Time that a shared transaction of the ledger took, from leaving the event loop to its commit.",
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
    "Age of the oldest settlement that is not in the database yet; 0 where there is none.",
    (),
    "highest",
)
GRACE_ADMISSIONS: Final = Family(
    "llm_proxy_database_grace_admissions", "counter", "Requests that were admitted while the database was away."
)
SPOOLED: Final = Family(
    "llm_proxy_database_spooled_requests",
    "gauge",
    "Requests that were admitted or have ended while the database was away, and are not in it yet.",
)
PRUNED: Final = Family(
    "llm_proxy_database_pruned_requests", "counter", "Rows of the ledger that were too old for it, and deleted."
)
LAST_PRUNING: Final = Family(
    "llm_proxy_database_last_pruning_timestamp_seconds",
    "gauge",
    "When a worker last looked through the old rows to the end, in seconds since 1970; 0 where none ever did.",
    (),
    "highest",
)
RETRIES: Final = Family(
    "llm_proxy_database_retries",
    "counter",
    "Transactions that were run again, by what went wrong.",
    (Label("cause", "`contention`, `disconnected` or `read_only`"),),
)
FAILURES: Final = Family(
    "llm_proxy_database_failures",
    "counter",
    "Transactions that failed for good, by what went wrong.",
    (
        Label(
            "cause",
            "`commit_unknown`, `contention`, `disconnected`, `duplicate`, `read_only`, `reference`, `refused`, "
            "`schema`, `unanswered` or `unavailable`",
        ),
    ),
)
SCHEMA_REVISION: Final = Family(
    "llm_proxy_database_schema_revision", "gauge", "The revision that the schema is at; 0 before the first.", (), "any"
)
SCHEMA_HEAD: Final = Family(
    "llm_proxy_database_schema_head", "gauge", "The revision that this version works with.", (), "any"
)
SIZE: Final = Family("llm_proxy_database_size_bytes", "gauge", "Size of the database, without its log.", (), "any")
SQLITE_WAL: Final = Family(
    "llm_proxy_database_sqlite_wal_bytes", "gauge", "Size of the write-ahead log beside the file.", (), "any"
)
SQLITE_PAGES: Final = Family("llm_proxy_database_sqlite_pages", "gauge", "Pages of the file.", (), "any")
SQLITE_FREE_PAGES: Final = Family(
    "llm_proxy_database_sqlite_free_pages",
    "gauge",
    "Pages of the file that hold nothing, and will be used again.",
    (),
    "any",
)

BUILD: Final = Family(
    "llm_proxy_build_info",
    "gauge",
    "The version that runs; always 1.",
    (Label("version", "of this program"),),
    "highest",
)
WORKERS: Final = Family("llm_proxy_workers", "gauge", "Worker processes that are alive.")
WORKER_STARTS: Final = Family("llm_proxy_worker_starts", "counter", "Worker processes that were started.")
LOG_LINES_LOST: Final = Family("llm_proxy_log_lines_lost", "counter", "Log lines that could not be written.")

#: The Prometheus library's own figures of a process, on Linux.
PROCESS: Final = (
    Family("llm_proxy_process_cpu_seconds", "counter", "User and system CPU time spent in seconds.", (WORKER,)),
    Family("llm_proxy_process_max_fds", "gauge", "Files that may be open.", (WORKER,)),
    Family("llm_proxy_process_open_fds", "gauge", "Files that are open, connections among them.", (WORKER,)),
    Family("llm_proxy_process_resident_memory_bytes", "gauge", "Memory that is in use.", (WORKER,)),
    Family("llm_proxy_process_start_time_seconds", "gauge", "When it started, in seconds since 1970.", (WORKER,)),
    Family("llm_proxy_process_virtual_memory_bytes", "gauge", "Memory that is addressed.", (WORKER,)),
)

#: All of them, in the order in which they are shown.
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
