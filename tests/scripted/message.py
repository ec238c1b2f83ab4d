"""What a handler of the scripted provider is given and what it returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec
from attrs import frozen

from tests.scripted.directions import NONE, Directions

JsonObject = dict[str, Any]
Headers = tuple[tuple[bytes, bytes], ...]
Dialect = Literal["openai", "anthropic"]

#: `error.type` by status, as each provider words it.
_OPENAI_TYPES = {401: "invalid_request_error", 429: "requests", 503: "server_error"}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class ScriptedError(Exception):
    """A request that the provider answers with an error in its own shape."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        """Take the status and the words; `code` and `param` appear in OpenAI's shape only."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param


@frozen
class Request:
    """One request, its body read to the end. Header names are lower case, as ASGI has them."""

    method: str
    raw_path: bytes
    query: bytes
    headers: Headers
    body: bytes
    directions: Directions = NONE

    @property
    def path(self) -> str:
        """The path without its query."""
        return self.raw_path.decode("latin-1")

    def header(self, name: bytes) -> str | None:
        """Return the first value of a header, or None."""
        return next((value.decode("latin-1") for key, value in self.headers if key == name), None)

    def json(self) -> JsonObject:
        """Return the body as a JSON object; raises ScriptedError (400) when it is none."""
        try:
            value = msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise ScriptedError(400, "We could not parse the JSON body of your request.") from None
        if not isinstance(value, dict):
            raise ScriptedError(400, "The JSON body of your request must be an object.")
        return value


@frozen
class Reply:
    """A whole answer: its body in the pieces in which it is to be sent."""

    chunks: tuple[bytes, ...]
    status: int = 200
    content_type: bytes = b"application/json"
    headers: Headers = ()
    #: Sent without a Content-Length, with the directed gap between the pieces.
    streamed: bool = False
    #: How the reply is to be sent.
    directions: Directions = NONE


def json_reply(value: Mapping[str, Any], status: int = 200) -> Reply:
    """Answer with one JSON document."""
    return Reply((msgspec.json.encode(value),), status)


def event_stream(events: Iterable[bytes]) -> Reply:
    """Answer with server-sent events, one piece each."""
    return Reply(tuple(events), content_type=b"text/event-stream; charset=utf-8", streamed=True)


def event(value: Mapping[str, Any], name: str | None = None) -> bytes:
    """Frame one JSON document as a server-sent event, with an `event:` line when it has a name."""
    data = b"data: " + msgspec.json.encode(value) + b"\n\n"
    return data if name is None else b"event: " + name.encode() + b"\n" + data


def refuse(refusal: ScriptedError, dialect: Dialect) -> Reply:
    """Put a refusal into the provider's shape."""
    status = refusal.status
    if dialect == "anthropic":
        kind = _ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
        return json_reply({"type": "error", "error": {"type": kind, "message": refusal.message}}, status)
    kind = _OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error = {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}
    return json_reply({"error": error}, status)
