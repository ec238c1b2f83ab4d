"""The provider of the demo: OpenAI's chat completions, plain and streamed, from a script without a model."""

from __future__ import annotations

import hmac
import re
import secrets
import time
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import trio
from attrs import field, frozen

from llm_proxy.server.asgi import Message, Receive, Scope, Send

#: One token.
_TOKEN = re.compile(r"\s*\w{1,8}|\s*[^\w\s]|\s+")
#: Tokens of a message besides its text.
_MESSAGE_OVERHEAD = 4
#: Maximum number of characters of the question in the answer.
_QUOTED = 300


class _ChatMessage(msgspec.Struct):
    content: str | list[dict[str, Any]] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return " ".join(str(part.get("text", "")) for part in self.content)
        return self.content or ""


class _ChatRequest(msgspec.Struct):
    model: str
    messages: Annotated[list[_ChatMessage], msgspec.Meta(min_length=1)]
    stream: bool = False
    stream_options: dict[str, Any] | None = None


@frozen
class DemoProvider:
    """An ASGI application that answers chat completions, with `gap` seconds between the events of a stream."""

    api_key: str = field(repr=False)
    gap: float

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        key = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(key, b"Bearer " + self.api_key.encode()):
            await _refuse(send, 401, "Incorrect API key provided.", "invalid_api_key")
            return
        if (scope["method"], scope["path"]) != ("POST", "/v1/chat/completions"):
            await _refuse(send, 404, "The demo answers POST /v1/chat/completions only.", "unknown_url")
            return
        try:
            ask = msgspec.json.decode(body, type=_ChatRequest)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            await _refuse(send, 400, f"The body is no chat completion request: {error}", None)
            return
        await self._answer(send, ask)

    async def _answer(self, send: Send, ask: _ChatRequest) -> None:
        quoted = ask.messages[-1].text.strip()[:_QUOTED]
        said = f"This answer comes from a script; no model was asked. You said: “{quoted}”"
        pieces = _TOKEN.findall(said)
        prompt = sum(len(_TOKEN.findall(message.text)) + _MESSAGE_OVERHEAD for message in ask.messages)
        number = len(pieces)
        usage = {"prompt_tokens": prompt, "completion_tokens": number, "total_tokens": prompt + number}
        head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": "chat.completion.chunk" if ask.stream else "chat.completion",
            "created": int(time.time()),
            "model": ask.model,
        }
        if not ask.stream:
            message = {"role": "assistant", "content": said, "refusal": None}
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
            await _reply(send, 200, head | {"choices": [choice], "usage": usage})
            return
        wants_usage = (ask.stream_options or {}).get("include_usage")
        await send(_start(200, b"text/event-stream; charset=utf-8"))
        for number, event in enumerate(_events(head, pieces, usage if wants_usage else None)):
            await trio.sleep(self.gap if number else 0)
            await send({"type": "http.response.body", "body": b"data: " + event + b"\n\n", "more_body": True})
        await send({"type": "http.response.body"})


def _events(head: dict[str, Any], pieces: list[str], usage: dict[str, int] | None) -> Iterator[bytes]:
    deltas: list[tuple[dict[str, str], str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": piece}, None) for piece in pieces]
    for delta, reason in [*deltas, ({}, "stop")]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        yield msgspec.json.encode(head | {"choices": [choice]})
    if usage is not None:
        yield msgspec.json.encode(head | {"choices": [], "usage": usage})
    yield b"[DONE]"


async def _refuse(send: Send, status: int, message: str, code: str | None) -> None:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    await _reply(send, status, {"error": error})


async def _reply(send: Send, status: int, value: dict[str, Any]) -> None:
    await send(_start(status, b"application/json"))
    await send({"type": "http.response.body", "body": msgspec.json.encode(value)})


def _start(status: int, content_type: bytes) -> Message:
    return {"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type)]}
