"""HTTP/2 under TLS, from the client to the ledger: the same data plane with another framing."""
# ruff: noqa: ASYNC110 (what is waited for happens in another process)

from __future__ import annotations

import ssl
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trustme

from benchmarks.processes import Upstream
from tests.databases.kinds import Kind
from tests.databases.scratch import Databases
from tests.harness.deployment import UPSTREAM_KEY, chat_body, chat_headers, provider_settings
from tests.harness.server import MANAGEMENT_TOKEN, running_server
from tests.scenarios import ledger_checks
from tests.server.http2.client import connect_http2


@pytest.fixture
def secured(databases: Databases, upstream: Upstream, tmp_path: Path) -> Iterator[tuple[str, ssl.SSLContext, Any]]:
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost", "127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    leaf.private_key_pem.write_to_path(key)
    key.chmod(0o600)
    for part in leaf.cert_chain_pems:
        part.write_to_path(chain, append=True)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    settings = {
        **provider_settings(upstream),
        "ENABLE_TLS": "true",
        "TLS_CERT_FILE": str(chain),
        "TLS_KEY_FILE": str(key),
    }
    with databases.migrated(Kind.SQLITE) as scratch, running_server(scratch.env, settings, ready=False) as server:
        yield server.url, trusting, (server, scratch)


async def first_answer(client: httpx.AsyncClient) -> httpx.Response:
    """Ask whether the server is ready until it is there to answer."""
    with trio.fail_after(30):
        while True:
            try:
                return await client.get("/ready")
            except httpx.ConnectError:
                await trio.sleep(0.05)


async def test_http2_requests_and_streams_run_concurrently(
    secured: tuple[str, ssl.SSLContext, Any], upstream: Upstream
) -> None:
    url, trusting, (server, scratch) = secured
    async with httpx.AsyncClient(base_url=url, http1=False, http2=True, verify=trusting, timeout=20) as client:
        ready = await first_answer(client)
        assert (ready.status_code, ready.http_version) == (200, "HTTP/2")
        management = {"Authorization": f"Bearer {MANAGEMENT_TOKEN}"}
        project = await client.post("/manage/projects", headers=management, json={"name": "p", "api_key": UPSTREAM_KEY})
        wanted = {"project_id": project.json()["id"]}
        secret = (await client.post("/manage/tokens", headers=management, json=wanted)).json()["token"]

        answers: list[httpx.Response] = []

        async def ask(*, stream: bool) -> None:
            headers = dict(chat_headers(secret))
            answers.append(await client.post("/v1/chat/completions", headers=headers, content=chat_body(stream=stream)))

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(partial(ask, stream=bool(number % 2)))
        assert {answer.status_code for answer in answers} == {200}
        assert sum(answer.text.rstrip().endswith("data: [DONE]") for answer in answers) == 10

        # A body that no header announces, which HTTP/2 can have and HTTP/1.1 cannot, and no body at all.
        async def pieces() -> Any:
            yield chat_body()[:20]
            await trio.sleep(0.05)
            yield chat_body()[20:]

        headers = {**dict(chat_headers(secret)), "x-scripted-echo": "1"}
        echoed = await client.post("/v1/chat/completions", headers=headers, content=pieces())
        assert (echoed.status_code, echoed.content) == (200, chat_body())
        models = await client.get("/v1/models", headers=dict(chat_headers(secret)))
        assert models.status_code == 200
        refused = await client.get("/v1/models", headers={"Authorization": "Bearer nothing"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "token_invalid")
        # An open connection is served until the drain ends.
        upstream.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(ask, stream=False))
            await trio.to_thread.run_sync(lambda: upstream.wait(in_flight=1))
            server.terminate()
            with trio.fail_after(10):
                while (await client.get("/ready")).status_code != 503:
                    await trio.sleep(0.01)
            nursery.start_soon(partial(ask, stream=True))
            await trio.to_thread.run_sync(lambda: upstream.wait(in_flight=2))
            upstream.release()
        assert {answer.status_code for answer in answers} == {200}
    assert await server.ended() == 0, server.output
    assert ledger_checks.outcomes(scratch.target) == {"ok": 24}
    ledger_checks.verify(scratch.env)


async def test_http2_client_gets_100_continue_or_the_error(
    secured: tuple[str, ssl.SSLContext, Any],
) -> None:
    """Java's client waits for one of them before it sends its body."""
    url, trusting, (server, _) = secured
    async with httpx.AsyncClient(base_url=url, verify=trusting, timeout=20) as client:
        await first_answer(client)
        management = {"Authorization": f"Bearer {MANAGEMENT_TOKEN}"}
        project = await client.post("/manage/projects", headers=management, json={"name": "p", "api_key": UPSTREAM_KEY})
        wanted = {"project_id": project.json()["id"]}
        secret = (await client.post("/manage/tokens", headers=management, json=wanted)).json()["token"]
    with trio.fail_after(20):
        async with connect_http2(server.port, trusting) as streams:
            for token, status in [(secret, 200), ("unknown", 401)]:
                fields = [("expect", "100-continue"), *((name.lower(), value) for name, value in chat_headers(token))]
                number = await streams.ask("/v1/chat/completions", method="POST", extra=fields, end=False)
                if status == 200:
                    while not streams.replies[number].interim:
                        await streams.change()
                    await streams.send(number, chat_body(), end=True)
                reply = await streams.reply(number)
                assert (reply.status, reply.interim) == (status, ["100"] * (status == 200))
