"""Two workers, one set of metrics: each worker answers for both, and for killed ones."""

from __future__ import annotations

import http.client
import os
import re
import signal
import time
from pathlib import Path

import trio

from benchmarks.processes import Upstream
from tests.databases.kinds import on
from tests.harness.deployment import Deployment
from tests.harness.server import Server, StartServer
from tests.scenarios.aftermath import wait_for

REQUESTS = 60
PATIENCE = 20.0


def metrics(server: Server) -> dict[str, float]:
    """All series of one scrape, which any of the workers may answer."""
    text = str(server.call("GET", "/metrics").content)
    return {name: float(value) for name, value in re.findall(r"^(\w\S*) (\S+)$", text, re.MULTILINE)}


def counts(found: dict[str, float]) -> dict[str, float]:
    """The series that may only grow. What a process has used of the CPU is its own, and so is its end."""
    lasting = re.compile(r"llm_proxy_(?!process_)\w+_(?:total|bucket|sum|count)\b")
    return {name: value for name, value in found.items() if lasting.match(name)}


def done(found: dict[str, float]) -> float:
    return sum(value for name, value in found.items() if name.startswith("llm_proxy_requests_total{"))


def workers(server: Server) -> dict[str, float]:
    """When each worker that a scrape shows has started, by its number."""
    return {
        name: value
        for name, value in metrics(server).items()
        if name.startswith("llm_proxy_process_start_time_seconds{")
    }


def children(server: Server) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()]


async def send(deployment: Deployment, secret: str, number: int) -> None:
    """Requests on connections of their own, so that both workers get some."""
    async with trio.open_nursery() as nursery:
        limit = trio.CapacityLimiter(8)

        async def one() -> None:
            async with limit:
                response = await deployment.chat(secret)
                assert response.status == 200

        for _ in range(number):
            nursery.start_soon(one)


@on("postgres")
async def test_every_scrape_sums_all_workers_and_counters_never_decrease(
    migrated_env: dict[str, str], start_server: StartServer, upstream: Upstream
) -> None:
    deployment = Deployment(start_server(migrated_env, {"WORKERS": "2"}), upstream)
    server = deployment.server
    secret = deployment.new_secret()
    wait_for(lambda: len(workers(server)) == 2 or None, PATIENCE, lambda: "two workers are not there")

    await send(deployment, secret, REQUESTS)
    wait_for(lambda: done(metrics(server)) == REQUESTS or None, PATIENCE, lambda: f"{metrics(server)}")
    seen = metrics(server)
    for _ in range(20):
        before, seen = seen, metrics(server)
        assert done(seen) == REQUESTS
        assert all(counts(seen)[name] >= value for name, value in counts(before).items())
    assert seen["llm_proxy_workers"] == 2
    assert seen["llm_proxy_worker_starts_total"] == 2
    assert seen["llm_proxy_database_up"] == 1
    assert seen["llm_proxy_database_connections_limit"] == 20
    assert seen['llm_proxy_upstream_in_flight_requests{provider="openai"}'] == 0
    assert seen['llm_proxy_request_duration_seconds_count{provider="openai"}'] == REQUESTS
    assert seen["llm_proxy_database_batch_admitted_requests_sum"] == REQUESTS

    started = workers(server)
    victim = children(server)[0]
    os.kill(victim, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while victim in children(server) or len(workers(server)) < 2 or workers(server) == started:
        assert time.monotonic() < deadline
        try:
            before, seen = seen, metrics(server)
        except (OSError, http.client.HTTPException):
            continue  # the one that was to answer is the one that was killed
        assert done(seen) == REQUESTS
        assert all(counts(seen)[name] >= value for name, value in counts(before).items())

    await send(deployment, secret, REQUESTS)
    wait_for(lambda: done(metrics(server)) == 2 * REQUESTS or None, PATIENCE, lambda: f"{metrics(server)}")
    for _ in range(10):
        seen = metrics(server)
        assert done(seen) == 2 * REQUESTS
    assert seen["llm_proxy_worker_starts_total"] == 3
    assert seen["llm_proxy_workers"] == 2
