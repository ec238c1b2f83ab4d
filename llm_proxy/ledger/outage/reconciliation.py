"""What was spooled, on its way into the books: each request once, however often it is brought, whoever brings it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from attrs import frozen
from msgspec.structs import asdict

from db.errors import REFUSALS
from db.queries import ledger as books
from db.records import Reservation
from llm_proxy.ledger.transaction import Settlement, transact
from llm_proxy.logging import log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from db import Connection
    from db.database import Database
    from llm_proxy.ledger.outage.spool_lines import Contents

#: Most requests in one transaction.
CHUNK = 500

_log = log.logger("ledger")


@frozen
class Spooled:
    """A request that the books do not know of yet; `settlement` is None where it has not ended, as far as is known."""

    reservation: Reservation
    digest: bytes
    settlement: Settlement | None


def spooled(contents: Contents) -> list[Spooled]:
    """The requests of a spool, the oldest first."""
    found = {key: Spooled(reservation, digest, None) for key, (reservation, digest) in contents.reservations.items()}
    for key, (row, digest) in contents.settled.items():
        found[key] = Spooled(row.reservation, digest, Settlement(row, digest))
    return [found[key] for key in sorted(found)]


def enter(connection: Connection, requests: Sequence[Spooled], worker_id: str, now: datetime) -> None:
    """Reserve and count those that are not in the books, and settle those that have ended.

    Those without a settlement stay open: they are their worker's to settle, and `unknown` once it is gone.
    """
    books.reserve_late(connection, [request.reservation for request in requests])
    settlements = [request.settlement for request in requests if request.settlement is not None]
    transact(connection, worker_id, (), settlements, now, doubtful=True)


async def reconcile(database: Database, requests: Sequence[Spooled], worker_id: str) -> None:
    """Write requests in one transaction, or in several where the database will not have one of them.

    What it does not take even alone goes to the log, and keeps nobody else waiting.

    Raises:
        DatabaseError: the database is away; what is written is written, and may be brought again.
    """
    try:
        await database.write_unless_locked(enter, requests, worker_id, datetime.now(UTC))
    except REFUSALS as error:
        if len(requests) > 1:
            middle = len(requests) // 2
            for half in (requests[:middle], requests[middle:]):
                await reconcile(database, half, worker_id)
            return
        (request,) = requests
        settlement = request.settlement
        if settlement is not None:
            # The reservation stays, and is settled as `unknown` when its worker has ended.
            row = settlement.row.by_column()
            _log.error("a spooled settlement was refused and is lost", settlement=row, exc_info=error)
            await reconcile(database, [Spooled(request.reservation, request.digest, None)], worker_id)
            return
        _log.error("a spooled request was refused", reservation=asdict(request.reservation), exc_info=error)
