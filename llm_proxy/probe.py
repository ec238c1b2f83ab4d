"""Whether the database can be used, answered in time whatever it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from attrs import define, field

from db import migrate
from db.errors import DatabaseError
from llm_proxy import log

if TYPE_CHECKING:
    from db.database import Database

_log = log.logger("probe")


@define(eq=False)
class _Look:
    """A look at the database that has begun: since when, and once it is done, what is wrong."""

    began: float
    done: trio.Event = field(factory=trio.Event)
    reasons: tuple[str, ...] = ()


class Probe:
    """Looks at the database on behalf of all who ask.

    A thread that waits for a frozen server cannot be left before the driver's own deadline, which is longer than a load
    balancer's patience. So looks have a task of their own, one at a time, and who asks waits only for a while.
    """

    def __init__(self, database: Database, nursery: trio.Nursery, deadline: float) -> None:
        """Look from tasks in `nursery`; `deadline` is how many seconds whoever asks waits."""
        self._database = database
        self._nursery = nursery
        self._deadline = deadline
        self._look: _Look | None = None

    async def reasons(self) -> tuple[str, ...]:
        """What is wrong: `database`, `schema`, or nothing; within the deadline.

        Those who come while a look is under way share it; once it has lasted too long, they are told at once.
        """
        if self._look is None:
            self._look = _Look(trio.current_time())
            self._nursery.start_soon(self._take, self._look)
        look = self._look
        with trio.move_on_at(look.began + self._deadline):
            await look.done.wait()
            return look.reasons
        return ("database",)

    async def _take(self, look: _Look) -> None:
        try:
            look.reasons = () if await self._database.read(migrate.suits) else ("schema",)
        except DatabaseError:
            look.reasons = ("database",)
        except Exception as error:  # noqa: BLE001 - it must not take the server along, which may serve nevertheless
            _log.error("the database could not be looked at", exc_info=error)
            look.reasons = ("database",)
        finally:
            self._look = None
            look.done.set()
