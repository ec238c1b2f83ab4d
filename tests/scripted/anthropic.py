"""Anthropic's messages (plain, streamed, with tools), token counts and models."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import unquote

import msgspec

from tests.scripted import answers
from tests.scripted.message import JsonObject, Reply, Request, ScriptedError, event, event_stream, json_reply

#: Name for people by id.
MODELS = {
    "claude-scripted-large": "Claude Scripted Large",
    "claude-scripted-small": "Claude Scripted Small",
}
_CREATED = "2026-01-01T00:00:00Z"


def _last_turn(messages: list[JsonObject]) -> tuple[str, bool]:
    """Return the last words, and whether they are a tool's result."""
    content = messages[-1].get("content")
    blocks = content if isinstance(content, list) else []
    is_result = any(isinstance(block, dict) and block.get("type") == "tool_result" for block in blocks)
    return answers.content_text(content), is_result


def _chosen_tool(body: JsonObject) -> JsonObject | None:
    tools = [tool for tool in body.get("tools") or () if isinstance(tool, dict) and "name" in tool]
    choice = body.get("tool_choice")
    kind = choice.get("type") if isinstance(choice, dict) else "auto"
    if not tools or kind == "none":
        return None
    if isinstance(choice, dict) and kind == "tool":
        for tool in tools:
            if tool["name"] == choice.get("name"):
                return tool
        raise ScriptedError(400, f"tool_choice: tool '{choice.get('name')}' not found in provided tools")
    return tools[0]


def _prompt_size(body: JsonObject, messages: list[JsonObject]) -> tuple[int, int]:
    """Return the tokens of the whole prompt, and of what precedes the messages (tools and system prompt)."""
    tools = msgspec.json.encode(body["tools"]).decode() if body.get("tools") else ""
    preamble = answers.count_tokens(answers.content_text(body.get("system"))) + answers.count_tokens(tools)
    return preamble + answers.prompt_tokens(messages), preamble


def _usage(request: Request, body: JsonObject, messages: list[JsonObject], output: int) -> JsonObject:
    whole, preamble = _prompt_size(body, messages)
    cached = preamble if b'"cache_control"' in request.body else 0
    return {
        "input_tokens": whole - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": output,
        "service_tier": "standard",
    }


def create_message(request: Request) -> Reply:
    """POST /v1/messages."""
    body = request.json()
    model = answers.model_of(body)
    messages = answers.messages_of(body, "messages")
    limit = answers.token_limit(body, "max_tokens")
    if limit is None:
        raise ScriptedError(400, "max_tokens: Field required")
    prompt, is_result = _last_turn(messages)
    tool = None if is_result else _chosen_tool(body)
    block: JsonObject
    if tool is not None:
        arguments = answers.example(tool.get("input_schema"), prompt)
        said = answers.written(msgspec.json.encode(arguments).decode())
        name = answers.identity("toolu_", request.body)
        block = {"type": "tool_use", "id": name, "name": tool["name"], "input": arguments}
        stop_reason = "tool_use"
    else:
        said = answers.answer(prompt, limit=limit, chunks=request.directions.chunks)
        block = {"type": "text", "text": said.whole}
        stop_reason = "max_tokens" if said.cut else "end_turn"
    message: JsonObject = {
        "id": answers.identity("msg_", request.body),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [block],
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": _usage(request, body, messages, len(said.pieces)),
    }
    if not body.get("stream"):
        return json_reply(message)
    return event_stream(event(value, value["type"]) for value in _events(message, block, said))


def _events(message: JsonObject, block: JsonObject, said: answers.Text) -> Iterator[JsonObject]:
    started = message | {"content": [], "stop_reason": None, "usage": message["usage"] | {"output_tokens": 1}}
    yield {"type": "message_start", "message": started}
    is_text = block["type"] == "text"
    empty: JsonObject = {"text": ""} if is_text else {"input": {}}
    opened = block | empty
    yield {"type": "content_block_start", "index": 0, "content_block": opened}
    yield {"type": "ping"}
    kind, field = ("text_delta", "text") if is_text else ("input_json_delta", "partial_json")
    for piece in said.pieces:
        yield {"type": "content_block_delta", "index": 0, "delta": {"type": kind, field: piece}}
    yield {"type": "content_block_stop", "index": 0}
    ending = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": ending, "usage": {"output_tokens": len(said.pieces)}}
    yield {"type": "message_stop"}


def count_tokens(request: Request) -> Reply:
    """POST /v1/messages/count_tokens."""
    body = request.json()
    answers.model_of(body)
    return json_reply({"input_tokens": _prompt_size(body, answers.messages_of(body, "messages"))[0]})


def _model(name: str) -> JsonObject:
    return {
        "type": "model",
        "id": name,
        "display_name": MODELS[name],
        "created_at": _CREATED,
        "lifecycle": "active",
    }


def list_models(_request: Request) -> Reply:
    """GET /v1/models."""
    names = list(MODELS)
    data = [_model(name) for name in names]
    return json_reply({"data": data, "has_more": False, "first_id": names[0], "last_id": names[-1]})


def get_model(request: Request) -> Reply:
    """GET /v1/models/{id}."""
    name = unquote(request.path.rpartition("/")[2])
    if name not in MODELS:
        raise ScriptedError(404, f"model: {name}")
    return json_reply(_model(name))
