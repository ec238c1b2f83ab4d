"""Responses, read by OpenAI's SDK."""

from __future__ import annotations

from typing import Any

import httpx2
import msgspec
import openai
import pytest
from openai.types.responses import Response

from tests.scripted.conversation import MODEL, WEATHER, bearer

# OpenAI's SDK stops reading at `[DONE]` and leaves its own generators to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Async generator 'openai:ResourceWarning", "ignore:Async generator 'httpx2:ResourceWarning"
)


async def test_response_has_every_field_that_the_sdk_declares(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/v1/responses", json={"model": MODEL, "input": "Hello"}, headers=bearer())
    parsed = Response.model_validate_json(answer.content)
    assert "Hello" in parsed.output_text
    assert parsed.status == "completed"
    assert parsed.usage is not None
    assert parsed.usage.total_tokens == parsed.usage.input_tokens + parsed.usage.output_tokens


async def test_streamed_response_is_understood_by_the_sdk(gpt: openai.AsyncOpenAI) -> None:
    async with gpt.responses.stream(model=MODEL, input="Hello") as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == final.output_text
    assert events[-1].type == "response.completed"


@pytest.mark.parametrize("streamed", [False, True])
async def test_response_calls_a_function(gpt: openai.AsyncOpenAI, streamed: bool) -> None:
    tools: Any = [{"type": "function", "name": "weather", "parameters": WEATHER, "strict": False}]
    if streamed:
        async with gpt.responses.stream(model=MODEL, input="Berlin", tools=tools) as stream:
            final: Any = await stream.get_final_response()
    else:
        final = await gpt.responses.create(model=MODEL, input="Berlin", tools=tools)
    call = final.output[0]
    assert (call.type, call.name) == ("function_call", "weather")
    assert msgspec.json.decode(call.arguments)["city"] == "Berlin"


async def test_response_cut_by_the_limit_is_incomplete(gpt: openai.AsyncOpenAI) -> None:
    stream = await gpt.responses.create(model=MODEL, input="Hello", max_output_tokens=2, stream=True)
    last = [event async for event in stream][-1]
    assert last.type == "response.incomplete"
    assert last.response.incomplete_details is not None
