"""What other transactions' locks block: requests keep their place and are retried, all else has a task of its own."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain, islice

import trio
from attrs import define, field

from db.database import Database
from db.errors import REFUSALS, DatabaseError, Locked
from db.queries import ledger as queries
from db.queries import limits as limit_queries
from llm_proxy.ledger.batch import MAX_BATCH, Batch, PendingAdmission
from llm_proxy.ledger.transaction import Settlement
from llm_proxy.logging import log

#: Seconds after a lock timeout in which no request waits for a lock: if a frozen process holds one row, it mostly holds
#: more.
CAUTION = 5.0
#: Seconds between attempts to write what is locked.
LOCK_RETRY = 0.25
#: Seconds until the first retry of a request, and maximum; each pause is twice as long as the one before.
FIRST_PAUSE = 0.01
LONGEST_PAUSE = 0.1

_log = log.logger("ledger")


@define(eq=False)
class LockedRequests:
    """Requests whose token's row is locked, by token, in order of arrival."""

    #: Trio's time of the next retry; infinite if there are none.
    retry_at: float = field(default=math.inf, init=False)
    _pause: float = field(default=FIRST_PAUSE, init=False)
    _by_token: dict[bytes, deque[PendingAdmission]] = field(factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return sum(map(len, self._by_token.values()))

    def __iter__(self) -> Iterator[PendingAdmission]:
        return chain.from_iterable(self._by_token.values())

    def join(self, one: PendingAdmission) -> bool:
        """Queue a new request behind those of the same token; False if there are none."""
        queue = self._by_token.get(one.request.digest)
        if queue is None:
            return False
        queue.append(one)
        return True

    def take(self, limit: int) -> list[PendingAdmission]:
        """Remove and return the requests to retry now; drop those that were answered meanwhile."""
        taken: list[PendingAdmission] = []
        for digest, queue in list(self._by_token.items()):
            while queue and len(taken) < limit:
                one = queue.popleft()
                if not one.answered:
                    taken.append(one)
            if not queue:
                del self._by_token[digest]
        if not self._by_token:
            self.retry_at = math.inf
        return taken

    def put_back(self, pending: Sequence[PendingAdmission], now: float) -> None:
        """Put requests that are still locked back first in their token's queue; other tokens are retried before."""
        for one in reversed(pending):
            digest = one.request.digest
            queue = self._by_token.pop(digest, deque())
            queue.appendleft(one)
            self._by_token[digest] = queue
        self._pause = min(2 * self._pause, LONGEST_PAUSE) if pending else FIRST_PAUSE
        self.retry_at = now + self._pause if self._by_token else math.inf


@define(eq=False)
class LockedRows:
    """Writes what may have to wait for a lock, token by token, so that no other request waits for it.

    Attributes:
        settlements: by their token's digest, oldest first.
        uncertain: admissions that were refused because their commit's fate is unknown, by request id.
        missing_counters: ids of counters of limits that requests wait for, and that another transaction may be making.
    """

    _database: Database
    _requests: LockedRequests
    _commit: Callable[[Batch], Awaitable[object]]
    _database_away: Callable[[], bool]
    _wake_writer: Callable[[], None]
    settlements: dict[bytes, deque[Settlement]] = field(factory=dict, init=False)
    uncertain: set[str] = field(factory=set, init=False)
    missing_counters: set[str] = field(factory=set, init=False)
    _lock_met: trio.Event = field(factory=trio.Event, init=False)
    _cautious_until: float = field(default=-math.inf, init=False)
    _unended: str | None = field(default=None, init=False)

    @property
    def cautious(self) -> bool:
        return trio.current_time() < self._cautious_until

    def on_lock(self) -> None:
        self._cautious_until = trio.current_time() + CAUTION
        self._lock_met.set()

    def miss(self, counter: str) -> None:
        """Make this counter, which requests wait for."""
        self.missing_counters.add(counter)
        self._lock_met.set()

    def add(self, settlements: Iterable[Settlement]) -> None:
        for settlement in settlements:
            self.settlements.setdefault(settlement.digest, deque()).append(settlement)

    async def give_back(self, keys: Sequence[str]) -> None:
        """Give back refused requests that were committed anyway. Raises Locked and DatabaseError."""
        await self._database.write_unless_locked(queries.give_back, keys, datetime.now(UTC))
        self.uncertain.difference_update(keys)

    async def run(self) -> None:
        while True:
            await self._lock_met.wait()
            began = trio.current_time()
            _log.warning("another transaction has locked ledger rows: requests that need them wait, others continue")
            while self.settlements or self.uncertain or self.missing_counters or self._requests or self.cautious:
                # While the database is unavailable, keep what is here for later.
                if not self._database_away():
                    with suppress(DatabaseError):
                        await self._write()
                await trio.sleep(LOCK_RETRY)
            self._lock_met = trio.Event()
            self._wake_writer()
            _log.info("no row of the ledger is locked any more", seconds=round(trio.current_time() - began, 3))

    async def _write(self) -> None:
        unended = await self._database.end_frozen()
        if unended is not None and unended != self._unended:
            _log.warning(
                "transactions of frozen processes cannot be ended, and may last for a minute: "
                "grant PROCESS to the database user",
                reason=unended,
            )
        self._unended = unended
        for key in list(self.missing_counters):
            self.missing_counters.discard(key)
            with suppress(Locked):
                await self._database.write_unless_locked(limit_queries.make_counters, [key])
        for key in list(self.uncertain):
            with suppress(Locked):
                await self.give_back([key])
        for digest, queue in list(self.settlements.items()):
            settlements = list(islice(queue, MAX_BATCH))
            with suppress(Locked):
                # As doubtful: then it does no harm if some are written and the others have to wait.
                await self._settle(Batch([], settlements, doubtful=True))
                for _ in settlements:
                    queue.popleft()
                if not queue:
                    del self.settlements[digest]
                self._wake_writer()

    async def _settle(self, batch: Batch) -> None:
        try:
            await self._commit(batch)
        except REFUSALS as error:
            parts = batch.parts()
            if not parts:
                batch.give_up(error)
            for part in parts:
                await self._settle(part)
