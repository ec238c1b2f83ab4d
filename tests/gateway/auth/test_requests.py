"""One request through the proxy for each kind of `auth` with a document, to an upstream that sees the token."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from sqlalchemy import select

from db.schema import requests
from llm_proxy.gateway import inbound
from tests.gateway.auth.endpoint import DOCUMENTS, TOKEN, token_endpoint
from tests.gateway.auth.test_aws import DOCUMENT, KEYS, expected_signature
from tests.gateway.stage import Client, Scene, scene


async def ask(stage: Scene, *pieces: bytes) -> Client:
    client = Client(list(pieces), at_once=len(pieces) == 1)
    with trio.fail_after(20):
        await stage.request(client, chunked=len(pieces) > 1, told=True)
    await stage.assert_nothing_is_left()
    return client


def headers_of(request: bytes) -> list[tuple[str, str]]:
    head, _, _ = request.partition(b"\r\n\r\n")
    fields = [line.partition(": ") for line in head.decode("latin-1").split("\r\n")[1:]]
    return [(name.lower(), value) for name, _, value in fields]


def body_of(request: bytes) -> bytes:
    """The body of a request, which may be chunked."""
    head, _, body = request.partition(b"\r\n\r\n")
    if b"chunked" not in head.lower():
        return body
    whole = b""
    while size := int(body[: body.index(b"\r\n")], 16):
        start = body.index(b"\r\n") + 2
        whole, body = whole + body[start : start + size], body[start + size + 2 :]
    return whole


async def outcomes(stage: Scene) -> list[str]:
    def read(connection: Any) -> list[str]:
        return [str(outcome) for outcome in connection.scalars(select(requests.c.outcome).order_by(requests.c.id))]

    return await stage.database.read(read)


@pytest.mark.parametrize("auth", DOCUMENTS)
async def test_the_upstream_gets_the_token_and_not_the_document(auth: str, tmp_path: Path) -> None:
    async with token_endpoint() as endpoint:
        secret = json.dumps(DOCUMENTS[auth](endpoint.url, tmp_path))
        async with scene(tmp_path, auth=auth, api_key=secret) as stage:
            for _ in range(2):
                client = await ask(stage, b"{}")
                assert client.received[0]["status"] == 200
                assert client.complete
            assert len(endpoint.asked) == 1, "the token is kept"
            for request in stage.provider.seen:
                fields = headers_of(request)
                assert [value for name, value in fields if name == "authorization"] == [f"Bearer {TOKEN}"]
                betas = ["oauth-2025-04-20"] if auth == "anthropic-wif" else []
                assert [value for name, value in fields if name == "anthropic-beta"] == betas
                assert stage.secret not in request


@pytest.mark.parametrize(
    "pieces",
    [[b'{"model": "m"}'], [b'{"model": ', b'"m"}'], [b"x" * 700_000, b"y" * 300_000]],
    ids=["complete", "in-pieces", "long"],
)
async def test_the_upstream_gets_a_signature_of_the_whole_request(
    tmp_path: Path, pieces: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbound, "JOINED", 1000)
    async with scene(tmp_path, auth="sigv4", api_key=json.dumps(DOCUMENT)) as stage:
        client = await ask(stage, *pieces)
        assert client.received[0]["status"] == 200
        (request,) = stage.provider.seen
    assert body_of(request) == b"".join(pieces)
    assert KEYS["secret_access_key"].encode() not in request
    values = dict(headers_of(request))
    digest = hashlib.sha256(b"".join(pieces)).hexdigest()
    assert values["x-amz-content-sha256"] == digest
    scope = f"{values['x-amz-date'][:8]}/us-east-1/bedrock/aws4_request"
    names = ["content-type", "host", "x-amz-content-sha256", "x-amz-date"]
    fields = [(name, values[name]) for name in names]
    signature = expected_signature("POST", "/v1/chat/completions", "", fields, digest, scope)
    assert values["authorization"].endswith(f"SignedHeaders={';'.join(names)}, Signature={signature}")


async def test_a_failed_exchange_is_void_and_nothing_reaches_the_upstream(tmp_path: Path) -> None:
    async with token_endpoint() as endpoint:
        endpoint.status, endpoint.body = 401, {"error": "invalid_client"}
        secret = json.dumps(DOCUMENTS["azure-ad"](endpoint.url, tmp_path))
        async with scene(tmp_path, auth="azure-ad", api_key=secret) as stage:
            client = await ask(stage, b"{}")
            assert client.received[0]["status"] == 502
            error = json.loads(client.received[1]["body"])["error"]
            assert error["code"] == "upstream_unreachable"
            assert "the token endpoint answered 401 (invalid_client)" in error["message"]
            assert stage.provider.seen == []
            assert await outcomes(stage) == ["void"]


async def test_after_a_401_of_the_upstream_the_next_request_has_a_new_token(tmp_path: Path) -> None:
    async with token_endpoint() as endpoint:
        secret = json.dumps(DOCUMENTS["openai-wif"](endpoint.url, tmp_path))
        async with scene(tmp_path, auth="openai-wif", api_key=secret) as stage:
            stage.provider.status = b"401 Unauthorized"
            client = await ask(stage, b"{}")
            assert client.received[0]["status"] == 401, "the answer is relayed"
            assert len(stage.provider.seen) == 1, "the request is not sent again"
            stage.provider.status = b"200 OK"
            endpoint.body["access_token"] = "second"
            await ask(stage, b"{}")
            assert dict(headers_of(stage.provider.seen[1]))["authorization"] == "Bearer second"
            assert len(endpoint.asked) == 2


async def test_a_client_that_disconnects_during_the_exchange_leaves_a_void_row(tmp_path: Path) -> None:
    gate = trio.Event()
    async with token_endpoint() as endpoint:
        secret = json.dumps(DOCUMENTS["openai-wif"](endpoint.url, tmp_path))
        async with scene(tmp_path, auth="openai-wif", api_key=secret) as stage, trio.open_nursery() as nursery:
            source = stage.relay.token_sources["openai-wif"]
            function = source._function

            def slow(document: str) -> Any:
                trio.from_thread.run(gate.wait)
                return function(document)

            source._function = slow
            client = Client([b"{}"])

            async def request() -> None:
                await stage.request(client, chunked=False, told=False)

            nursery.start_soon(request)
            await trio.testing.wait_all_tasks_blocked(0.05)
            client.leave()
            await trio.testing.wait_all_tasks_blocked(0.05)
            gate.set()
            await stage.assert_nothing_is_left()
            assert stage.provider.seen == []
            assert await outcomes(stage) == ["void"]


def test_a_server_loads_no_vendor_library_before_the_first_exchange() -> None:
    code = "import sys, llm_proxy.worker; print(sorted({'botocore', 'google.auth', 'httpx'} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout == "[]\n"
