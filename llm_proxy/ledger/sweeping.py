"""Settling what dead workers have left open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from db.errors import REFUSALS
from db.queries import ledger as books
from llm_proxy.logging import log

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from db.database import Database

_log = log.logger("ledger")


async def sweep(database: Database, orphans: Sequence[str], now: datetime) -> int:
    """Settle orphans as `unknown`, but for those that the database will not have so; return how many it had.

    Raises:
        DatabaseError: it is not the orphans that are to blame.
    """
    try:
        return await database.write_unless_locked(books.sweep, orphans, now)
    except REFUSALS as error:
        if len(orphans) == 1:
            _log.error("a dead worker's request cannot be settled", request_id=orphans[0], exc_info=error)
            return 0
    middle = len(orphans) // 2
    return await sweep(database, orphans[:middle], now) + await sweep(database, orphans[middle:], now)
