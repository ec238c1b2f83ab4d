"""Credentials, refusals and stage directions of the scripted provider."""

from __future__ import annotations

import base64
from typing import Any

import anthropic
import httpx2
import msgspec
import openai
import pytest

from tests.scripted.conversation import ASK, KEY, MODEL, bearer
from tests.scripted.provider import ScriptedProvider


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer sk-another"},
        {"authorization": KEY},
        {"authorization": f"Bearer {KEY}", "x-api-key": "sk-proxy-token"},
        {"x-goog-api-key": "sk-proxy-token"},
    ],
)
async def test_anything_but_the_key_is_refused_in_openai_shape(
    client: httpx2.AsyncClient, headers: dict[str, str]
) -> None:
    response = await client.post("/v1/chat/completions", json=ASK, headers=headers)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("name", ["x-api-key", "api-key"])
async def test_the_key_is_taken_where_the_provider_takes_it(client: httpx2.AsyncClient, name: str) -> None:
    assert (await client.get("/v1/models", headers={name: KEY})).status_code == 200


async def test_sdks_raise_their_own_exceptions(client: httpx2.AsyncClient) -> None:
    messages: Any = ASK["messages"]
    gpt = openai.AsyncOpenAI(api_key="wrong", base_url="http://scripted/v1", http_client=client, max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        await gpt.chat.completions.create(model=MODEL, messages=messages)
    claude = anthropic.AsyncAnthropic(api_key="wrong", base_url="http://scripted", http_client=client, max_retries=0)
    with pytest.raises(anthropic.AuthenticationError) as refused:
        await claude.messages.create(model="claude", max_tokens=5, messages=messages)
    assert refused.value.body == {
        "type": "error",
        "error": {"type": "authentication_error", "message": "Incorrect API key provided."},
    }


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/chat/completions", b"{", 400),
        ("POST", "/v1/chat/completions", b"[]", 400),
        ("POST", "/v1/chat/completions", b'{"messages": [{}]}', 400),
        ("POST", "/v1/chat/completions", b'{"model": "m", "messages": []}', 400),
        ("POST", "/v1/chat/completions", b'{"model": "m", "messages": [{}], "max_tokens": 0}', 400),
        ("POST", "/v1/responses", b'{"model": "m"}', 400),
        ("POST", "/v1/embeddings", b'{"model": "m", "input": [null]}', 400),
        ("POST", "/v1/files", b"no form", 400),
        ("GET", "/v1/chat/completions", b"", 405),
        ("POST", "/v1/nothing", b"{}", 404),
        ("POST", "/v1/messages", b'{"model": "m", "messages": [{}]}', 400),
    ],
)
async def test_bad_requests_are_refused(
    client: httpx2.AsyncClient, method: str, path: str, body: bytes, status: int
) -> None:
    response = await client.request(method, path, content=body, headers=bearer())
    assert response.status_code == status
    assert response.json()["error"]["message"]


async def test_provider_sends_headers_that_a_gateway_must_strip(client: httpx2.AsyncClient) -> None:
    response = await client.get("/v1/models", headers=bearer())
    assert {"server", "set-cookie", "alt-svc", "openai-organization", "openai-project"} <= set(response.headers)


async def test_directed_status_is_sent(client: httpx2.AsyncClient) -> None:
    limited = await client.post("/v1/chat/completions", json=ASK, headers=bearer(status="429"))
    assert (limited.status_code, limited.json()["error"]["type"]) == (429, "requests")
    busy = await client.post("/v1/messages", json=ASK, headers=bearer(status="529"))
    assert (busy.status_code, busy.json()["error"]["type"]) == (529, "overloaded_error")
    accepted = await client.get("/v1/models", headers=bearer(status="202"))
    assert (accepted.status_code, accepted.json()["object"]) == (202, "list")


async def test_directed_number_of_pieces_is_sent(client: httpx2.AsyncClient) -> None:
    ask = ASK | {"stream": True}
    response = await client.post("/v1/chat/completions", json=ask, headers=bearer(chunks="50"))
    # Role, fifty pieces, the finish reason, and the end.
    assert response.text.count("data: ") == 53


async def test_echo_returns_the_bytes_and_the_head(client: httpx2.AsyncClient) -> None:
    body = bytes(range(256)) * 3
    response = await client.request(
        "PATCH", "/v1/any%20thing?q=a%2Fb", content=body, headers=bearer(echo="1", chunks="7")
    )
    assert response.content == body
    received = msgspec.json.decode(base64.b64decode(response.headers["x-scripted-received"]))
    assert (received["method"], received["target"]) == ("PATCH", "/v1/any%20thing?q=a%2Fb")
    assert ["authorization", f"Bearer {KEY}"] in received["headers"]


@pytest.mark.parametrize(
    "direction", [{"status": "99"}, {"delay": "-1"}, {"gap": "nan"}, {"chunks": "0"}, {"abort": "x"}, {"wobble": "1"}]
)
async def test_invalid_directions_get_400(client: httpx2.AsyncClient, direction: dict[str, str]) -> None:
    assert (await client.get("/v1/models", headers=bearer(**direction))).status_code == 400


def test_the_key_is_not_in_the_repr(provider: ScriptedProvider) -> None:
    assert KEY not in repr(provider)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", b'{"model":"m","messages":[{"role":[]}],"tools":[{"type":"function","function":1}]}'),
        (
            "/v1/chat/completions",
            b'{"model":"m","messages":[{}],"response_format":{"type":"json_schema","json_schema":1}}',
        ),
        ("/v1/responses", b'{"model":"m","input":"x","instructions":[1]}'),
        ("/v1/embeddings", b'{"model":"m","input":"x","dimensions":"8"}'),
    ],
)
async def test_fields_of_unexpected_types_are_refused(client: httpx2.AsyncClient, path: str, body: bytes) -> None:
    assert (await client.post(path, content=body, headers=bearer())).status_code == 400
