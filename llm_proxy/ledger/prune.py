"""Retention of the ledger, refusals, audit log, counters and values of labels, and daily sums, a few rows at a time.

One worker of all does it.

Between two transactions there is a pause, so that admissions, which use the same database, wait for one short
transaction at most. A pass reads all rows that are old enough; the next one starts a minute later.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import trio
from attrs import define, field

from db import Connection
from db.database import Database
from db.dialects.statements import clock
from db.errors import DatabaseError
from db.queries import audit, counters, daily, label_values, pruning, refusals
from llm_proxy.limits import started_at
from llm_proxy.logging import log

#: Rows of one transaction.
PIECE = 250
#: Projects whose day is summed up in one transaction.
PROJECTS = 100
#: Seconds between two transactions of a pass, and between two passes.
PAUSE = 0.05
EVERY = 60.0
#: How long the values of labels of a day are kept: most requests have ended before.
LABELS_KEPT = timedelta(days=2)

_log = log.logger("retention")


@define(eq=False)
class Pruner:
    """Keeps ledger and refusals for `retention`, and the audit log for `audit_retention`; zero keeps all rows.

    It prunes while it runs, if this worker is the first of the live ones. A worker counts as dead when its heartbeat
    has been missing for `dead_after`.
    """

    _database: Database
    _worker_id: str
    retention: timedelta = field(kw_only=True)
    _audit_retention: timedelta = field(kw_only=True)
    _dead_after: timedelta = field(kw_only=True)
    rows: int = field(default=0, init=False)  # pruned by this worker
    last_pass: float = field(default=0.0, init=False)  # end of the last pass, seconds since the epoch; 0 before that

    async def run(self) -> None:
        """Prune until cancelled. While the database is unavailable, nothing is pruned."""
        while True:
            try:
                if await self._database.read(pruning.is_first, self._worker_id, self._dead_after):
                    # This host's clock may be ahead.
                    now = await self._database.read(clock)
                    if self.retention:
                        await self.prune(now - self.retention)
                        await self._prune_older("refusals", refusals.prune, now - self.retention)
                    if self._audit_retention:
                        await self._prune_older("the audit log", audit.prune, now - self._audit_retention)
                    await self.prune_counters()
                    await self._prune_older("values of labels", label_values.prune, now - LABELS_KEPT)
                    await self.sum_up_days()
            except DatabaseError as error:
                _log.warning("pruning and daily sums were interrupted and are retried", reason=str(error))
            await trio.sleep(EVERY)

    async def prune(self, before: datetime) -> None:
        """Prune all requests from before a time. Raises DatabaseError."""
        rows, kept = 0, 0
        last: str | None = ""
        while last is not None:
            done, last = await self._database.write(pruning.prune, before, PIECE, last)
            rows += done.rows
            kept += done.kept
            self.rows += done.rows
            if last is not None:
                await trio.sleep(PAUSE)
        self.last_pass = time.time()
        if kept:
            _log.warning(
                "old rows were kept because the hourly sums do not include them; run llm-proxy ledger verify", rows=kept
            )
        if rows:
            _log.info("pruned the ledger", rows=rows, older_than=before.isoformat())

    async def prune_counters(self) -> None:
        """Delete the counters of limits that nothing needs any more. Raises DatabaseError."""
        while await self._database.write(counters.prune, started_at, PIECE) == PIECE:  # noqa: ASYNC110 - work, not an event
            await trio.sleep(PAUSE)

    async def sum_up_days(self) -> None:
        """Write the daily sums of days that were marked a while ago, and mark those that have ended since."""
        for day, marked_at in await self._database.read(daily.waiting):
            totals: dict[tuple[Any, ...], dict[str, Any]] = {}
            last = ""
            while ids := await self._database.read(daily.project_ids, last, PROJECTS):
                daily.merge(totals, await self._database.write(daily.sum_up, day, ids))
                last = ids[-1]
                await trio.sleep(PAUSE)
            with suppress(daily.DayChanged):
                await self._database.write(daily.finish, day, marked_at, list(totals.values()))
                _log.info("summed a day up", day=f"{day:%Y-%m-%d}", rows=len(totals))
        await self._database.write(daily.mark)

    async def _prune_older(
        self, name: str, prune: Callable[[Connection, datetime, int], int], before: datetime
    ) -> None:
        rows = found = await self._database.write(prune, before, PIECE)
        while found == PIECE:
            await trio.sleep(PAUSE)
            found = await self._database.write(prune, before, PIECE)
            rows += found
        if rows:
            _log.info(f"pruned {name}", rows=rows, older_than=before.isoformat())
