"""The performance targets of the project. Parts check their results against these.

Each holds with everything on: durable ledger, exact limits, usage metering, metrics, a log line for each request; for
one worker unless it says otherwise; and for the median of at least five interleaved rounds. A ratio is to a reference
of the same run, so that it means the same on another machine.
"""

from __future__ import annotations

from benchmarks.databases import Kind

#: Requests per second of one instance on SQLite. The original requirement.
SEED_RATE = 100.0
#: What a flush takes on a slow disk, in milliseconds; on one like that SQLite must do as many too.
SLOW_FLUSH_MS = 5.0
#: Requests per second of two instances on one database, which must be more than one instance on SQLite was asked for.
SEED_RATE_OF_TWO_INSTANCES = 100.0
#: Requests per second of one instance on any database: an order of magnitude above what was asked for, and twice that.
RATE = 20 * SEED_RATE

#: CPU time per request over that of a bare ASGI application on stock Hypercorn, at 32 connections. A client's driver
#: costs CPU time that SQLite, which is a function call away, does not.
CPU_RATIO = {Kind.SQLITE: 0.6, Kind.POSTGRES: 0.8, Kind.MYSQL: 0.8, Kind.MARIADB: 0.8}

#: The same at one connection, where nothing is shared; and the added latency, median, over that application's own.
LONE_CPU_RATIO = {Kind.SQLITE: 1.0, Kind.POSTGRES: 1.5, Kind.MYSQL: 1.5, Kind.MARIADB: 1.5}
LONE_P50_RATIO = {Kind.SQLITE: 1.0, Kind.POSTGRES: 2.5, Kind.MYSQL: 2.5, Kind.MARIADB: 2.5}

#: Capacity of two workers over that of one: they share only the database.
TWO_WORKERS = 1.7
#: The cores that a fair trial of two workers takes: two for each, and one each for load and upstream with the database.
CORES_FOR_TWO_WORKERS = 6

#: Capacity over that of LiteLLM's proxy without its database: it is Python too, and has no ledger.
OVER_LITELLM = 25.0
#: Capacity over that of Portkey's gateway without keys: it is JavaScript, and has no ledger either.
OVER_PORTKEY = 3.0
#: Requests per second over those of llm-proxy in Go, which has a counter in place of a ledger: at 32 connections, and
#: at one.
OVER_GO_LLM_PROXY = 0.75
LONE_OVER_GO_LLM_PROXY = 0.6
#: CPU time per request over that of GoModel without tokens, at 32 connections and at one.
CPU_OVER_GOMODEL = 0.8
LONE_CPU_OVER_GOMODEL = 1.2

#: Added latency, median, at 1 connection, in milliseconds: two durable commits and one more hop. A person waits for
#: hundreds of milliseconds at the least for any model's answer.
ADDED_P50_MS = {Kind.SQLITE: 2.0, Kind.POSTGRES: 4.0, Kind.MYSQL: 4.0, Kind.MARIADB: 4.0}
#: Added p99 over added p50 at 32 connections, at a rate that can be sustained: slow requests are rare, and not slow by
#: much.
ADDED_P99_OVER_P50 = 5.0

#: Added time to the first byte of one stream, median, in milliseconds: one durable commit and one more hop.
ADDED_FIRST_BYTE_MS = 3.0
#: Added CPU time per chunk over what bare Hypercorn spends on sending the same chunks: a reader, a meter and a writer
#: in the time that the usual server needs for a writer.
CHUNK_CPU_RATIO = 1.0
#: Slow streams that one worker holds at the same time, none of them dropped.
STREAMS = 1000
#: Memory of each of them, in KB.
STREAM_KB = 120.0

#: Requests per second with a million ledger rows over that with a thousand: indices, and no scans.
MANY_ROWS = 0.9
#: Requests per second through one token over that through many: a limited token is one row that all requests change.
HOT_TOKEN = 0.9
#: CPU time per request with three limits of money over that without any, at 32 connections: their counters are three
#: more rows of the transaction.
LIMITED_CPU = 1.25
#: Requests per second of several instances with such limits over that without: all requests change the same counters.
LIMITED_RATE = 0.75
#: CPU time per request at 512 connections over that at 32: nothing looks at every connection for each request.
MANY_CONNECTIONS = 1.3

#: Growth of resident memory, in bytes for each request. The least that a request can leave behind is an object of
#: Python's: 32 bytes for a number in a list, 100 for an id in a dictionary, thousands for a task.
BYTES_PER_REQUEST = 24.0

#: How far what the model of scaling says of eight processes may be from what they do. It is there to choose between one
#: machine and ten, not between ten and eleven.
MODEL_ERROR = 0.35

#: Rows that one page of a report or a list reads, whatever it is filtered and grouped by, with a million in the ledger.
ROWS_OF_A_PAGE = 50_000
#: Growth of the server's memory, in MB, while a million requests are sent as CSV: those of two pages, and no more.
CSV_MB = 8.0
