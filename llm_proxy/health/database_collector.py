"""The metrics of the database and of the ledger in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from db import migrate
from llm_proxy.health.single_flight import SingleFlight
from llm_proxy.metrics import families

if TYPE_CHECKING:
    import trio

    from db import Connection
    from db.database import Database
    from llm_proxy.ledger import Ledger
    from llm_proxy.ledger.outage import OutageMode
    from llm_proxy.ledger.prune import Pruner
    from llm_proxy.metrics import Metrics
    from llm_proxy.metrics.counting import Read
    from llm_proxy.metrics.families import Family

#: Seconds that `/metrics` waits for the database.
COLLECT_TIMEOUT: Final = 1.0


class DatabaseCollector:
    """Reads what only the database knows. While it is unavailable, the last values stay.

    Attributes:
        revision: of the schema, as a number; 0 before the first revision, None if it was not read yet.
        sizes: `db.database.Database.sizes`; empty if they were not read yet.
    """

    def __init__(self, database: Database, nursery: trio.Nursery) -> None:
        self.revision: int | None = None
        self.sizes: Mapping[str, int] = {}
        self._database = database
        self._query = SingleFlight(nursery, self._collect, COLLECT_TIMEOUT)

    def register(self, metrics: Metrics, ledger: Ledger, pruner: Pruner, outage: OutageMode | None) -> None:
        database, statistics = self._database, self._database.statistics

        def connections() -> dict[str, float]:
            now = database.connections
            return {"in_use": now.in_use, "idle": now.idle}

        functions: dict[Family, Read] = {
            families.DATABASE_UP: lambda: ledger.alive,
            families.DATABASE_INFO: lambda: {database.target.driver: 1},
            families.LAST_TRANSACTION: lambda: statistics.last_success,
            families.CONNECTIONS: connections,
            families.CONNECTIONS_LIMIT: lambda: database.connections.limit,
            families.CONNECTIONS_WAITING: lambda: database.connections.waiting,
            families.TRANSACTIONS: lambda: statistics.committed,
            families.RETRIES: lambda: statistics.retries,
            families.FAILURES: lambda: statistics.failures,
            families.WAITING: lambda: ledger.waiting,
            families.UNSETTLED: lambda: ledger.unsettled,
            families.SETTLE_LAG: lambda: ledger.lag,
            families.GRACE_ADMISSIONS: lambda: 0 if outage is None else outage.admissions,
            families.SPOOLED: lambda: 0 if outage is None else outage.spooled,
            families.SCHEMA_REVISION: lambda: self.revision,
            families.SCHEMA_HEAD: lambda: int(migrate.revisions()[-1].id),
            families.SIZE: lambda: self.sizes.get("bytes"),
            families.SQLITE_WAL: lambda: self.sizes.get("wal_bytes"),
            families.SQLITE_PAGES: lambda: self.sizes.get("pages"),
            families.SQLITE_FREE_PAGES: lambda: self.sizes.get("free_pages"),
        }
        if pruner.retention:
            functions |= {families.PRUNED: lambda: pruner.rows, families.LAST_PRUNING: lambda: pruner.last_pass}
        for family, read in functions.items():
            metrics.set_function(family, read)

    async def collect(self) -> None:
        """Query the database, if it answers in time."""
        await self._query.get()

    async def _collect(self) -> None:
        self.revision, self.sizes = await self._database.read(self._read)

    def _read(self, connection: Connection) -> tuple[int, Mapping[str, int]]:
        return int(migrate.version(connection) or 0), self._database.sizes(connection)
