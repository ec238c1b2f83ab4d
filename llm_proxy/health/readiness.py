"""Whether this worker can serve: the answer of `/ready`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from db import migrate
from llm_proxy.health.single_flight import SingleFlight

if TYPE_CHECKING:
    import trio

    from db.database import Database
    from llm_proxy.ledger import Ledger
    from llm_proxy.ledger.outage import OutageMode

#: Seconds that `/ready` waits for the database.
READY_TIMEOUT: Final = 2.0


class Readiness:
    """What keeps this worker from serving."""

    def __init__(self, database: Database, ledger: Ledger, outage: OutageMode | None, nursery: trio.Nursery) -> None:
        #: The server stops: it serves, but load balancers should use other servers.
        self.draining = False
        self._ledger = ledger
        self._outage = outage
        self._schema_fits = SingleFlight(nursery, lambda: database.read(migrate.suits), READY_TIMEOUT)

    @property
    def admits_offline(self) -> bool:
        """Whether requests are admitted although the database is unavailable."""
        return self._outage is not None and self._outage.admits_offline

    async def failing(self) -> list[str]:
        """Some of `draining`, `writer`, `database`, `schema`; empty if this worker is ready."""
        found = ["draining"] if self.draining else []
        if not self._ledger.alive or (self._outage is not None and self._outage.refuses_all):
            found.append("writer")
        # In an outage the answer is known, and a connection would take too long.
        schema_fits = None if self.admits_offline else await self._schema_fits.get()
        if schema_fits is None:
            found.append("database")
        elif not schema_fits:
            found.append("schema")
        return found
