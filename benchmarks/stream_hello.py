"""The bare ASGI application that streaming is compared with: it sends the scripted upstream's pieces, at its pace.

`hypercorn -k trio benchmarks.stream_hello:app` is the reference. The directions `x-scripted-chunks` and
`x-scripted-gap` mean what they mean to the upstream.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
import trio

from benchmarks.hello import Message, follow_lifespan
from benchmarks.load import CHAT
from benchmarks.upstream.rendering import PlainAuthor
from tests.scripted.directions import read_directions
from tests.scripted.message import Reply, Request
from tests.scripted.provider import ScriptedProvider


def _reply() -> Reply:
    """Have the upstream's author write a stream: one piece with text, and the two that end it."""
    headers = ((b"authorization", b"Bearer key"), (b"content-type", b"application/json"))
    request = Request("POST", b"/v1/chat/completions", b"", headers, msgspec.json.encode(CHAT | {"stream": True}))
    return PlainAuthor(ScriptedProvider("key"), chunks=1).respond(request)


_REPLY = _reply()
_PIECE, *_LAST = _REPLY.chunks
_START = {"type": "http.response.start", "status": 200, "headers": list(_REPLY.headers)}


async def app(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """Read the body and stream the same pieces to every request."""
    if scope["type"] == "lifespan":
        await follow_lifespan(receive, send)
        return
    while (await receive()).get("more_body"):
        pass
    directions = read_directions(scope["headers"])
    gap = directions.gap or 0
    await send(_START)
    for number, piece in enumerate([_PIECE] * (directions.chunks or 1) + _LAST):
        await trio.sleep(gap if number else 0)
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body"})
