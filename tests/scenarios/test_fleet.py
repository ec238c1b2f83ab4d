"""Three servers on one database behind nginx, restarted one by one by the script of our page, under streaming load.

Both are run as documented: nginx with its configuration, and the script with a `systemctl` that
restarts servers of the test.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
from attrs import Factory, define

from benchmarks.ports import free_port
from benchmarks.processes import Upstream
from tests.databases.fixtures import lacking
from tests.databases.kinds import on
from tests.databases.scratch import Scratch
from tests.docs.blocks import blocks
from tests.harness import client
from tests.harness.deployment import Deployment, chat_body, chat_headers
from tests.harness.nginx import ADVICE, Nginx, find_nginx, running_nginx
from tests.harness.server import MANAGEMENT_TOKEN, ROOT, Server, StartServer
from tests.scenarios import ledger_checks

PAGE = ROOT / "docs" / "operations" / "upgrades.md"
REPLICAS = 3
STREAMS, LIMITED, LIMIT = 6, 2, 60
PATIENCE = 180.0
SETTINGS = {"SHUTDOWN_DELAY": "1s", "SHUTDOWN_GRACE": "60s", "TRUSTED_PROXIES": "127.0.0.1"}
#: Streams of half a second, so that some are under way whatever happens.
PACE = (("x-scripted-chunks", "10"), ("x-scripted-gap", "0.05"))

#: Leaves the name of a unit for the test, and waits until it has been restarted.
SYSTEMCTL = """\
#!/bin/sh
[ "$1" = restart ] || exit 64
touch "{folder}/restart-$2"
while [ -e "{folder}/restart-$2" ]; do sleep 0.05; done
"""


@define
class Fleet:
    """Servers behind nginx, and what their clients got."""

    nginx: Nginx
    servers: dict[int, Server]
    done: trio.Event = Factory(trio.Event)
    streams: list[client.Response] = Factory(list)
    limited: Counter[int] = Factory(Counter)

    async def chat(self, secret: str, *headers: tuple[str, str], stream: bool = False) -> client.Response:
        """One chat completion by way of nginx, on a connection of its own."""
        sent, body = chat_headers(secret, *headers), chat_body(stream=stream)
        return await client.exchange(self.nginx.url, "POST", "/v1/chat/completions", sent, body, self.nginx.tls)

    async def keep_streaming(self, secret: str) -> None:
        """Ask for one stream after another, and for a last one after all is done."""
        last = False
        while not last:
            last = self.done.is_set()
            self.streams.append(await self.chat(secret, *PACE, stream=True))

    async def keep_to_the_limit(self, secret: str) -> None:
        """Ask on, beyond a limit that is reached while servers come and go."""
        while not self.done.is_set() or self.limited.total() < LIMIT + 20:
            self.limited[(await self.chat(secret)).status] += 1
            await trio.sleep(0.05)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for something that comes about in other processes."""
        deadline = trio.current_time() + PATIENCE
        while not await trio.to_thread.run_sync(holds):
            assert trio.current_time() < deadline
            await trio.sleep(0.05)


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="llm-proxy-nginx-") as name:
        yield Path(name)


async def roll(fleet: Fleet, folder: Path, restart: Callable[[int], Server]) -> None:
    """Run the script of the page; the test is its systemd."""
    (script,) = [block.text for block in blocks(PAGE) if block.run == "roll"]
    assert "/etc/nginx/llm-proxy" in script
    (folder / "roll").write_text(script.replace("/etc/nginx/llm-proxy", str(fleet.nginx.replicas)))
    (folder / "systemctl").write_text(SYSTEMCTL.format(folder=folder))
    (folder / "systemctl").chmod(0o755)
    command = ["bash", str(folder / "roll"), *map(str, fleet.servers)]
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}

    async def obey() -> None:
        for port, before in tuple(fleet.servers.items()):
            asked = folder / f"restart-llm-proxy@{port}"
            await fleet.until(asked.exists)
            assert await before.stopped(PATIENCE) == 0, before.output
            fleet.servers[port] = await trio.to_thread.run_sync(restart, port)
            asked.unlink()

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(obey)
            ended = await trio.run_process(
                command, env=environment, capture_stdout=True, capture_stderr=True, check=False
            )
    assert ended.returncode == 0, ended.stderr.decode()


async def come_and_go(fleet: Fleet, start: Callable[[int], Server]) -> None:
    """Put a further server in, let it serve, and take it out again."""
    port = free_port()
    newcomer = fleet.servers[port] = await trio.to_thread.run_sync(start, port)
    await newcomer.ready(PATIENCE)
    fleet.nginx.put_in(port)
    await trio.to_thread.run_sync(fleet.nginx.reload)
    await fleet.until(lambda: newcomer.output.count('"outcome"') > STREAMS)
    fleet.nginx.take_out(port)
    await trio.to_thread.run_sync(fleet.nginx.reload)
    assert await fleet.servers.pop(port).stopped(PATIENCE) == 0, newcomer.output


async def revoke(fleet: Fleet, token: dict[str, str]) -> None:
    """Every server serves a token until one of them, whichever nginx asks, is told to revoke it."""
    headers, body = chat_headers(token["token"]), chat_body()

    async def statuses() -> set[int]:
        return {
            (await server.request("POST", "/v1/chat/completions", headers, body)).status
            for server in fleet.servers.values()
        }

    assert await statuses() == {200}
    done = await client.exchange(
        fleet.nginx.url,
        "DELETE",
        f"/manage/tokens/{token['id']}",
        [("Authorization", f"Bearer {MANAGEMENT_TOKEN}")],
        tls=fleet.nginx.tls,
    )
    assert done.status // 100 == 2, done.body
    assert await statuses() == {401}
    assert (await fleet.chat(token["token"])).status == 401


async def leave_a_stream(fleet: Fleet, secret: str) -> None:
    """Get the first piece of a stream that would take minutes, and leave."""
    endless = (("x-scripted-chunks", "1000"), ("x-scripted-gap", "0.5"))
    async with client.connect(fleet.nginx.url, fleet.nginx.tls) as connection:
        await connection.request("POST", "/v1/chat/completions", chat_headers(secret, *endless), chat_body(stream=True))
        assert (await connection.head()).status == 200
        async with aclosing(connection.chunks()) as pieces:
            received = b""
            while b"data: " not in received:
                received += await anext(pieces)


@on("postgres", "mysql")
async def test_a_rolling_restart_fails_no_request_and_loses_no_row(
    migrated_database: Scratch, start_server: StartServer, upstream: Upstream, folder: Path
) -> None:
    program = find_nginx()
    if program is None:
        lacking(ADVICE)

    def start(port: int) -> Server:
        return start_server(migrated_database.env, SETTINGS, port=port, ready=False)

    servers = {port: start(port) for port in [free_port() for _ in range(REPLICAS)]}
    for server in servers.values():
        await server.ready(PATIENCE)
    deployment = Deployment(next(iter(servers.values())), upstream)
    new_token = partial(trio.to_thread.run_sync, deployment.new_token)
    token, revoked = await new_token(), await new_token()
    limited = await trio.to_thread.run_sync(partial(deployment.new_secret, max_requests=LIMIT))

    with running_nginx(program, folder, *servers) as nginx:
        fleet = Fleet(nginx, servers)
        await leave_a_stream(fleet, token["token"])
        await fleet.until(lambda: ledger_checks.outcomes(migrated_database.target)["client_closed"] == 1)
        async with trio.open_nursery() as nursery:
            for _ in range(STREAMS):
                nursery.start_soon(fleet.keep_streaming, token["token"])
            for _ in range(LIMITED):
                nursery.start_soon(fleet.keep_to_the_limit, limited)
            await roll(fleet, folder, start)
            await come_and_go(fleet, start)
            await revoke(fleet, revoked)
            fleet.done.set()

    ends = Counter((answer.status, answer.complete, b"data: [DONE]" in answer.body) for answer in fleet.streams)
    assert ends.keys() == {(200, True, True)}, ends
    assert set(fleet.limited) == {200, 429}
    assert fleet.limited[200] == LIMIT
    for server in fleet.servers.values():
        server.terminate()
    for server in fleet.servers.values():
        assert await server.ended(PATIENCE) == 0, server.output
    settled = {"ok": len(fleet.streams) + LIMIT + REPLICAS, "client_closed": 1}
    assert ledger_checks.outcomes(migrated_database.target) == settled
    ledger_checks.verify(migrated_database.env)
