"""Anthropic's SDK works through the proxy as it does without: same results, same pace, at either of its addresses."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.harness.deployment import Deployment
from tests.scenarios.sdk import ASK, CLAUDE, KINDS, LAX_GENERATORS, WEATHER, claude, entered, items, pair, result

pytestmark = [pytest.mark.filterwarnings(*LAX_GENERATORS)]


@pytest.fixture(scope="module")
def token(module_gateway: Deployment) -> str:
    project = module_gateway.new_project(provider="anthropic")
    return module_gateway.new_secret(project["id"])


@pytest.fixture(params=["", "/anthropic"], ids=["by-project", "by-path"])
def prefix(request: pytest.FixtureRequest) -> str:
    """The two addresses of a provider: `/v1/…`, which means that of the token's project, and the one with its name."""
    return str(request.param)


@pytest.fixture(params=KINDS)
async def clients(
    request: pytest.FixtureRequest, gateway: Deployment, token: str, prefix: str
) -> AsyncIterator[tuple[Any, Any]]:
    async with pair(claude, request.param, gateway, token, prefix) as clients:
        yield clients


async def test_message_works_with_the_anthropic_sdk(clients: Any) -> None:
    ask: dict[str, Any] = {"model": CLAUDE, "max_tokens": 100, "messages": ASK, "system": "Be brief."}
    said, meant = [await result(client.messages.create(**ask)) for client in clients]
    assert said.model_dump() == meant.model_dump()
    assert "How do tokens expire?" in said.content[0].text
    assert said._request_id == meant._request_id


async def test_streamed_message_as_events(clients: Any) -> None:
    ask: dict[str, Any] = {"model": CLAUDE, "max_tokens": 100, "messages": ASK, "stream": True}
    said, meant = [await items(client.messages.create(**ask)) for client in clients]
    assert [event.model_dump() for event in said] == [event.model_dump() for event in meant]
    assert said[-1].type == "message_stop"


async def test_streamed_message_as_text(clients: Any) -> None:
    finals = []
    for client in clients:
        async with entered(client.messages.stream(model=CLAUDE, max_tokens=100, messages=ASK)) as stream:
            text = "".join(await items(stream.text_stream))
            final = await result(stream.get_final_message())
        assert final.content[0].text == text
        finals.append(final.model_dump())
    assert finals[0] == finals[1]


@pytest.mark.parametrize("streamed", [False, True])
async def test_tools_work_with_the_anthropic_sdk(clients: Any, streamed: bool) -> None:
    ask: dict[str, Any] = {
        "model": CLAUDE,
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "Berlin"}],
        "tools": [{"name": "weather", "input_schema": WEATHER}],
    }
    finals = []
    for client in clients:
        if streamed:
            async with entered(client.messages.stream(**ask)) as stream:
                finals.append(await result(stream.get_final_message()))
        else:
            finals.append(await result(client.messages.create(**ask)))
    said, meant = finals
    assert said.model_dump() == meant.model_dump()
    (block,) = said.content
    assert (said.stop_reason, block.name, block.input["city"]) == ("tool_use", "weather", "Berlin")
    answer = {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": block.id, "content": "18 degrees"}],
    }
    spoken = {"role": "assistant", "content": [block.model_dump(include={"type", "id", "name", "input"})]}
    after = await result(clients[0].messages.create(**ask | {"messages": [*ask["messages"], spoken, answer]}))
    assert "18 degrees" in after.content[0].text


async def test_count_tokens_works_with_the_anthropic_sdk(clients: Any) -> None:
    said, meant = [await result(client.messages.count_tokens(model=CLAUDE, messages=ASK)) for client in clients]
    assert said.model_dump() == meant.model_dump()
    assert said.input_tokens > 0


async def test_models_work_with_the_anthropic_sdk(clients: Any) -> None:
    said, meant = [await items(client.models.list()) for client in clients]
    assert [model.model_dump() for model in said] == [model.model_dump() for model in meant]
    one, other = [await result(client.models.retrieve(said[0].id)) for client in clients]
    assert one.model_dump() == other.model_dump()


async def test_a_bearer_token_is_accepted_from_the_anthropic_sdk(gateway: Deployment, token: str, prefix: str) -> None:
    """`auth_token` is how some tools reach a gateway; the upstream gets its key in `X-Api-Key` all the same."""
    async with claude("async", gateway.server.url + prefix, "", api_key=None, auth_token=token) as client:
        said = await client.messages.create(model=CLAUDE, max_tokens=10, messages=ASK)
    assert said.stop_reason == "max_tokens"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_long_prompt_arrives_byte_for_byte(gateway: Deployment, token: str, kind: Any) -> None:
    text = "Expire. " * 500_000
    async with claude(kind, gateway.server.url, token) as client:
        raw = await result(
            client.messages.with_raw_response.create(
                model=CLAUDE,
                max_tokens=10,
                messages=[{"role": "user", "content": text}],
                extra_headers={"x-scripted-echo": "1"},
            )
        )
    sent = raw.http_response.request.content
    (seen,) = gateway.upstream.requests()
    assert (seen["body_length"], seen["body_sha256"]) == (len(sent), hashlib.sha256(sent).hexdigest())
    assert raw.http_response.content == sent
