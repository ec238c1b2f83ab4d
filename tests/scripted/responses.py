"""OpenAI's responses: plain, streamed, with function tools."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from tests.scripted import answers
from tests.scripted.chat import chosen_tool
from tests.scripted.message import JsonObject, Reply, Request, ScriptedError, event, event_stream, json_reply


def _turns(body: JsonObject) -> list[JsonObject]:
    given = body.get("input")
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list):
        raise ScriptedError(400, "'input' must be a text or a list of items.", param="input")
    return answers.messages_of(body, "input")


def _text_part(text: str) -> JsonObject:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def create_response(request: Request) -> Reply:
    """POST /v1/responses."""
    body = request.json()
    model = answers.model_of(body)
    turns = _turns(body)
    limit = answers.token_limit(body, "max_output_tokens")
    last = turns[-1]
    prompt = answers.content_text(last.get("content") or last.get("output"))
    tool = None if last.get("type") == "function_call_output" else chosen_tool(body)
    item: JsonObject
    if tool is not None:
        said = answers.written(msgspec.json.encode(answers.example(tool.get("parameters"), prompt)).decode())
        item = {
            "id": answers.identity("fc_", request.body),
            "type": "function_call",
            "status": "completed",
            "call_id": answers.identity("call_", request.body),
            "name": tool.get("name"),
            "arguments": said.whole,
        }
    else:
        said = answers.answer(prompt, limit=limit, chunks=request.directions.chunks)
        item = {
            "id": answers.identity("msg_", request.body),
            "type": "message",
            "status": "incomplete" if said.cut else "completed",
            "role": "assistant",
            "content": [_text_part(said.whole)],
        }
    instructions = body.get("instructions")
    tools = msgspec.json.encode(body["tools"]).decode() if body.get("tools") else ""
    prompt_size = answers.prompt_tokens(turns, instructions or "", tools)
    finished: JsonObject = {
        "id": answers.identity("resp_", request.body),
        "object": "response",
        "created_at": answers.CREATED,
        "status": "incomplete" if said.cut else "completed",
        "background": False,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if said.cut else None,
        "instructions": instructions,
        "max_output_tokens": limit,
        "metadata": body.get("metadata") or {},
        "model": model,
        "output": [item],
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
        "previous_response_id": body.get("previous_response_id"),
        "store": body.get("store", True),
        "temperature": body.get("temperature", 1.0),
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": body.get("tools") or [],
        "top_p": body.get("top_p", 1.0),
        "usage": {
            "input_tokens": prompt_size,
            "input_tokens_details": {"cached_tokens": answers.cached_share(prompt_size), "cache_write_tokens": 0},
            "output_tokens": len(said.pieces),
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt_size + len(said.pieces),
        },
    }
    if not body.get("stream"):
        return json_reply(finished)
    events = enumerate(_events(finished, item, said))
    return event_stream(event({**value, "sequence_number": number}, value["type"]) for number, value in events)


def _events(finished: JsonObject, item: JsonObject, said: answers.Text) -> Iterator[JsonObject]:
    started = finished | {"status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
    yield {"type": "response.created", "response": started}
    yield {"type": "response.in_progress", "response": started}
    place = {"item_id": item["id"], "output_index": 0}
    if item["type"] == "function_call":
        opened = item | {"status": "in_progress", "arguments": ""}
        yield {"type": "response.output_item.added", "output_index": 0, "item": opened}
        for piece in said.pieces:
            yield {"type": "response.function_call_arguments.delta", "delta": piece, **place}
        done = {"name": item["name"], "arguments": said.whole}
        yield {"type": "response.function_call_arguments.done", **done, **place}
    else:
        opened = item | {"status": "in_progress", "content": []}
        yield {"type": "response.output_item.added", "output_index": 0, "item": opened}
        place |= {"content_index": 0}
        yield {"type": "response.content_part.added", "part": _text_part(""), **place}
        for piece in said.pieces:
            yield {"type": "response.output_text.delta", "delta": piece, "logprobs": [], **place}
        yield {"type": "response.output_text.done", "text": said.whole, "logprobs": [], **place}
        yield {"type": "response.content_part.done", "part": _text_part(said.whole), **place}
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}
    yield {"type": f"response.{finished['status']}", "response": finished}
