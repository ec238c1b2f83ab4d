"""Replies as bytes on the wire. The same request is rendered once: rendering costs far more than sending."""

from __future__ import annotations

from typing import Protocol

import msgspec
from attrs import define, evolve, field, frozen

from tests.scripted.directions import PREFIX, Directions
from tests.scripted.message import Headers, Reply, Request, event
from tests.scripted.provider import ScriptedProvider

_CACHE = 4096
#: Headers that a reply may depend on, apart from the directions.
_RELEVANT = frozenset(
    {b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key", b"anthropic-version", b"content-type"}
)
_END = b"0\r\n\r\n"


class Author(Protocol):
    """The source of replies."""

    def respond(self, request: Request) -> Reply:
        """Return the reply to a request, with its headers but the framing."""


@define
class PlainAuthor:
    """Answers chat completions in some 300 bytes with four headers, streams in `chunks` pieces; all else as scripted.

    The CPU target is for this size and shape.
    """

    scripted: ScriptedProvider
    chunks: int = 20

    def respond(self, request: Request) -> Reply:
        """Return the small reply if the scripted one is a chat completion."""
        reply = self.scripted.respond(request)
        if reply.status != 200 or reply.directions.echo or request.path != "/v1/chat/completions":
            return reply
        usage = {"prompt_tokens": 12, "completion_tokens": 20, "total_tokens": 32}
        head = {"id": "chatcmpl-0", "object": "chat.completion", "created": 1_767_225_600, "model": "gpt-scripted"}
        headers = ((b"content-type", reply.content_type), (b"x-request-id", b"req_0"), (b"cache-control", b"no-cache"))
        if not reply.streamed:
            message = {"role": "assistant", "content": "All's well that ends well. " * 2}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            body = msgspec.json.encode(head | {"choices": choices, "usage": usage})
            return evolve(reply, chunks=(body,), headers=headers)
        count = reply.directions.chunks or self.chunks
        head["object"] = "chat.completion.chunk"
        piece = event(head | {"choices": [{"index": 0, "delta": {"content": "All's well. "}, "finish_reason": None}]})
        last = event(head | {"choices": [], "usage": usage})
        return evolve(reply, chunks=(*[piece] * count, last, b"data: [DONE]\n\n"), headers=headers)


@frozen
class Rendered:
    """A reply, ready to be sent: the head, then the pieces; a streamed one's last piece carries the chunked end."""

    status: int
    head: bytes
    pieces: tuple[bytes, ...]
    streamed: bool
    directions: Directions
    whole: bytes

    @property
    def simple(self) -> bool:
        """Whether it can be sent in one go, at once."""
        return not self.streamed and not self.directions.delay and self.directions.abort is None


@define
class Renderer:
    """Renders an author's replies; those that depend on nothing but the request are kept."""

    author: Author
    _cache: dict[tuple[object, ...], Rendered] = field(factory=dict, init=False, repr=False)

    def render(self, method: str, target: bytes, headers: Headers, body: bytes) -> Rendered:
        """Return the reply to a request."""
        relevant = tuple([item for item in headers if item[0] in _RELEVANT or item[0].startswith(PREFIX)])
        key = (method, target, relevant, body)
        rendered = self._cache.get(key)
        if rendered is None:
            path, _, query = target.partition(b"?")
            request = Request(method, path, query, headers, body)
            reply = self.author.respond(request)
            rendered = wire(reply, method)
            # Files are remembered and an echo depends on every header: such replies hold once only.
            if not reply.directions.echo and not path.startswith(b"/v1/files"):
                if len(self._cache) >= _CACHE:
                    self._cache.clear()
                self._cache[key] = rendered
        return rendered


def wire(reply: Reply, method: str) -> Rendered:
    """Frame a reply as HTTP/1.1 (RFC 9112): chunked when it is streamed, else with a Content-Length."""
    lines = [b"HTTP/1.1 %d Scripted" % reply.status]
    lines += [name + b": " + value for name, value in reply.headers]
    bodiless = method == "HEAD" or reply.status in {204, 304}
    if reply.streamed:
        lines.append(b"transfer-encoding: chunked")
        framed = [b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in reply.chunks if chunk]
        framed = [*framed[:-1], framed[-1] + _END] if framed else [_END]
    else:
        lines.append(b"content-length: %d" % sum(map(len, reply.chunks)))
        framed = [chunk for chunk in reply.chunks if chunk]
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    pieces = () if bodiless else tuple(framed)
    return Rendered(reply.status, head, pieces, reply.streamed, reply.directions, head + b"".join(pieces))
