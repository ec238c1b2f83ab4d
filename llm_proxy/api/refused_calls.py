"""The entries of refused calls in the audit log.

Each is written in a transaction of its own, before the answer. Anybody can send calls that are not authenticated, so
only a few of these are written one by one. The others are counted, and one entry has their number.
"""

from __future__ import annotations

from typing import Final

import trio
from msgspec import structs

from db.database import Database
from db.errors import DatabaseError
from db.queries import audit
from db.records import AuditEntry
from llm_proxy.identifiers import request_id
from llm_proxy.logging import log

#: Maximum number of unauthenticated calls that are written one by one in an interval, and its length in seconds.
LIMIT: Final = 20
INTERVAL: Final = 600.0

_log = log.logger("manage")


class RefusedCalls:
    """Writes the refused calls of this process."""

    def __init__(self, database: Database, nursery: trio.Nursery) -> None:
        self._database = database
        self._nursery = nursery
        self._interval_ends = 0.0
        self._written = 0
        self._counted = 0

    async def add(self, entry: AuditEntry) -> None:
        """Write an entry; if it is not authenticated and there have been many, count it."""
        if entry.actor or self._has_room():
            await self._write(entry)
            return
        self._counted += 1
        if self._counted == 1:
            self._nursery.start_soon(self._sum_up, entry)

    def _has_room(self) -> bool:
        now = trio.current_time()
        if now >= self._interval_ends:
            self._interval_ends, self._written = now + INTERVAL, 0
        self._written += 1
        return self._written <= LIMIT

    async def _sum_up(self, first: AuditEntry) -> None:
        """Write the number of calls that were only counted, at the end of the interval or of the process."""
        try:
            await trio.sleep_until(self._interval_ends)
        finally:
            calls, self._counted = self._counted, 0
            _log.warning("unauthenticated calls were refused and are in the audit log as one entry", calls=calls)
            nobody = structs.replace(first, id=request_id(), address="", operation="", resource="", resource_id="")
            await self._write(structs.replace(nobody, after={"calls": calls}))

    async def _write(self, entry: AuditEntry) -> None:
        try:
            # A client that disconnects must not keep its call out of the log. The database has deadlines of its own.
            with trio.CancelScope(shield=True):
                await self._database.write(audit.create, entry)
        except DatabaseError as error:
            _log.error(
                "a refused call is missing in the audit log",
                reason=str(error),
                operation=entry.operation,
                status=entry.status,
                address=entry.address,
            )
