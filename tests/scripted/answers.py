"""The script: texts, token counts and JSON examples, all derived from the request alone."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from attrs import frozen

from tests.scripted.message import JsonObject, ScriptedError

#: The moment at which everything was created, in Unix seconds (2026-01-01T00:00:00Z).
CREATED = 1_767_225_600
#: Tokens that a chat message costs beyond its text.
MESSAGE_OVERHEAD = 4
#: Prompts of at least this many tokens are reported as partly cached, in steps of `CACHE_STEP`.
CACHE_FLOOR = 1024
CACHE_STEP = 128

_PIECE = re.compile(r"\s*\w{1,8}|\s*[^\w\s]|\s+")
#: Characters of the prompt that an answer and an example quote.
_QUOTED = 300
_EXAMPLE = 40
_DEPTH = 8


def pieces(text: str) -> list[str]:
    """Cut a text into the units that count as tokens; joined, they are the text again."""
    return _PIECE.findall(text)


def count_tokens(text: str) -> int:
    """Return how many tokens a text is said to have."""
    return len(pieces(text))


def identity(prefix: str, body: bytes) -> str:
    """Return an id in the provider's style that depends on the request's body only, but not on the option of usage."""
    asked = body.replace(b',"stream_options":{"include_usage":true}', b"")
    return prefix + hashlib.sha256(asked).hexdigest()[:24]


def cached_share(prompt_tokens: int) -> int:
    """Return how many of a prompt's tokens are said to have come from the provider's cache."""
    return prompt_tokens // CACHE_STEP * CACHE_STEP if prompt_tokens >= CACHE_FLOOR else 0


def content_text(content: object) -> str:
    """Return the text of a message's content: a string, or a list of parts, some of which have a text."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = (part for part in content if isinstance(part, dict))
        found = (part.get("text") or part.get("content") or part.get("output") for part in parts)
        return " ".join(content_text(text) for text in found if text)
    return ""


def messages_of(body: JsonObject, name: str) -> list[JsonObject]:
    """Return a body's list of messages; raises ScriptedError (400) when it has none."""
    messages = body.get(name)
    if not isinstance(messages, list) or not messages or not all(isinstance(item, dict) for item in messages):
        raise ScriptedError(400, f"'{name}' must be a list of at least one message.", param=name)
    return messages


def model_of(body: JsonObject) -> str:
    """Return the model that a body names; raises ScriptedError (400) when it names none."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise ScriptedError(400, "You must provide a model parameter.", param="model")
    return model


def prompt_tokens(messages: Sequence[JsonObject], *further: str) -> int:
    """Return the size of a prompt: its messages, and texts such as instructions or a tool list."""
    spoken = sum(count_tokens(content_text(message.get("content"))) + MESSAGE_OVERHEAD for message in messages)
    return spoken + sum(count_tokens(text) for text in further)


@frozen
class Text:
    """A text answer, in the pieces in which it is streamed. `cut`: a token limit ended it."""

    pieces: tuple[str, ...]
    cut: bool

    @property
    def whole(self) -> str:
        """The text in one piece."""
        return "".join(self.pieces)


def answer(prompt: str, *, limit: int | None = None, chunks: int | None = None) -> Text:
    """Answer a prompt in at most `limit` tokens; with `chunks`, in exactly so many pieces if the limit allows."""
    quoted = prompt.strip()
    if len(quoted) > _QUOTED:
        quoted = quoted[:_QUOTED] + "…"
    said = f" You said: “{quoted}”" if quoted else ""
    return written(f"This answer comes from a script; no model was asked.{said}", limit=limit, chunks=chunks)


def written(text: str, *, limit: int | None = None, chunks: int | None = None) -> Text:
    """Give a fixed text the same treatment as `answer`; `chunks` repeats or shortens it."""
    cut = pieces(text)
    if chunks is not None:
        cut = [cut[index % len(cut)] for index in range(chunks)]
    shown = cut if limit is None else cut[:limit]
    return Text(tuple(shown), cut=len(shown) < len(cut))


def token_limit(body: JsonObject, *names: str) -> int | None:
    """Return the first of the body's token limits that is set; raises ScriptedError (400) unless it is positive."""
    for name in names:
        value = body.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ScriptedError(400, f"'{name}' must be a positive integer.", param=name)
        return value
    return None


def slices(text: str, count: int) -> Iterator[str]:
    """Cut a text into at most `count` parts of nearly equal length."""
    size = max(1, -(-len(text) // count))
    return (text[start : start + size] for start in range(0, len(text), size))


def example(schema: object, prompt: str, depth: int = 0) -> Any:
    """Make a JSON value that fits a JSON schema (the common part of it); strings quote the prompt."""
    if not isinstance(schema, dict) or depth > _DEPTH:
        return {}
    fixed = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    if fixed:
        return fixed[0]
    for name in ("anyOf", "oneOf", "allOf"):
        if schema.get(name):
            return example(schema[name][0], prompt, depth + 1)
    kind = schema.get("type", "object")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "array":
        return [example(schema.get("items", {"type": "string"}), prompt, depth + 1)]
    if kind == "object":
        properties: Iterable[tuple[str, object]] = (schema.get("properties") or {}).items()
        return {name: example(value, prompt, depth + 1) for name, value in properties}
    scalars = {
        "string": prompt.strip()[:_EXAMPLE] or "scripted",
        "integer": schema.get("minimum", 1),
        "number": schema.get("minimum", 1.5),
        "boolean": True,
    }
    return scalars.get(kind)
