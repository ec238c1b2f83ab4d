"""What an operator is told of a database that goes away and comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from llm_proxy.logging import log

if TYPE_CHECKING:
    from db.errors import DatabaseError

_log = log.logger("ledger")


class Outage:
    """Tells the log why the database is away, each reason once, and when it is back; not every attempt in between."""

    def __init__(self) -> None:
        """There is none yet."""
        self._since = 0.0
        self._told: set[str] = set()

    def note(self, error: DatabaseError) -> None:
        """The database did not take a transaction."""
        if not self._told:
            self._since = trio.current_time()
        reason = str(error)
        if reason not in self._told:
            self._told.add(reason)
            _log.error("the database is away", reason=reason)

    def over(self) -> None:
        """The database took a transaction."""
        if self._told:
            self._told.clear()
            _log.info("the database is back", seconds=round(trio.current_time() - self._since, 3))
