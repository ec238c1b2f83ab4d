"""The scripted provider, read by the official SDKs and by hand."""

from __future__ import annotations

import base64
import struct
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx2
import msgspec
import openai
import pytest
from anthropic.types import Message as AnthropicMessage
from anthropic.types import ModelInfo
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response

from llm_proxy.scripted import ScriptedAbort, ScriptedProvider

# OpenAI's SDK stops reading at `[DONE]` and leaves its own generators to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Async generator 'openai:ResourceWarning", "ignore:Async generator 'httpx2:ResourceWarning"
)

KEY = "sk-the-real-key"
MODEL = "gpt-scripted"
ASK = {"model": MODEL, "messages": [{"role": "user", "content": "How do tokens wither?"}]}
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "unit": {"enum": ["celsius", "kelvin"]},
        "hourly": {"type": ["boolean", "null"]},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["city"],
}


@pytest.fixture
def provider() -> ScriptedProvider:
    return ScriptedProvider(KEY, scriptable=True)


@pytest.fixture
async def client(provider: ScriptedProvider) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(provider)
    async with httpx2.AsyncClient(transport=transport, base_url="http://scripted") as client:
        yield client


@pytest.fixture
def gpt(client: httpx2.AsyncClient) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key=KEY, base_url="http://scripted/v1", http_client=client, max_retries=0)


@pytest.fixture
def claude(client: httpx2.AsyncClient) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(api_key=KEY, base_url="http://scripted", http_client=client, max_retries=0)


def bearer(**directions: str) -> dict[str, str]:
    given = {f"x-scripted-{name}": value for name, value in directions.items()}
    return {"authorization": f"Bearer {KEY}", **given}


# OpenAI


async def test_chat_completion_has_every_field_that_the_sdk_declares(client: httpx2.AsyncClient) -> None:
    response = await client.post("/v1/chat/completions", json=ASK, headers=bearer())
    parsed = ChatCompletion.model_validate_json(response.content)
    assert response.status_code == 200
    assert "How do tokens wither?" in (parsed.choices[0].message.content or "")
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
async def test_completions(gpt: openai.AsyncOpenAI, streamed: bool) -> None:
    if streamed:
        stream = await gpt.completions.create(model=MODEL, prompt="Once", stream=True)
        text = "".join([chunk.choices[0].text async for chunk in stream])
    else:
        text = (await gpt.completions.create(model=MODEL, prompt="Once")).choices[0].text
    assert text.endswith("You said: “Once”")


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


async def test_embeddings_are_the_same_in_both_encodings(client: httpx2.AsyncClient, gpt: openai.AsyncOpenAI) -> None:
    ask = {"model": "text-embedding-scripted", "input": ["one", "two"], "dimensions": 8}
    plain = (await client.post("/v1/embeddings", json=ask, headers=bearer())).json()
    packed = (await client.post("/v1/embeddings", json=ask | {"encoding_format": "base64"}, headers=bearer())).json()
    first = struct.unpack("<8f", base64.b64decode(packed["data"][0]["embedding"]))
    assert first == pytest.approx(plain["data"][0]["embedding"])
    assert sum(value * value for value in first) == pytest.approx(1.0)
    assert plain["data"][0]["embedding"] != plain["data"][1]["embedding"]
    through_sdk = await gpt.embeddings.create(model="text-embedding-scripted", input="one", dimensions=8)
    assert through_sdk.data[0].embedding == pytest.approx(first)
    assert through_sdk.usage.total_tokens == 1


async def test_embeddings_take_token_ids(gpt: openai.AsyncOpenAI) -> None:
    answer = await gpt.embeddings.create(model="text-embedding-scripted", input=[1, 2, 3], dimensions=4)
    assert answer.usage.prompt_tokens == 3


async def test_files_come_back_byte_for_byte(gpt: openai.AsyncOpenAI) -> None:
    content = bytes(range(256)) + b"\r\n--\r\n\r\n"
    uploaded = await gpt.files.create(file=("data.bin", content), purpose="assistants")
    assert (uploaded.bytes, uploaded.filename, uploaded.purpose) == (len(content), "data.bin", "assistants")
    assert (await gpt.files.content(uploaded.id)).content == content
    assert (await gpt.files.retrieve(uploaded.id)).id == uploaded.id
    assert [file.id async for file in gpt.files.list()] == [uploaded.id]
    assert (await gpt.files.delete(uploaded.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await gpt.files.retrieve(uploaded.id)


async def test_oldest_file_goes_when_the_store_is_full(
    gpt: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch, provider: ScriptedProvider
) -> None:
    store = next(handler for _, path, _, handler in provider._routes if path.pattern == "/v1/files").__self__  # type: ignore[attr-defined]
    monkeypatch.setattr(store, "limit", 10)
    names = [(await gpt.files.create(file=("f", content), purpose="batch")).id for content in (b"123456", b"abcdef")]
    assert [file.id async for file in gpt.files.list()] == names[1:]


async def test_openai_models(gpt: openai.AsyncOpenAI) -> None:
    assert MODEL in [model.id async for model in gpt.models.list()]
    assert (await gpt.models.retrieve(MODEL)).id == MODEL
    with pytest.raises(openai.NotFoundError):
        await gpt.models.retrieve("gpt-of-tomorrow")


async def test_images_and_audio(gpt: openai.AsyncOpenAI) -> None:
    image = await gpt.images.generate(model="i", prompt="a cat", n=2)
    assert image.data is not None
    assert base64.b64decode(image.data[1].b64_json or "").startswith(b"\x89PNG")
    speech = await gpt.audio.speech.create(model="s", input="hi", voice="alloy")
    assert speech.content[:4] == b"RIFF"
    assert int.from_bytes(speech.content[4:8], "little") == len(speech.content) - 8
    heard = await gpt.audio.transcriptions.create(model="t", file=("a.wav", speech.content))
    assert f"{len(speech.content)} bytes" in heard.text


# Anthropic


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


async def test_anthropic_models(client: httpx2.AsyncClient, claude: anthropic.AsyncAnthropic) -> None:
    names = [model.id async for model in claude.models.list()]
    assert names[0].startswith("claude-")
    raw = await client.get(f"/v1/models/{names[0]}", headers={"x-api-key": KEY, "anthropic-version": "2023-06-01"})
    assert ModelInfo.model_validate_json(raw.content).id == names[0]
    with pytest.raises(anthropic.NotFoundError):
        await claude.models.retrieve("claude-of-tomorrow")


# Credentials, errors, directions


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


async def test_provider_sends_what_a_gateway_must_not_hand_on(client: httpx2.AsyncClient) -> None:
    response = await client.get("/v1/models", headers=bearer())
    assert {"server", "set-cookie", "alt-svc", "openai-organization", "openai-project"} <= set(response.headers)


async def test_directed_status(client: httpx2.AsyncClient) -> None:
    limited = await client.post("/v1/chat/completions", json=ASK, headers=bearer(status="429"))
    assert (limited.status_code, limited.json()["error"]["type"]) == (429, "requests")
    busy = await client.post("/v1/messages", json=ASK, headers=bearer(status="529"))
    assert (busy.status_code, busy.json()["error"]["type"]) == (529, "overloaded_error")
    accepted = await client.get("/v1/models", headers=bearer(status="202"))
    assert (accepted.status_code, accepted.json()["object"]) == (202, "list")


async def test_directed_number_of_pieces(client: httpx2.AsyncClient) -> None:
    ask = ASK | {"stream": True}
    response = await client.post("/v1/chat/completions", json=ask, headers=bearer(chunks="50"))
    # Role, fifty pieces, the finish reason, and the end.
    assert response.text.count("data: ") == 53


async def test_directed_delay_and_gaps_take_their_time(client: httpx2.AsyncClient, autojump_clock: Any) -> None:
    started = autojump_clock.current_time()
    headers = bearer(chunks="10", delay="30", gap="2")
    await client.post("/v1/chat/completions", json=ASK | {"stream": True}, headers=headers)
    assert autojump_clock.current_time() - started == pytest.approx(30 + 2 * 12)


async def test_echo_returns_the_bytes_and_the_head(client: httpx2.AsyncClient) -> None:
    body = bytes(range(256)) * 3
    response = await client.request(
        "PATCH", "/v1/any%20thing?q=a%2Fb", content=body, headers=bearer(echo="1", chunks="7")
    )
    assert response.content == body
    received = msgspec.json.decode(base64.b64decode(response.headers["x-scripted-received"]))
    assert (received["method"], received["target"]) == ("PATCH", "/v1/any%20thing?q=a%2Fb")
    assert ["authorization", f"Bearer {KEY}"] in received["headers"]


@pytest.mark.parametrize("pieces", [0, 3, 99])
async def test_directed_abort_breaks_off(client: httpx2.AsyncClient, pieces: int) -> None:
    headers = bearer(abort=str(pieces), chunks="5")
    with pytest.raises(ScriptedAbort):
        await client.post("/v1/chat/completions", json=ASK | {"stream": True}, headers=headers)


@pytest.mark.parametrize(
    "direction", [{"status": "99"}, {"delay": "-1"}, {"gap": "nan"}, {"chunks": "0"}, {"abort": "x"}, {"wobble": "1"}]
)
async def test_senseless_directions_are_refused(client: httpx2.AsyncClient, direction: dict[str, str]) -> None:
    assert (await client.get("/v1/models", headers=bearer(**direction))).status_code == 400


async def test_directions_are_ignored_unless_scriptable() -> None:
    transport = httpx2.ASGITransport(ScriptedProvider(KEY))
    async with httpx2.AsyncClient(transport=transport, base_url="http://scripted") as client:
        response = await client.get("/v1/models", headers=bearer(status="500", abort="0", wobble="1"))
    assert response.status_code == 200


def test_the_key_is_not_in_the_repr(provider: ScriptedProvider) -> None:
    assert KEY not in repr(provider)


async def test_lifespan_is_acknowledged(provider: ScriptedProvider) -> None:
    waiting = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[str] = []

    async def receive() -> Any:
        return waiting.pop(0)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await provider({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
