"""Messages, token counts and models, read by Anthropic's SDK."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types import Message as AnthropicMessage
from anthropic.types import ModelInfo

from tests.scripted.conversation import ASK, KEY, WEATHER


async def test_message_has_every_field_that_the_sdk_declares(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/v1/messages", json=ASK | {"max_tokens": 100}, headers={"x-api-key": KEY})
    parsed = AnthropicMessage.model_validate_json(answer.content)
    assert parsed.stop_reason == "end_turn"
    assert parsed.usage.output_tokens > 5


async def test_streamed_message_says_what_the_plain_one_says(claude: anthropic.AsyncAnthropic) -> None:
    messages: Any = ASK["messages"]
    plain = await claude.messages.create(model="claude", max_tokens=100, messages=messages)
    async with claude.messages.stream(model="claude", max_tokens=100, messages=messages) as stream:
        text = await stream.get_final_text()
        final = await stream.get_final_message()
    assert plain.content[0].type == "text"
    assert text == plain.content[0].text
    assert final.usage.output_tokens == plain.usage.output_tokens
    assert final.usage.input_tokens == plain.usage.input_tokens
    assert final.stop_reason == plain.stop_reason


@pytest.mark.parametrize("streamed", [False, True])
async def test_message_uses_the_offered_tool_and_then_answers(claude: anthropic.AsyncAnthropic, streamed: bool) -> None:
    ask: Any = {
        "model": "claude",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "Berlin"}],
        "tools": [{"name": "weather", "input_schema": WEATHER}],
    }
    if streamed:
        async with claude.messages.stream(**ask) as stream:
            message: Any = await stream.get_final_message()
    else:
        message = await claude.messages.create(**ask)
    block = message.content[0]
    assert (message.stop_reason, block.type, block.name) == ("tool_use", "tool_use", "weather")
    assert block.input["city"] == "Berlin"
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": block.id, "content": "18 degrees"}]}
    answered: Any = await claude.messages.create(**ask | {"messages": [*ask["messages"], result]})
    assert "18 degrees" in answered.content[0].text


async def test_message_stops_at_max_tokens(claude: anthropic.AsyncAnthropic) -> None:
    messages: Any = ASK["messages"]
    cut = await claude.messages.create(model="claude", max_tokens=2, messages=messages)
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 2)


async def test_cached_system_prompt_is_reported(claude: anthropic.AsyncAnthropic) -> None:
    messages: Any = ASK["messages"]
    system: Any = [{"type": "text", "text": "Be brief. " * 20, "cache_control": {"type": "ephemeral"}}]
    said = await claude.messages.create(model="claude", max_tokens=9, messages=messages, system=system)
    counted = await claude.messages.count_tokens(model="claude", messages=messages, system=system)
    assert said.usage.cache_read_input_tokens
    assert said.usage.cache_read_input_tokens + said.usage.input_tokens == counted.input_tokens


async def test_anthropic_models_are_listed(client: httpx2.AsyncClient, claude: anthropic.AsyncAnthropic) -> None:
    names = [model.id async for model in claude.models.list()]
    assert names[0].startswith("claude-")
    raw = await client.get(f"/v1/models/{names[0]}", headers={"x-api-key": KEY, "anthropic-version": "2023-06-01"})
    assert ModelInfo.model_validate_json(raw.content).id == names[0]
    with pytest.raises(anthropic.NotFoundError):
        await claude.models.retrieve("claude-of-tomorrow")
