"""OpenAI's chat completions (plain, streamed, with tools, as JSON) and its older completions."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from attrs import frozen

from tests.scripted import answers
from tests.scripted.message import JsonObject, Reply, Request, ScriptedError, event, event_stream, json_reply

_DONE = b"data: [DONE]\n\n"
_FINGERPRINT = "fp_scripted"
_MAX_CHOICES = 8


@frozen
class _Choice:
    """What is said: words, or the call of a tool whose arguments are the words' stead."""

    text: answers.Text
    tool: str | None = None

    @property
    def finish_reason(self) -> str:
        if self.tool is not None:
            return "tool_calls"
        return "length" if self.text.cut else "stop"


def _usage(prompt: int, completion: int) -> JsonObject:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": answers.cached_share(prompt), "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _last_words(messages: list[JsonObject]) -> str:
    spoken = [message for message in messages if message.get("role") in {"user", "tool"}]
    return answers.content_text((spoken or messages)[-1].get("content"))


def chosen_tool(body: JsonObject) -> JsonObject | None:
    """Return the function that the answer is to call: the one that is demanded, else the first that is offered."""
    offered = [tool for tool in body.get("tools") or () if isinstance(tool, dict) and tool.get("type") == "function"]
    functions = [tool.get("function", tool) for tool in offered]
    choice = body.get("tool_choice", "auto")
    if not functions or choice == "none":
        return None
    if isinstance(choice, dict):
        name = choice.get("function", choice).get("name")
        for function in functions:
            if function.get("name") == name:
                return dict(function)
        raise ScriptedError(400, f"Tool choice '{name}' not found in 'tools' parameter.", param="tool_choice")
    return dict(functions[0])


def _choice(request: Request, body: JsonObject, messages: list[JsonObject]) -> _Choice:
    prompt = _last_words(messages)
    limit = answers.token_limit(body, "max_completion_tokens", "max_tokens")
    chunks = request.directions.chunks
    answered = messages[-1].get("role") == "tool"
    if not answered and (tool := chosen_tool(body)) is not None:
        arguments = msgspec.json.encode(answers.example(tool.get("parameters"), prompt)).decode()
        return _Choice(answers.written(arguments, chunks=None), tool=str(tool.get("name")))
    form = body.get("response_format")
    kind = form.get("type") if isinstance(form, dict) else None
    if isinstance(form, dict) and kind in {"json_object", "json_schema"}:
        schema = (form.get("json_schema") or {}).get("schema") or {"properties": {"answer": {"type": "string"}}}
        return _Choice(answers.written(msgspec.json.encode(answers.example(schema, prompt)).decode(), limit=limit))
    return _Choice(answers.answer(prompt, limit=limit, chunks=chunks))


def _choice_count(body: JsonObject) -> int:
    count = body.get("n") or 1
    if not isinstance(count, int) or not 1 <= count <= _MAX_CHOICES:
        raise ScriptedError(400, f"'n' must be an integer between 1 and {_MAX_CHOICES}.", param="n")
    return count


def _tool_call(request: Request, choice: _Choice, index: int) -> JsonObject:
    function = {"name": choice.tool, "arguments": choice.text.whole}
    return {"id": answers.identity(f"call_{index}", request.body), "type": "function", "function": function}


def chat_completions(request: Request) -> Reply:
    """POST /v1/chat/completions."""
    body = request.json()
    model = answers.model_of(body)
    messages = answers.messages_of(body, "messages")
    choice = _choice(request, body, messages)
    count = _choice_count(body)
    tools = msgspec.json.encode(body["tools"]).decode() if body.get("tools") else ""
    usage = _usage(answers.prompt_tokens(messages, tools), len(choice.text.pieces) * count)
    head = {
        "id": answers.identity("chatcmpl-", request.body),
        "object": "chat.completion",
        "created": answers.CREATED,
        "model": model,
        "service_tier": "default",
        "system_fingerprint": _FINGERPRINT,
    }
    if body.get("stream"):
        options = body.get("stream_options")
        wants_usage = bool(isinstance(options, dict) and options.get("include_usage"))
        head["object"] = "chat.completion.chunk"
        return event_stream(_chat_events(request, head, choice, count, usage if wants_usage else None))
    message: JsonObject = {"role": "assistant", "content": choice.text.whole, "refusal": None, "annotations": []}
    choices = []
    for index in range(count):
        said = dict(message)
        if choice.tool is not None:
            said |= {"content": None, "tool_calls": [_tool_call(request, choice, index)]}
        choices.append({"index": index, "message": said, "logprobs": None, "finish_reason": choice.finish_reason})
    return json_reply(head | {"choices": choices, "usage": usage})


def _chat_events(
    request: Request, head: JsonObject, choice: _Choice, count: int, usage: JsonObject | None
) -> Iterator[bytes]:
    blank: JsonObject = {} if usage is None else {"usage": None}

    def chunk(index: int, delta: JsonObject, finish_reason: str | None = None) -> bytes:
        part = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return event(head | {"choices": [part]} | blank)

    for index in range(count):
        if choice.tool is None:
            yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
        else:
            call = _tool_call(request, choice, index)
            call |= {"index": 0, "function": {"name": choice.tool, "arguments": ""}}
            yield chunk(index, {"role": "assistant", "content": None, "tool_calls": [call]})
    for piece in choice.text.pieces:
        for index in range(count):
            if choice.tool is None:
                yield chunk(index, {"content": piece})
            else:
                yield chunk(index, {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
    for index in range(count):
        yield chunk(index, {}, choice.finish_reason)
    if usage is not None:
        yield event(head | {"choices": [], "usage": usage})
    yield _DONE


def completions(request: Request) -> Reply:
    """POST /v1/completions."""
    body = request.json()
    model = answers.model_of(body)
    prompt = body.get("prompt", "")
    text = " ".join(map(str, prompt)) if isinstance(prompt, list) else str(prompt)
    said = answers.answer(text, limit=answers.token_limit(body, "max_tokens"), chunks=request.directions.chunks)
    usage = _usage(answers.count_tokens(text), len(said.pieces))
    finish_reason = "length" if said.cut else "stop"
    head = {
        "id": answers.identity("cmpl-", request.body),
        "object": "text_completion",
        "created": answers.CREATED,
        "model": model,
    }

    def choices(words: str, reason: str | None) -> JsonObject:
        return {"choices": [{"text": words, "index": 0, "logprobs": None, "finish_reason": reason}]}

    if not body.get("stream"):
        return json_reply(head | choices(said.whole, finish_reason) | {"usage": usage})
    events = [event(head | choices(piece, None)) for piece in said.pieces]
    events.append(event(head | choices("", finish_reason)))
    options = body.get("stream_options")
    if isinstance(options, dict) and options.get("include_usage"):
        events.append(event(head | {"choices": [], "usage": usage}))
    return event_stream([*events, _DONE])
