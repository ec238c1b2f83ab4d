"""A server of one process reads its provider file again, while clients stream."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import trio

from benchmarks.processes import Upstream
from llm_proxy.cli.client import ManagementClient
from llm_proxy.cli.failures import CommandFailed
from tests.databases.kinds import on
from tests.databases.scratch import Scratch
from tests.harness.deployment import UPSTREAM_KEY, Deployment, chat_body, chat_headers
from tests.harness.server import MANAGEMENT_TOKEN, StartServer

FIRST = """
apis:
  openai:
    base_url: {url}
"""
SECOND = """
  second:
    base_url: {url}
    allowed_endpoints: [/v1/chat/completions]
"""


@pytest.fixture
def providers(tmp_path: Path, upstream: Upstream) -> Path:
    file = tmp_path / "providers.yaml"
    file.write_text(FIRST.format(url=upstream.url))
    return file


@on("sqlite", "postgres")
async def test_a_reload_adds_a_provider_and_no_request_fails(
    migrated_database: Scratch, start_server: StartServer, upstream: Upstream, providers: Path
) -> None:
    server = start_server(migrated_database.env, {"API_CONFIG_PATH": str(providers)})
    deployment = Deployment(server, upstream)
    secret = deployment.new_secret()
    done = trio.Event()
    answers: list[tuple[int, bool]] = []

    async def stream() -> None:
        while not done.is_set():
            response = await deployment.chat(secret, stream=True)
            answers.append((response.status, response.complete))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(stream)
        for number in range(6):
            text = FIRST.format(url=upstream.url) + SECOND.format(url=upstream.url) * (number % 2)
            await trio.to_thread.run_sync(providers.write_text, text + f"    # {number}\n")
            server.process.signal(signal.SIGHUP)
            await trio.sleep(0.1)
        done.set()
    await trio.to_thread.run_sync(server.wait_said, "provider and price files reloaded")
    assert set(answers) == {(200, True)}

    project = deployment.new_project(provider="second", api_key=UPSTREAM_KEY)
    other = deployment.new_secret(project["id"])
    response = await server.request("POST", "/second/v1/chat/completions", chat_headers(other), chat_body())
    assert response.status == 200
    assert 'provider="second"' in server.call("GET", "/metrics").content
    assert server.stop() == 0


#: How an error begins that shows one mistake a line.
SEVERAL = r"nothing was changed: \d settings are wrong:\n  "


@on("sqlite")
def test_a_wrong_file_changes_nothing_and_every_mistake_is_shown(
    migrated_database: Scratch, start_server: StartServer, upstream: Upstream, providers: Path
) -> None:
    prices = providers.with_name("prices.yaml")
    prices.write_text("prices: {openai: {m: {input: 1}}}")
    files = {"API_CONFIG_PATH": str(providers), "PRICES_PATH": str(prices)}
    server = start_server(migrated_database.env, files)
    with ManagementClient(server.url, MANAGEMENT_TOKEN) as client:
        read = {"provider_file": str(providers), "price_file": str(prices)}
        assert client.post("/manage/reload") == {"providers": ["openai"], **read}
        prices.write_text("prices: {openai: {m: {inptu: 1}, n: {input: much}}}")
        with pytest.raises(CommandFailed, match=rf"{SEVERAL}.*did you mean input.*\n  .*n\.input='much'"):
            client.post("/manage/reload")
        providers.write_text("apis: {openai: {base_url: 'ftp://x', allowed_method: [GET]}}")
        with pytest.raises(CommandFailed, match=rf"{SEVERAL}.*base_url.*\n  .*allowed_method"):
            client.post("/manage/reload")
    server.process.signal(signal.SIGHUP)
    server.wait_said("the provider or price file is wrong, and nothing was changed")
    deployment = Deployment(server, upstream)
    assert trio.run(deployment.chat, deployment.new_secret()).status == 200
    assert server.stop() == 0
