"""Applications for tests of the server."""

from __future__ import annotations

from typing import Any

import trio
from attrs import Factory, define

from llm_proxy.server.asgi import ASGIApp, Message, Receive, Scope, Send


async def respond(send: Send, body: bytes, *, status: int = 200, length: int | None = None) -> None:
    """Send a complete response, with its own or another `Content-Length`."""
    headers = [(b"content-length", b"%d" % (len(body) if length is None else length))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def read_all(receive: Receive) -> bytes:
    """Return the complete body of a request.

    Raises:
        EOFError: the client disconnected before its end.
    """
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise EOFError(f"{len(body)} bytes, then the end")
        piece: bytes = message["body"]
        body += piece
        if not message["more_body"]:
            return body


@define
class Echo:
    """Answers each request with its body, and stores scopes and bodies."""

    scopes: list[Scope] = Factory(list)
    bodies: list[bytes] = Factory(list)
    truncated: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        self.scopes.append(scope)
        try:
            self.bodies.append(await read_all(receive))
        except EOFError:
            self.truncated += 1
            return
        await respond(send, self.bodies[-1])


@define
class Hold:
    """Reads a request and then waits for a disconnect, or for `release`."""

    running: int = 0
    disconnects: int = 0
    release: trio.Event = Factory(trio.Event)
    scopes: list[Scope] = Factory(list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        self.scopes.append(scope)
        self.running += 1
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, receive, nursery.cancel_scope)
                await self.release.wait()
                await respond(send, b"released")
                nursery.cancel_scope.cancel()
        finally:
            self.running -= 1

    async def _watch(self, receive: Receive, scope: trio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.disconnects += 1
        scope.cancel()


def sending(*messages: Message) -> ASGIApp:
    """Return an application that sends these messages for each request."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        for message in messages:
            await send(dict(message))

    return app


def start(status: int = 200, *headers: tuple[bytes, bytes]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(data: bytes = b"", *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


def with_lifespan(app: ASGIApp, journal: list[str] | None = None, **state: Any) -> ASGIApp:
    """Add a lifespan to an application that sets `state` and writes to `journal`."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        while True:
            phase = (await receive())["type"]
            if journal is not None:
                journal.append(phase)
            scope["state"].update(state)
            await send({"type": f"{phase}.complete"})
            if phase == "lifespan.shutdown":
                return

    return wrapped
