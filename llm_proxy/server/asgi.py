"""The types of ASGI 3 that this server and an application exchange, and the lifespan of an application.

Source: https://asgi.readthedocs.io/en/latest/specs/www.html and https://asgi.readthedocs.io/en/latest/specs/lifespan.html
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import trio

Scope: TypeAlias = dict[str, Any]
Message: TypeAlias = dict[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Address: TypeAlias = tuple[str, int | None]
"""Host and port; for a Unix socket its path and None."""

VERSIONS = {"version": "3.0", "spec_version": "2.4"}
"""Spec 2.4: `send` raises `OSError` after the client has disconnected."""


def report_each(errors: BaseExceptionGroup[Exception], report: Callable[[BaseException], None]) -> None:
    """Report the exceptions of a group one by one. An exception of `report` itself is ignored."""
    for error in errors.exceptions:
        with contextlib.suppress(Exception):
            report(error)


class LifespanFailed(Exception):
    """The application failed to start, failed later, or failed to shut down."""


class Lifespan:
    """The lifespan of one application, from startup to shutdown.

    By the ASGI specification, an application that raises or returns before it has answered `lifespan.startup` does not
    support the lifespan, and is served without it. If the lifespan raises later, requests lack what they depend on, so
    the server stops.
    """

    def __init__(self, app: ASGIApp, stop: trio.Event, report: Callable[[BaseException], None], timeout: float) -> None:
        self.state: dict[str, Any] = {}  # set by the application for its requests
        self._stop = stop
        self._app = app
        self._report = report
        self._timeout = timeout
        self._to_app, self._from_server = trio.open_memory_channel[Message](2)
        self._answered = {"startup": trio.Event(), "shutdown": trio.Event()}
        self._failure: str | None = None
        # Cancelling the server does not cancel the application's own shutdown.
        self._scope = trio.CancelScope(shield=True)

    async def around(self, serving: Callable[[], Awaitable[None]]) -> None:
        """Start the application, run `serving`, and shut the application down, also if `serving` is cancelled.

        Raises LifespanFailed if the application could not start (`serving` was not called), or failed later.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run)
            try:
                await self._request("startup")
                if self._failure is None:
                    try:
                        await serving()
                    finally:
                        with trio.move_on_after(self._timeout, shield=True):
                            await self._request("shutdown")
            finally:
                self._scope.cancel()
        if self._failure is not None:
            raise LifespanFailed(self._failure)

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": VERSIONS, "state": self.state}
        try:
            with self._scope:
                await self._app(scope, self._from_server.receive, self._send)
        except Exception as error:  # noqa: BLE001 - all exceptions of an application have the same meaning here
            if self._answered["startup"].is_set():
                self._report(error)
                self._failure = self._failure or "the application's lifespan raised an exception"
                self._stop.set()
        finally:
            for answered in self._answered.values():
                answered.set()

    async def _send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        _, phase, outcome = message["type"].split(".")
        if outcome == "failed":
            self._failure = message.get("message") or f"the application failed in its {phase}"
        self._answered[phase].set()

    async def _request(self, phase: str) -> None:
        self._to_app.send_nowait({"type": f"lifespan.{phase}"})
        await self._answered[phase].wait()
