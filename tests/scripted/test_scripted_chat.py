"""Chat completions and completions, read by OpenAI's SDK."""

from __future__ import annotations

from typing import Any

import httpx2
import msgspec
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.scripted.conversation import ASK, MODEL, WEATHER, bearer

# OpenAI's SDK stops reading at `[DONE]` and leaves its own generators to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Async generator 'openai:ResourceWarning", "ignore:Async generator 'httpx2:ResourceWarning"
)


async def test_chat_completion_has_every_field_that_the_sdk_declares(client: httpx2.AsyncClient) -> None:
    response = await client.post("/v1/chat/completions", json=ASK, headers=bearer())
    parsed = ChatCompletion.model_validate_json(response.content)
    assert response.status_code == 200
    assert "How do tokens expire?" in (parsed.choices[0].message.content or "")
    assert parsed.choices[0].finish_reason == "stop"
    assert parsed.usage is not None
    assert parsed.usage.total_tokens == parsed.usage.prompt_tokens + parsed.usage.completion_tokens
    assert parsed.usage.prompt_tokens > 5


async def test_the_same_request_gets_the_same_bytes(client: httpx2.AsyncClient) -> None:
    for more in ({}, {"stream": True}):
        first, second = [await client.post("/v1/chat/completions", json=ASK | more, headers=bearer()) for _ in range(2)]
        assert first.content == second.content


async def test_streamed_chat_says_what_the_plain_one_says(gpt: openai.AsyncOpenAI) -> None:
    messages: Any = ASK["messages"]
    plain = await gpt.chat.completions.create(model=MODEL, messages=messages)
    stream = await gpt.chat.completions.create(
        model=MODEL, messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.model_dump())
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == plain.choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert plain.usage is not None
    assert chunks[-1].usage.model_dump() == plain.usage.model_dump()
    assert chunks[-2].choices[0].finish_reason == "stop"


async def test_streamed_chat_without_include_usage_has_none(gpt: openai.AsyncOpenAI) -> None:
    messages: Any = ASK["messages"]
    stream = await gpt.chat.completions.create(model=MODEL, messages=messages, stream=True)
    assert all(chunk.usage is None for chunk in [chunk async for chunk in stream])


@pytest.mark.parametrize("streamed", [False, True])
async def test_chat_calls_the_offered_tool_and_then_answers(gpt: openai.AsyncOpenAI, streamed: bool) -> None:
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
    messages: Any = [{"role": "user", "content": "Berlin"}]
    if streamed:
        stream = await gpt.chat.completions.create(model=MODEL, messages=messages, tools=tools, stream=True)
        deltas = [chunk.choices[0] async for chunk in stream]
        calls = [call for delta in deltas for call in delta.delta.tool_calls or ()]
        arguments = "".join(call.function.arguments or "" for call in calls if call.function)
        name = calls[0].function.name if calls[0].function else None
        reason = deltas[-1].finish_reason
    else:
        plain = await gpt.chat.completions.create(model=MODEL, messages=messages, tools=tools)
        call = (plain.choices[0].message.tool_calls or [])[0]
        assert call.type == "function"
        name, arguments, reason = call.function.name, call.function.arguments, plain.choices[0].finish_reason
    assert (name, reason) == ("weather", "tool_calls")
    assert msgspec.json.decode(arguments) == {
        "city": "Berlin",
        "days": 1,
        "unit": "celsius",
        "hourly": True,
        "tags": ["Berlin"],
    }
    answered = await gpt.chat.completions.create(
        model=MODEL,
        tools=tools,
        messages=[*messages, {"role": "tool", "tool_call_id": "call_0", "content": "18 degrees"}],
    )
    assert "18 degrees" in (answered.choices[0].message.content or "")


async def test_chat_obeys_tool_choice(gpt: openai.AsyncOpenAI) -> None:
    tools: Any = [{"type": "function", "function": {"name": name, "parameters": WEATHER}} for name in ("a", "b")]
    messages: Any = ASK["messages"]
    named: Any = {"type": "function", "function": {"name": "b"}}
    demanded = await gpt.chat.completions.create(model=MODEL, messages=messages, tools=tools, tool_choice=named)
    call = (demanded.choices[0].message.tool_calls or [])[0]
    assert call.type == "function"
    assert call.function.name == "b"
    refused = await gpt.chat.completions.create(model=MODEL, messages=messages, tools=tools, tool_choice="none")
    assert refused.choices[0].message.tool_calls is None
    unknown: Any = {"type": "function", "function": {"name": "c"}}
    with pytest.raises(openai.BadRequestError):
        await gpt.chat.completions.create(model=MODEL, messages=messages, tools=tools, tool_choice=unknown)


async def test_chat_stops_at_the_token_limit(gpt: openai.AsyncOpenAI) -> None:
    messages: Any = ASK["messages"]
    cut = await gpt.chat.completions.create(model=MODEL, messages=messages, max_completion_tokens=3)
    assert cut.usage is not None
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 3)


async def test_chat_fits_a_json_schema(gpt: openai.AsyncOpenAI) -> None:
    messages: Any = ASK["messages"]
    form: Any = {"type": "json_schema", "json_schema": {"name": "w", "schema": WEATHER}}
    said = await gpt.chat.completions.create(model=MODEL, messages=messages, response_format=form)
    assert msgspec.json.decode(said.choices[0].message.content or "")["unit"] == "celsius"


async def test_chat_gives_as_many_choices_as_asked(gpt: openai.AsyncOpenAI) -> None:
    messages: Any = ASK["messages"]
    said = await gpt.chat.completions.create(model=MODEL, messages=messages, n=3)
    assert [choice.index for choice in said.choices] == [0, 1, 2]


@pytest.mark.parametrize("streamed", [False, True])
async def test_completions_have_the_shape_of_the_sdk(gpt: openai.AsyncOpenAI, streamed: bool) -> None:
    if streamed:
        stream = await gpt.completions.create(model=MODEL, prompt="Once", stream=True)
        text = "".join([chunk.choices[0].text async for chunk in stream])
    else:
        text = (await gpt.completions.create(model=MODEL, prompt="Once")).choices[0].text
    assert text.endswith("You said: “Once”")
