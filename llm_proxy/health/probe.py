"""Whether the database can be used, answered in time whatever it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from db import migrate
from llm_proxy.health.single_flight import Looks

if TYPE_CHECKING:
    import trio

    from db.database import Database


class Probe:
    """Looks at the database on behalf of all who ask."""

    def __init__(self, database: Database, nursery: trio.Nursery, deadline: float) -> None:
        """Look from tasks in `nursery`; `deadline` is how many seconds whoever asks waits."""
        self._database = database
        self._looks = Looks(nursery, self._look, deadline)

    async def reasons(self) -> tuple[str, ...]:
        """What is wrong: `database`, `schema`, or nothing; within the deadline."""
        found = await self._looks.ask()
        return ("database",) if found is None else found

    async def _look(self) -> tuple[str, ...]:
        return () if await self._database.read(migrate.suits) else ("schema",)
