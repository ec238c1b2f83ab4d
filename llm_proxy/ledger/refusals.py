"""Records refused requests in the table `refusals`, behind the answers.

Anybody can send requests that are refused, so the number of rows is bounded: of each error code, `PER_MINUTE` in a
minute. Codes are counted apart, so a flood of unknown tokens does not hide that a known one has reached its limit. What
is not recorded is in the request log, and counted.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Final

import trio

from db.database import Database
from db.errors import REFUSALS, DatabaseError
from db.queries import refusals
from db.records import RefusedRequest
from llm_proxy.logging import log

#: Rows of one code in a minute, and rows that wait for their transaction.
PER_MINUTE: Final = 60
MAX_WAITING: Final = 1000
#: Rows of one transaction, and seconds between two.
BATCH: Final = 250
EVERY: Final = 1.0

_log = log.logger("refusals")


class RefusalRecorder:
    """Collects the refusals of this process and writes them in batches, while `run` runs.

    Attributes:
        unrecorded: number of refusals that got no row.
    """

    def __init__(self, database: Database) -> None:
        self.unrecorded = 0
        self._database = database
        self._waiting: deque[RefusedRequest] = deque()
        self._minute = 0.0
        self._of_code: Counter[str] = Counter()
        self._told = False

    def add(self, refused: RefusedRequest) -> None:
        """Take a refusal; if there are too many, only count it."""
        now = trio.current_time()
        if now - self._minute >= 60.0:
            self._minute, self._told = now, False
            self._of_code.clear()
        self._of_code[refused.code] += 1
        if self._of_code[refused.code] <= PER_MINUTE and len(self._waiting) < MAX_WAITING:
            self._waiting.append(refused)
            return
        self.unrecorded += 1
        if not self._told:
            # Once in a minute.
            self._told = True
            _log.warning("too many requests are refused; further ones are only counted", code=refused.code)

    async def run(self) -> None:
        """Write until cancelled. While the database is unavailable, the refusals wait."""
        while True:
            await trio.sleep(EVERY)
            try:
                await self.drain()
            except DatabaseError as error:
                _log.warning("refused requests are not recorded yet", reason=str(error), waiting=len(self._waiting))

    async def drain(self) -> None:
        """Write what waits. Raises DatabaseError; then it still waits, unless the database refuses these rows."""
        while self._waiting:
            batch = [self._waiting[place] for place in range(min(BATCH, len(self._waiting)))]
            try:
                await self._database.write(refusals.create, batch)
            except REFUSALS as error:
                self.unrecorded += len(batch)
                _log.error("refused requests are not recorded", reason=str(error), requests=len(batch))
            for _ in batch:
                self._waiting.popleft()
