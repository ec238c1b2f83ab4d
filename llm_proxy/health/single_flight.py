"""One call at a time, whose result is shared by all callers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio
from attrs import define, field

from db.errors import DatabaseError
from llm_proxy.logging import log

T = TypeVar("T")

_log = log.logger("health")


@define(eq=False)
class _Call(Generic[T]):
    """A call that has started; `result` is None until it is done, and if it fails."""

    started: float
    done: trio.Event = field(factory=trio.Event)
    result: T | None = None


class SingleFlight(Generic[T]):
    """Calls a function of the database, at most once at a time, with a timeout for the callers.

    A thread that waits for a frozen database server cannot be cancelled before the driver's own timeout, and load
    balancers do not wait so long. So the call runs in a task of its own.
    """

    def __init__(self, nursery: trio.Nursery, function: Callable[[], Awaitable[T]], timeout: float) -> None:
        self._nursery = nursery
        self._function = function
        self._timeout = timeout
        self._call: _Call[T] | None = None

    async def get(self) -> T | None:
        """Wait for the call in progress, or start one. None if it fails, or after the timeout since its start."""
        if self._call is None:
            self._call = _Call(trio.current_time())
            self._nursery.start_soon(self._run, self._call)
        call = self._call
        with trio.move_on_at(call.started + self._timeout):
            await call.done.wait()
            return call.result
        return None

    async def _run(self, call: _Call[T]) -> None:
        try:
            call.result = await self._function()
        except DatabaseError:
            pass  # reported elsewhere
        except Exception as error:  # noqa: BLE001 - an error here must not stop the server
            _log.error("the database could not be checked", exc_info=error)
        finally:
            self._call = None
            call.done.set()
