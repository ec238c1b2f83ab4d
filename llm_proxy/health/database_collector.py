"""Looks at the database for those who read the metrics: how far its schema is, and how large it is.

Nobody on the path of a request waits for it, and no reader for long: while the database is away, the last look counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from db import migrate
from llm_proxy.health.single_flight import Looks
from llm_proxy.metrics import families

if TYPE_CHECKING:
    import trio

    from db import Connection
    from db.database import Database
    from llm_proxy.ledger import Ledger
    from llm_proxy.metrics import Metrics
    from llm_proxy.metrics.counting import Read
    from llm_proxy.metrics.families import Family

#: Seconds that a reader waits for a fresh look.
PATIENCE = 1.0


class Survey:
    """What the last look has found.

    Attributes:
        revision: of the schema, as a number; None before the first look, 0 before the first revision.
        sizes: `db.database.Database.sizes`; empty before the first look.
    """

    def __init__(self, database: Database, ledger: Ledger, nursery: trio.Nursery) -> None:
        """Look at a database, from tasks in `nursery`; `ledger` is who writes to it."""
        self.revision: int | None = None
        self.sizes: Mapping[str, int] = {}
        self._database = database
        self._ledger = ledger
        self._looks = Looks(nursery, self._look, PATIENCE)

    def watch(self, metrics: Metrics) -> None:
        """Have everything shown that there is to say about the database."""
        database, ledger, tally = self._database, self._ledger, self._database.tally

        def connections() -> dict[str, float]:
            now = database.connections
            return {"in_use": now.in_use, "idle": now.idle}

        watched: dict[Family, Read] = {
            families.DATABASE_UP: lambda: ledger.alive,
            families.DATABASE_INFO: lambda: {database.target.driver: 1},
            families.LAST_TRANSACTION: lambda: tally.last_success,
            families.CONNECTIONS: connections,
            families.CONNECTIONS_LIMIT: lambda: database.connections.limit,
            families.CONNECTIONS_WAITING: lambda: database.connections.waiting,
            families.TRANSACTIONS: lambda: tally.committed,
            families.RETRIES: lambda: tally.retries,
            families.FAILURES: lambda: tally.failures,
            families.WAITING: lambda: ledger.waiting,
            families.UNSETTLED: lambda: ledger.unsettled,
            families.SETTLE_LAG: lambda: ledger.lag,
            families.SCHEMA_REVISION: lambda: self.revision,
            families.SCHEMA_HEAD: lambda: int(migrate.revisions()[-1].id),
            families.SIZE: lambda: self.sizes.get("bytes"),
            families.SQLITE_WAL: lambda: self.sizes.get("wal_bytes"),
            families.SQLITE_PAGES: lambda: self.sizes.get("pages"),
            families.SQLITE_FREE_PAGES: lambda: self.sizes.get("free_pages"),
        }
        for family, read in watched.items():
            metrics.watch(family, read)

    async def look(self) -> None:
        """Bring the figures up to date, if the database answers in time; it is not waited for a second time."""
        await self._looks.ask()

    async def _look(self) -> None:
        self.revision, self.sizes = await self._database.read(self._read)

    def _read(self, connection: Connection) -> tuple[int, Mapping[str, int]]:
        return int(migrate.version(connection) or 0), self._database.sizes(connection)
