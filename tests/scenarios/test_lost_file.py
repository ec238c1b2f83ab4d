"""A SQLite file that is taken away under a running server."""

from __future__ import annotations

from pathlib import Path

import trio

from benchmarks.processes import Upstream
from tests.harness.deployment import UPSTREAM_KEY, Deployment, provider_settings
from tests.harness.server import running_server


async def test_a_moved_sqlite_file_is_noticed_without_traffic_and_so_is_its_return(tmp_path: Path) -> None:
    path = tmp_path / "llm-proxy.db"
    env = {"DB_DRIVER": "sqlite", "DATABASE_PATH": str(path), "LEDGER_HEARTBEAT": "500ms"}
    with (
        Upstream.start("--key", UPSTREAM_KEY) as upstream,
        running_server(env, provider_settings(upstream)) as server,
    ):
        deployment = Deployment(server, upstream)
        secret: str = await trio.to_thread.run_sync(deployment.new_secret)
        away = path.rename(tmp_path / "away.db")
        # Other components, such as retention, may meet it first, and have lines of their own.
        lost = f'"the database is away","source":"ledger","reason":"SQLite file {path} was deleted or replaced'
        await trio.to_thread.run_sync(server.wait_said, lost, 5)
        answer = await trio.to_thread.run_sync(lambda: server.call("GET", "/ready"))
        assert (answer.status, answer.content["failing"]) == (503, ["database", "writer"])
        assert (await deployment.chat(secret)).status == 503
        await trio.sleep(1)
        assert server.output.count('"the database is away"') == 1, "the log says so once"
        away.rename(path)
        await server.ready(5)
        assert (await deployment.chat(secret)).status == 200
        assert await server.stopped() == 0
