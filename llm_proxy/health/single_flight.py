"""Looks at the database on behalf of all who ask, answered in time whatever it does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio
from attrs import define, field

from db.errors import DatabaseError
from llm_proxy.logging import log

T = TypeVar("T")

_log = log.logger("looks")


@define(eq=False)
class _Look(Generic[T]):
    """A look that has begun: since when, and once it is done, what it has found; None where it has failed."""

    began: float
    done: trio.Event = field(factory=trio.Event)
    found: T | None = None


class Looks(Generic[T]):
    """One look at a time, each when it is asked for.

    A thread that waits for a frozen server cannot be left before the driver's own deadline, which is longer than the
    patience of load balancers and scrapers. So looks have tasks of their own, and who asks waits only for a while.
    """

    def __init__(self, nursery: trio.Nursery, take: Callable[[], Awaitable[T]], patience: float) -> None:
        """Look by `take`, in tasks of `nursery`; `patience` is how many seconds whoever asks waits."""
        self._nursery = nursery
        self._take = take
        self._patience = patience
        self._look: _Look[T] | None = None

    async def ask(self) -> T | None:
        """What a look finds; None where it fails, or is not done in time.

        Those who come while a look is under way share it; once it has lasted too long, they are told at once.
        """
        if self._look is None:
            self._look = _Look(trio.current_time())
            self._nursery.start_soon(self._run, self._look)
        look = self._look
        with trio.move_on_at(look.began + self._patience):
            await look.done.wait()
            return look.found
        return None

    async def _run(self, look: _Look[T]) -> None:
        try:
            look.found = await self._take()
        except DatabaseError:
            pass  # it is known of elsewhere, and nothing is found
        except Exception as error:  # noqa: BLE001 - it must not take the server along, which may serve nevertheless
            _log.error("the database could not be looked at", exc_info=error)
        finally:
            self._look = None
            look.done.set()
