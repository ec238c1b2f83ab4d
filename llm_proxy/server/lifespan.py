"""The ASGI lifespan: what an application does before its first request and after its last.

Source: https://asgi.readthedocs.io/en/latest/specs/lifespan.html
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from llm_proxy.server.asgi import VERSIONS, Application, Message


class LifespanFailed(Exception):
    """The application could not start, broke down later, or did not shut down in order."""


class Lifespan:
    """One application from its startup to its shutdown.

    An application that raises or returns before it has answered `lifespan.startup` does not know the lifespan, as ASGI
    has it, and is served without. One whose lifespan raises later has lost what its requests rely on, so the serving is
    brought to an end.

    Attributes:
        state: what the application has left for its requests.
        broken: is set when the lifespan raised between startup and shutdown.
    """

    def __init__(self, app: Application, report: Callable[[BaseException], None], timeout: float) -> None:
        """Prepare the lifespan of `app`; its shutdown may take `timeout` seconds."""
        self.state: dict[str, Any] = {}
        self.broken = trio.Event()
        self._app = app
        self._report = report
        self._timeout = timeout
        self._to_app, self._from_server = trio.open_memory_channel[Message](2)
        self._answered = {"startup": trio.Event(), "shutdown": trio.Event()}
        self._failure: str | None = None
        self._ended = False
        # Whoever cancels the server does not cancel the application's own shutdown.
        self._scope = trio.CancelScope(shield=True)

    async def around(self, serving: Callable[[], Awaitable[None]]) -> None:
        """Start the application, run `serving`, and shut the application down, also when `serving` was cancelled.

        Raises:
            LifespanFailed: the application could not start (`serving` was not called), or broke down later.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run)
            try:
                await self._ask("startup")
                if self._failure is None:
                    try:
                        await serving()
                    finally:
                        with trio.move_on_after(self._timeout, shield=True):
                            await self._ask("shutdown")
            finally:
                self._scope.cancel()
        if self._failure is not None:
            raise LifespanFailed(self._failure)

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": VERSIONS, "state": self.state}
        try:
            with self._scope:
                await self._app(scope, self._from_server.receive, self._take)
        except Exception as error:  # noqa: BLE001 - whatever an application raises here has one meaning
            if self._answered["startup"].is_set():
                self._report(error)
                self._failure = self._failure or "the application's lifespan broke down"
                self.broken.set()
        finally:
            self._ended = True
            for answered in self._answered.values():
                answered.set()

    async def _take(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        _, phase, outcome = message["type"].split(".")
        if outcome == "failed":
            self._failure = message.get("message") or f"the application failed in its {phase}"
        self._answered[phase].set()

    async def _ask(self, phase: str) -> None:
        if not self._ended:
            self._to_app.send_nowait({"type": f"lifespan.{phase}"})
            await self._answered[phase].wait()
