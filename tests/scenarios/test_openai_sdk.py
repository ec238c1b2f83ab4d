"""OpenAI's SDK works through the proxy as it does without: same results, same bytes, same pace."""

from __future__ import annotations

import hashlib
import io
import random
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import openai
import pytest

from tests.harness.deployment import Deployment
from tests.scenarios.sdk import ASK, GPT, KINDS, LAX_GENERATORS, WEATHER, Kind, gpt, items, pair, result

pytestmark = [pytest.mark.filterwarnings(*LAX_GENERATORS)]

MEGABYTE = 1024 * 1024


@pytest.fixture(scope="module")
def token(module_gateway: Deployment) -> str:
    return module_gateway.new_secret()


@pytest.fixture(params=KINDS)
async def clients(request: pytest.FixtureRequest, gateway: Deployment, token: str) -> AsyncIterator[Any]:
    async with pair(gpt, request.param, gateway, token) as clients:
        yield clients


def dumped(values: list[Any]) -> list[Any]:
    return [value.model_dump() for value in values]


async def test_chat_works_with_the_openai_sdk(clients: Any) -> None:
    said, meant = [await result(client.chat.completions.create(model=GPT, messages=ASK)) for client in clients]
    assert said.model_dump() == meant.model_dump()
    assert "How do tokens expire?" in said.choices[0].message.content
    assert said._request_id == meant._request_id


async def test_streamed_chat_works_with_the_openai_sdk(clients: Any) -> None:
    ask: dict[str, Any] = {"model": GPT, "messages": ASK, "stream": True, "stream_options": {"include_usage": True}}
    said, meant = [await items(client.chat.completions.create(**ask)) for client in clients]
    assert dumped(said) == dumped(meant)
    assert said[-1].usage.total_tokens > 0


async def test_stream_without_usage_is_the_same_through_the_proxy_that_asks_for_it(
    clients: Any, gateway: Deployment
) -> None:
    ask: dict[str, Any] = {"model": GPT, "messages": ASK, "stream": True}
    said, meant = [await items(client.chat.completions.create(**ask)) for client in clients]
    assert dumped(said) == dumped(meant)
    assert not any("usage" in chunk.model_fields_set for chunk in said)
    assert all(chunk.choices for chunk in said)
    raw = clients[0].chat.completions.with_raw_response.create(**ask)
    assert (await result(raw)).headers["x-llm-proxy-edited"] == "stream_usage"


async def test_a_stream_arrives_as_it_is_sent(clients: Any) -> None:
    paced = {"x-scripted-chunks": "5", "x-scripted-gap": "0.1"}
    stream = await result(clients[0].chat.completions.create(model=GPT, messages=ASK, stream=True, extra_headers=paced))
    if hasattr(stream, "__aiter__"):
        times = [time.monotonic() async for _ in stream]
    else:
        times = [time.monotonic() for _ in stream]
    # Nothing is gathered on the way: each piece comes after its own pause.
    assert sum(later - earlier > 0.05 for earlier, later in pairwise(times)) >= 5


@pytest.mark.parametrize("streamed", [False, True])
async def test_tools_work_with_the_openai_sdk(clients: Any, streamed: bool) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
    ask: dict[str, Any] = {"model": GPT, "messages": [{"role": "user", "content": "Berlin"}], "tools": tools}
    if streamed:
        said, meant = [await items(client.chat.completions.create(**ask, stream=True)) for client in clients]
        assert dumped(said) == dumped(meant)
        return
    said, meant = [await result(client.chat.completions.create(**ask)) for client in clients]
    assert said.model_dump() == meant.model_dump()
    (call,) = said.choices[0].message.tool_calls
    answer = {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"}
    spoken = said.choices[0].message.model_dump(exclude_none=True)
    after = await result(clients[0].chat.completions.create(**ask | {"messages": [*ask["messages"], spoken, answer]}))
    assert "18 degrees" in after.choices[0].message.content


async def test_embeddings_work_with_the_openai_sdk(clients: Any) -> None:
    ask: dict[str, Any] = {"model": "text-embedding-scripted", "input": ["one", "two"], "dimensions": 64}
    said, meant = [await result(client.embeddings.create(**ask)) for client in clients]
    assert said.model_dump() == meant.model_dump()
    assert [len(one.embedding) for one in said.data] == [64, 64]


async def test_models_work_with_the_openai_sdk(clients: Any) -> None:
    said, meant = [await items(client.models.list()) for client in clients]
    assert dumped(said) == dumped(meant)
    one, other = [await result(client.models.retrieve(said[0].id)) for client in clients]
    assert one.model_dump() == other.model_dump()


async def test_a_model_name_with_a_slash_works(clients: Any, gateway: Deployment) -> None:
    """The SDK escapes it, as `/v1/models/openai%2Fgpt-oss-120b`, and that reaches the provider byte for byte."""
    errors = []
    for client in clients:
        with pytest.raises(openai.NotFoundError, match="The model 'openai/gpt-oss-120b' does not exist") as caught:
            await result(client.models.retrieve("openai/gpt-oss-120b"))
        errors.append(caught.value)
    assert errors[0].body == errors[1].body
    proxied, direct = gateway.upstream.requests()
    assert proxied["target"] == direct["target"] == "/v1/models/openai%2Fgpt-oss-120b"


@pytest.mark.parametrize("streamed", [False, True])
async def test_responses_work_with_the_openai_sdk(clients: Any, streamed: bool) -> None:
    ask: dict[str, Any] = {"model": GPT, "input": "How do tokens expire?", "instructions": "Be brief."}
    if streamed:
        said, meant = [await items(client.responses.create(**ask, stream=True)) for client in clients]
        assert dumped(said) == dumped(meant)
        assert said[-1].type == "response.completed"
    else:
        one, other = [await result(client.responses.create(**ask)) for client in clients]
        assert one.model_dump() == other.model_dump()
        assert "How do tokens expire?" in one.output_text


async def test_a_file_goes_up_and_comes_down_byte_for_byte(clients: Any) -> None:
    proxied, direct = clients
    content = random.Random(7).randbytes(3 * MEGABYTE) + b"\r\n--\r\n\0"
    name = "tokens, withered.jsonl"
    uploaded = await result(proxied.files.create(file=(name, io.BytesIO(content)), purpose="assistants"))
    assert (uploaded.filename, uploaded.bytes) == (name, len(content))
    # The upstream makes the id from what it has read.
    assert uploaded.id == "file-" + hashlib.sha256(name.encode() + b"\0" + content).hexdigest()[:24]
    for client in (proxied, direct):
        assert (await result(client.files.content(uploaded.id))).content == content
    assert [file.id for file in await items(proxied.files.list())] == [uploaded.id]
    assert (await result(proxied.files.delete(uploaded.id))).deleted


async def test_transcriptions_work_with_the_openai_sdk(clients: Any) -> None:
    recording = ("speech.wav", random.Random(8).randbytes(100_000))
    said, meant = [
        await result(client.audio.transcriptions.create(file=recording, model="whisper")) for client in clients
    ]
    assert said.model_dump() == meant.model_dump()
    assert "100000 bytes" in said.text


@pytest.mark.parametrize("kind", KINDS)
async def test_twenty_megabytes_go_both_ways_byte_for_byte(gateway: Deployment, token: str, kind: Kind) -> None:
    text = random.Random(9).randbytes(10 * MEGABYTE).hex()
    async with gpt(kind, gateway.server.url, token) as client:
        # The echo sends the request's own bytes back.
        raw = await result(
            client.chat.completions.with_raw_response.create(
                model=GPT, messages=[{"role": "user", "content": text}], extra_headers={"x-scripted-echo": "1"}
            )
        )
    sent = raw.http_response.request.content
    assert len(sent) > 20 * MEGABYTE
    (seen,) = gateway.upstream.requests()
    assert (seen["body_length"], seen["body_sha256"]) == (len(sent), hashlib.sha256(sent).hexdigest())
    assert raw.http_response.content == sent
