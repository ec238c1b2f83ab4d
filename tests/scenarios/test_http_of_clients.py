"""HTTP that real clients send: handshakes, offers of other protocols, expectations, half-closed connections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests.databases.kinds import on
from tests.harness import client
from tests.harness.deployment import Deployment, chat_body, chat_headers
from tests.scenarios import aftermath

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = on("sqlite")

CHAT = "/v1/chat/completions"
HANDSHAKE = (("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="))
"""What is left of it behind a reverse proxy that takes out hop-by-hop headers."""
UPGRADE = (("Connection", "Upgrade"), ("Upgrade", "WebSocket"))


def rows(deployment: Deployment, token_id: str) -> int:
    return sum(row["token_id"] == token_id for row in aftermath.every_row(deployment.server))


@pytest.mark.parametrize("headers", [UPGRADE, UPGRADE + HANDSHAKE, HANDSHAKE], ids=["upgrade", "whole", "stripped"])
async def test_a_websocket_handshake_is_answered_426_and_not_counted(
    deployment: Deployment, headers: Sequence[tuple[str, str]]
) -> None:
    token = await trio.to_thread.run_sync(deployment.new_token)
    async with client.connect(deployment.server.url) as connection:
        await connection.request("GET", "/v1/responses", [*chat_headers(token["token"]), *headers])
        answer = await connection.response()
        assert (answer.status, answer.json()["error"]["code"]) == (426, "upgrade_required")
        assert answer.header("x-should-retry") == "false"
        assert (answer.header("upgrade"), answer.header("connection")) == ("HTTP/1.1", "upgrade")
        # Codex continues over HTTP at once.
        await connection.request("POST", CHAT, chat_headers(token["token"]), chat_body())
        assert (await connection.response("POST")).status == 200
    await trio.to_thread.run_sync(aftermath.settled, deployment.server, token["id"], 1)
    assert await trio.to_thread.run_sync(aftermath.counter, deployment.server, token["id"]) == 1
    assert deployment.upstream.counts()["requests"] == 1


async def test_an_h2c_upgrade_is_ignored(deployment: Deployment) -> None:
    """Java's client makes it with its first request, `curl --http2` with every one."""
    secret = await trio.to_thread.run_sync(deployment.new_secret)
    offer = [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", "AAEAAEAAAAIAAAAA")]
    answer = await deployment.chat(secret, *offer)
    assert (answer.status, answer.complete) == (200, True)


async def test_an_absolute_form_target_is_served_like_its_path(deployment: Deployment) -> None:
    secret = await trio.to_thread.run_sync(deployment.new_secret)
    for target, status in [
        (f"{deployment.server.url}{CHAT}", 200),
        ("HTTP://proxy.example/v1/../manage/tokens", 400),
        (f"{deployment.server.url}/manage/tokens", 401),
    ]:
        answer = await deployment.server.request("POST", target, chat_headers(secret), chat_body())
        assert answer.status == status, target


async def test_a_header_with_an_underscore_is_accepted(deployment: Deployment) -> None:
    """Codex sends `session_id`."""
    secret = await trio.to_thread.run_sync(deployment.new_secret)
    assert (await deployment.chat(secret, ("session_id", "x"), ("Content_Length", "3"))).status == 200


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_half_closed_client_gets_its_response(deployment: Deployment, stream: bool, version: str) -> None:
    """As `nc -N` does, and old SOAP clients."""
    token = await trio.to_thread.run_sync(deployment.new_token)
    paced = (("x-scripted-chunks", "10"), ("x-scripted-gap", "0.02")) if stream else (("x-scripted-delay", "0.3"),)
    async with client.connect(deployment.server.url) as connection:
        request = client.encode("POST", CHAT, chat_headers(token["token"], *paced), chat_body(stream=stream))
        await connection.send(request.replace(b"HTTP/1.1", f"HTTP/{version}".encode(), 1))
        await connection.finish()
        answer = await connection.response("POST")
    assert (answer.status, answer.complete) == (200, True)
    assert (b"[DONE]" in answer.body) == stream
    (row,) = await trio.to_thread.run_sync(aftermath.settled, deployment.server, token["id"], 1)
    assert row["outcome"] == "ok"


@pytest.mark.parametrize("token", ["good", "unknown", "none"])
async def test_http1_client_gets_100_continue_or_the_error(deployment: Deployment, token: str) -> None:
    refused = token != "good"
    made_up = {"unknown": "sk-" + "a" * 43, "none": ""}
    secret = made_up[token] if refused else await trio.to_thread.run_sync(deployment.new_secret)
    async with client.connect(deployment.server.url) as connection:
        headers = chat_headers(secret, ("Expect", "100-continue"), ("Content-Length", str(len(chat_body()))))
        await connection.send(client.encode("POST", CHAT, headers))
        first = await connection.receive()
        assert first.startswith(b"HTTP/1.1 401 " if refused else b"HTTP/1.1 100 Continue\r\n\r\n"), first
        if not refused:
            await connection.send(chat_body())
            assert (await connection.response("POST")).status == 200
