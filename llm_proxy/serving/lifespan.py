"""The ASGI lifespan: what an application does before its first request and after its last.

Source: https://asgi.readthedocs.io/en/latest/specs/lifespan.html
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from llm_proxy.serving.asgi import VERSIONS, Application, Message


class LifespanFailed(Exception):
    """The application could not start, or did not shut down in order; the message is its own."""


@asynccontextmanager
async def lifespan(app: Application, report: Callable[[BaseException], None]) -> AsyncIterator[dict[str, Any]]:
    """Start `app`, give the state that it wants with each request, and shut it down when the block is left.

    An application that raises before it has answered `lifespan.startup` does not know the lifespan, as ASGI has it, and
    is served without.

    Raises:
        LifespanFailed: the application said so.
    """
    conversation = _Conversation(app)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(conversation.run, report)
        await conversation.say("startup")
        try:
            yield conversation.state
        finally:
            with trio.CancelScope(shield=True):
                await conversation.say("shutdown")
            nursery.cancel_scope.cancel()


class _Conversation:
    def __init__(self, app: Application) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._to_app, self._from_server = trio.open_memory_channel[Message](2)
        self._answered: dict[str, trio.Event] = {"startup": trio.Event(), "shutdown": trio.Event()}
        self._failure: str | None = None
        self._ended = False

    async def run(self, report: Callable[[BaseException], None]) -> None:
        scope = {"type": "lifespan", "asgi": VERSIONS, "state": self.state}
        try:
            await self._app(scope, self._from_server.receive, self._take)
        except Exception as error:
            if self._answered["startup"].is_set():
                report(error)
        finally:
            self._ended = True
            for event in self._answered.values():
                event.set()

    async def _take(self, message: Message) -> None:
        _, phase, outcome = message["type"].split(".")
        if outcome == "failed":
            self._failure = message.get("message", "") or f"the application failed in its {phase}"
        self._answered[phase].set()

    async def say(self, phase: str) -> None:
        if not self._ended:
            self._to_app.send_nowait({"type": f"lifespan.{phase}"})
            await self._answered[phase].wait()
        if self._failure is not None:
            raise LifespanFailed(self._failure)
