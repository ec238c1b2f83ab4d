"""A server with two workers gets new settings: SIGHUP, while clients stream and no request is rejected."""

from __future__ import annotations

import http.client
import signal

import trio

from benchmarks.processes import Upstream
from tests.databases.kinds import on
from tests.databases.scratch import Scratch
from tests.harness.deployment import Deployment
from tests.harness.server import StartServer
from tests.scenarios.ledger_checks import outcomes, verify

PATIENCE = 120.0
CLIENTS = 6


@on("postgres", "mysql")
async def test_new_settings_reach_all_workers_and_no_request_fails(
    migrated_database: Scratch, start_server: StartServer, upstream: Upstream
) -> None:
    server = start_server(migrated_database.env, {"WORKERS": "2", "SHUTDOWN_GRACE": "20s"})
    dotenv = server.folder / ".env"
    deployment = Deployment(server, upstream)
    secret = deployment.new_secret(max_requests=100_000)
    done = trio.Event()
    whole = 0

    async def stream() -> None:
        nonlocal whole
        last = False
        while not last:
            last = done.is_set()
            response = await deployment.chat(secret, stream=True)
            assert (response.status, response.complete) == (http.client.OK, True)
            assert b"data: [DONE]" in response.body
            whole += 1

    async with trio.open_nursery() as nursery:
        for _ in range(CLIENTS):
            nursery.start_soon(stream)
        await trio.to_thread.run_sync(dotenv.write_text, "MAX_REQUEST_SIZE=10kB\n")
        server.process.signal(signal.SIGHUP)
        await trio.to_thread.run_sync(server.wait_said, "all workers are replaced", PATIENCE)
        done.set()
    assert (
        await server.request("POST", "/v1/chat/completions", [("Authorization", f"Bearer {secret}")], b"x" * 20_000)
    ).status == 413

    dotenv.write_text("MAX_REQUEST_SIZE=nonsense\n")
    server.process.signal(signal.SIGHUP)
    server.wait_said("the workers keep their current settings", PATIENCE)
    assert (await deployment.chat(secret)).status == http.client.OK
    assert server.stop() == 0
    assert outcomes(migrated_database.target) == {"ok": whole + 1}
    verify(migrated_database.env)
