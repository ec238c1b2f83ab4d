"""A limit is a number, not a guideline: exact over any number of processes and connections."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from benchmarks.processes import Process
from db.dsn.target import Target
from tests.databases.kinds import Kind
from tests.harness.deployment import Deployment
from tests.scenarios import ledger_checks

if TYPE_CHECKING:
    from tests.harness.server import Server, StartServer

LIMIT = 1000


def load(server: Server, secret: str, connections: int, requests: int) -> Process:
    return Process.start_python(
        "benchmarks.load",
        "--url",
        f"{server.url}/v1/chat/completions",
        "--token",
        secret,
        "--connections",
        str(connections),
        "--requests",
        str(requests),
    )


def test_a_limit_is_exact_over_processes_and_connections(
    start_server: StartServer,
    upstream: Any,
    migrated_env: dict[str, str],
    migrated_target: Target,
    database_kind: Kind,
) -> None:
    processes, connections = (1, 192) if database_kind is Kind.SQLITE else (3, 64)
    servers = [start_server(migrated_env) for _ in range(processes)]
    secret = Deployment(servers[0], upstream).new_secret(max_requests=LIMIT)

    each = 2 * LIMIT // processes
    generators = [load(server, secret, connections, each) for server in servers]
    reports: list[dict[str, Any]] = [generator.read_json(timeout=120) for generator in generators]
    for generator in generators:
        generator.wait()

    statuses: Counter[str] = Counter()
    for report in reports:
        statuses.update(report["statuses"])
    assert statuses == {"200": LIMIT, "429": processes * each - LIMIT}
    assert upstream.counts()["requests"] == LIMIT
    for server in servers:
        assert server.stop() == 0, server.output
        codes = {event.get("code") for event in server.events if event.get("status") == 429}
        assert codes <= {"request_limit_exceeded"}
    assert ledger_checks.outcomes(migrated_target) == {"ok": LIMIT}
    ledger_checks.verify(migrated_env)
