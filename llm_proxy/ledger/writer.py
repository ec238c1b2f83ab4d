"""The writer task: queues on the trio side, one transaction after the other on the database's."""

from __future__ import annotations

import math
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import trio
from attrs import evolve
from trio.testing import wait_all_tasks_blocked

from db.errors import REFUSALS, CommitUnknown, DatabaseError, Locked
from db.queries import ledger as books
from llm_proxy.errors import DatabaseAway, DatabaseUnavailable, ProxyError, TokenInvalid, TokenLocked
from llm_proxy.ledger.locked import LockedRequests
from llm_proxy.ledger.lookup import Lookups
from llm_proxy.ledger.outage.outage import Outage
from llm_proxy.ledger.portion import Portion, Ticket
from llm_proxy.ledger.sweeping import sweep
from llm_proxy.ledger.transaction import Application, Grant, Result, Settlement, judge, transact
from llm_proxy.logging import log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from db.database import Database
    from db.records import Token, Worker

#: Most admissions, and most settlements, in one transaction: bounds its locks and the size of its statements.
MAX_BATCH = 500
#: Seconds that a transaction waits at most until the process has nothing else to do, so that more can share it.
ADMISSION_PATIENCE = 0.005
#: Seconds that settlements wait at most for an admission whose transaction they can share.
SETTLEMENT_PATIENCE = 0.02
#: Seconds between attempts while the database is away.
RETRY_INTERVAL = 0.25
#: Seconds that a request waits for its admission before it is told that the database is unavailable.
ADMISSION_DEADLINE = 1.5
#: Settlements kept in memory while the database is away; beyond this, admission stays closed.
MAX_UNSETTLED = 50_000
#: Seconds between heartbeats where nothing else is said, and how many may be missing before a worker counts as dead.
HEARTBEAT_INTERVAL = 5.0
MISSED_HEARTBEATS = 4
#: Seconds after a lock that was waited for in vain in which no request waits for a lock: where one row is locked, as
#: by a frozen process, there are mostly more.
CAUTION = 5.0
#: Seconds between attempts at what is still locked, beside the writer.
LOCK_RETRY = 0.25
#: Reservations of dead workers swept in one transaction.
SWEEP_CHUNK = 200

_log = log.logger("ledger")


class Observer(Protocol):
    """Told of every shared transaction that was committed."""

    def observe_transaction(self, seconds: float, admitted: int, settled: int) -> None:
        """`seconds` from the hop to the commit; how many admissions were decided and settlements written."""


class Ledger:
    """Admits and settles the requests of one worker process.

    Args:
        database: where the books are.
        worker: this process's row, refreshed by every heartbeat.
        observer: told of every committed transaction.
        exclusive: no other process can be writing to this database (SQLite), so that reservations of other workers
            are known to be orphans without waiting.
        heartbeat: seconds between heartbeats; the same for all workers of one database.
    """

    def __init__(
        self,
        database: Database,
        worker: Worker,
        observer: Observer,
        *,
        exclusive: bool = False,
        heartbeat: float = HEARTBEAT_INTERVAL,
    ) -> None:
        """Set up the queues; `run` does the work."""
        self._database = database
        self._worker = worker
        self._observer = observer
        self._exclusive = exclusive
        self._heartbeat = heartbeat
        self._dead_after = MISSED_HEARTBEATS * heartbeat
        self._lookups = Lookups(database, ADMISSION_DEADLINE)
        self._waiting: deque[Ticket] = deque()
        self._unsettled: deque[Settlement] = deque()
        self._doubtful: deque[Settlement] = deque()
        # Admissions that were refused because their commit's fate is unknown, by request id.
        self._uncertain: set[str] = set()
        # What other transactions hold up: requests, and settlements by their token's digest, the oldest first.
        self._locked = LockedRequests()
        self._aside: dict[bytes, deque[Settlement]] = {}
        self._lock_met = trio.Event()
        self._cautious_until = -math.inf
        self._unended: str | None = None
        self._wake = trio.Event()
        self._idle = trio.Event()
        # Told of every decision of a committed transaction, whether or not anybody still waits for it.
        self.witness: Callable[[Sequence[Ticket], Sequence[Grant | ProxyError]], None] | None = None
        # Settlements wait for company: no news of further ones is wanted.
        self._lingering = False
        # The work of the running transaction comes last; before it what follows, the next one last.
        self._under_way: list[Portion] = []
        self._away = False
        self._outage = Outage()
        self._running = False
        self._next_beat = -math.inf

    @property
    def alive(self) -> bool:
        """Whether the writer is running and its last transaction reached the database."""
        return self._running and not self._away

    @property
    def waiting(self) -> int:
        """Requests that wait for their admission, or for the look-up before it."""
        return len(self._waiting) + len(self._locked) + self._lookups.waiting

    @property
    def unsettled(self) -> int:
        """Settlements that are not written yet."""
        under_way = sum(len(portion.settlements) for portion in self._under_way)
        return under_way + self._kept + len(self._uncertain)

    @property
    def _kept(self) -> int:
        """Settlements that no transaction has yet."""
        kept = len(self._unsettled) + len(self._doubtful)
        # Asked at each admission, and rows are hardly ever locked.
        return kept + sum(map(len, self._aside.values())) if self._aside else kept

    @property
    def lag(self) -> float:
        """Seconds since the oldest of the requests ended that are not settled yet; 0 where there is none."""
        waiting = [self._unsettled, self._doubtful, *self._aside.values()]
        queues = [*waiting, *(portion.settlements for portion in self._under_way)]
        ends = [queue[0].row.settled_at for queue in queues if queue]
        return max(0.0, (datetime.now(UTC) - min(ends)).total_seconds()) if ends else 0.0

    @property
    def busy(self) -> bool:
        """Whether anything is queued, or on its way to the database."""
        return bool(self._waiting or self._locked or self._under_way) or self.unsettled > 0

    async def check(self, application: Application) -> tuple[Token, str]:
        """Judge a request by its head before its body is waited for; nothing is counted, and `admit` judges it again.

        Returns the token, and the name of its project's provider. Cancelling is safe at any moment.

        Raises:
            DatabaseAway: the database does not answer.
            ProxyError: the request is refused.
        """
        if self._away:
            raise DatabaseAway
        if not self._running:
            raise DatabaseUnavailable
        found = await self._lookups.find(application.digest)
        if found is None:
            raise TokenInvalid
        token, project = found
        refusal = judge(application, token, project, datetime.now(UTC))
        if refusal is not None:
            raise refusal.about(token.id, project.id, project.provider)
        return token, project.provider

    async def admit(self, application: Application) -> Grant:
        """Wait for the decision of the next shared transaction.

        Cancelling is safe at any moment: where the reservation was made all the same, it is given back.

        Raises:
            DatabaseAway: the request came into no transaction that can have been, or can yet be, committed.
            ProxyError: the request is refused.
        """
        if self._away:
            raise DatabaseAway
        if not self._running or self._kept >= MAX_UNSETTLED:
            raise DatabaseUnavailable
        ticket = Ticket(application)
        self._waiting.append(ticket)
        self._wake.set()
        decision = await ticket.wait()
        if isinstance(decision, ProxyError):
            raise decision
        return decision

    def settle(self, grant: Grant, result: Result) -> None:
        """Queue the final row of an admitted request; exactly one call per grant."""
        self._unsettled.append(Settlement.of(grant, result))
        if not self._lingering:
            self._wake.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write until cancelled. Reports started once the first heartbeat is in the database."""
        await self._database.write(books.beat, self._worker)
        self._running = True
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._refuse_overdue)
                nursery.start_soon(self._write_aside)
                nursery.start_soon(self._lookups.run)
                await self._write()
        finally:
            self._running = False
            for portion in self._under_way:
                portion.refuse(DatabaseUnavailable)
            self._refuse_waiting()
            self._idle.set()

    async def _write(self) -> None:
        while True:
            await self._tend()
            await self._gather()
            await self._write_next()
            if not self._waiting and not self._unsettled and not self._doubtful:
                if not self.busy:
                    self._idle.set()
                    self._idle = trio.Event()
                with trio.move_on_at(min(self._next_beat, self._locked.retry_at)):
                    await self._wake.wait()
                self._wake = trio.Event()

    async def _gather(self) -> None:
        """Let come together what can share the next transaction; who comes alone waits for nobody.

        A transaction costs much more than a request's part in it. So it begins when all that the process can do
        without it is done: beginning earlier would make this request no faster, and the next ones slower. Nobody
        waits for a settlement, so settlements wait for an admission.
        """
        if self._unsettled and not self._waiting and not self._doubtful:
            self._wake = trio.Event()
            self._lingering = True
            with trio.move_on_after(SETTLEMENT_PATIENCE):
                await self._wake.wait()
            self._lingering = False
        if self._waiting:
            with trio.move_on_after(ADMISSION_PATIENCE):
                await wait_all_tasks_blocked()

    async def _refuse_overdue(self) -> None:
        """Refuse those who have waited too long, because a transaction hangs.

        One look at all of them now and then costs less than a deadline for each.
        """
        while True:
            await trio.sleep(ADMISSION_DEADLINE / 6)
            latest = trio.current_time() - ADMISSION_DEADLINE
            queues: list[tuple[Iterable[Ticket], type[DatabaseUnavailable]]]
            queues = [(portion.tickets, DatabaseUnavailable) for portion in self._under_way]
            queues += [(self._locked, TokenLocked), (self._waiting, DatabaseAway)]
            for tickets, refusal in queues:
                for ticket in tickets:
                    if ticket.queued <= latest:
                        ticket.answer(refusal())

    async def drain(self) -> None:
        """Wait until every settlement so far is in the database, then take this worker off the list.

        No request may be admitted or settled any more. Waits as long as the database is away: give it a deadline. If
        the writer has failed, nothing is written: what is open becomes `unknown` when the heartbeat is missing.
        """
        while self.busy and self._running:
            await self._idle.wait()
        if self._running:
            await self._database.write(books.retire, self._worker.id)

    async def _write_next(self) -> None:
        """Commit what has come together in one transaction, or in several where that one is refused."""
        tickets, held = self._take_tickets(), []
        cautious = trio.current_time() < self._cautious_until
        if (tickets and cautious) or trio.current_time() >= self._locked.retry_at:
            held = self._locked.take(MAX_BATCH)
        if cautious:
            held, tickets = held + tickets, []
            for queue in (self._doubtful, self._unsettled):
                self._set_aside(queue)
                queue.clear()
        doubtful = bool(self._doubtful)
        queue = self._doubtful if doubtful else self._unsettled
        settlements = [queue.popleft() for _ in range(min(len(queue), MAX_BATCH))]
        if tickets or settlements:
            self._under_way.append(Portion(tickets, settlements, doubtful))
        if held:
            self._under_way.append(Portion(held, [], skip_locked=True))
        try:
            while self._under_way:
                await self._write_portion(self._under_way[-1])
        except DatabaseError as error:
            self._outage.note(error)
            self._put_back(unknown=isinstance(error, CommitUnknown))
            await self._wait_for_database()

    async def _write_portion(self, portion: Portion) -> None:
        """Commit one transaction, and wake those who wait for it."""
        started = trio.current_time()
        try:
            decisions = await self._commit(portion)
        except Locked:
            self._step_round_locks(portion)
            return
        except REFUSALS as error:
            # Any other exception but the database's is a mistake in the program, and ends the worker: no row is to
            # blame, and what it has open is settled as `unknown`.
            await self._cut(portion, error)
            return
        self._under_way.pop()
        self._outage.over()
        decided = list(zip(portion.tickets, decisions, strict=True))
        if portion.skip_locked:
            still_locked = [ticket for ticket, decision in decided if isinstance(decision, TokenLocked)]
            self._locked.put_back(still_locked, trio.current_time())
            decided = [pair for pair in decided if not isinstance(pair[1], TokenLocked)]
        self._observer.observe_transaction(trio.current_time() - started, len(decided), len(portion.settlements))
        if self.witness is not None:
            self.witness(portion.tickets, decisions)
        for ticket, decision in decided:
            if isinstance(decision, ProxyError) and decision.__cause__ is not None:
                _log.error(
                    "the admission check of a request failed",
                    request_id=ticket.application.id,
                    exc_info=decision.__cause__,
                )
            if not ticket.answer(decision) and isinstance(decision, Grant):
                self.settle(decision, Result(outcome="void"))

    def _step_round_locks(self, portion: Portion) -> None:
        """Write at once what no other transaction holds up, and leave the rest for later."""
        self._under_way.pop()
        self._meet_lock()
        self._set_aside(portion.settlements)
        if portion.skip_locked:
            # The table itself is locked.
            self._locked.put_back(portion.tickets, trio.current_time())
        elif portion.tickets:
            self._under_way.append(Portion(portion.tickets, [], skip_locked=True))

    def _meet_lock(self) -> None:
        self._cautious_until = trio.current_time() + CAUTION
        self._lock_met.set()

    def _set_aside(self, settlements: Iterable[Settlement]) -> None:
        for settlement in settlements:
            self._aside.setdefault(settlement.digest, deque()).append(settlement)

    async def _write_aside(self) -> None:
        """Write what may have to wait for a lock, token by token, so that nobody else waits for it."""
        while True:
            await self._lock_met.wait()
            began = trio.current_time()
            _log.warning("another transaction has locked ledger rows: requests that need them wait, others continue")
            while self._aside or self._uncertain or self._locked or trio.current_time() < self._cautious_until:
                # Else the writer waits for the database, and keeps what is here for afterwards.
                if not self._away:
                    with suppress(DatabaseError):
                        await self._end_frozen()
                        await self._give_back_aside()
                        for digest in list(self._aside):
                            await self._settle_aside(digest)
                await trio.sleep(LOCK_RETRY)
            self._lock_met = trio.Event()
            self._wake.set()
            _log.info("no row of the ledger is locked any more", seconds=round(trio.current_time() - began, 3))

    async def _end_frozen(self) -> None:
        unended = await self._database.end_frozen()
        if unended is not None and unended != self._unended:
            _log.warning(
                "transactions of frozen processes cannot be ended, and may last for a minute: "
                "grant PROCESS to the database user",
                reason=unended,
            )
        self._unended = unended

    async def _give_back_aside(self) -> None:
        for key in list(self._uncertain):
            with suppress(Locked):
                await self._database.write_unless_locked(books.give_back, [key], datetime.now(UTC))
                self._uncertain.discard(key)

    async def _settle_aside(self, digest: bytes) -> None:
        """Write the settlements of one token, unless they are still held up."""
        queue = self._aside[digest]
        settlements = list(islice(queue, MAX_BATCH))
        with suppress(Locked):
            # All of them as doubtful: then it does no harm if some are written and the others have to wait.
            await self._commit_aside(Portion([], settlements, doubtful=True))
            for _ in settlements:
                queue.popleft()
            if not queue:
                del self._aside[digest]
            self._wake.set()

    async def _commit_aside(self, portion: Portion) -> None:
        started = trio.current_time()
        try:
            await self._commit(portion)
        except REFUSALS as error:
            parts = portion.parts()
            if not parts:
                portion.give_up(error)
            for part in parts:
                await self._commit_aside(part)
            return
        self._observer.observe_transaction(trio.current_time() - started, 0, len(portion.settlements))

    async def _cut(self, portion: Portion, error: Exception) -> None:
        """Look for the rows that are to blame for a refusal, so that they keep nobody else from being written.

        Raises:
            DatabaseError: the database does not even take a heartbeat, so it is not these rows.
        """
        parts = portion.parts()
        if not parts:
            await self._beat()
            portion.give_up(error)
        self._under_way[-1:] = reversed(parts)

    async def _commit(self, portion: Portion) -> list[Grant | ProxyError]:
        now, batch = datetime.now(UTC), portion.batch(self._worker.id)
        try:
            return await self._database.write_unless_locked(transact, batch, now)
        except books.ReservationsMissing:
            return await self._database.write_unless_locked(transact, evolve(batch, doubtful=True), now)

    def _take_tickets(self) -> list[Ticket]:
        tickets: list[Ticket] = []
        while self._waiting and len(tickets) < MAX_BATCH:
            ticket = self._waiting.popleft()
            if not ticket.answered and not self._locked.join(ticket):
                tickets.append(ticket)
        return tickets

    def _put_back(self, *, unknown: bool) -> None:
        """Keep what must be written, refuse those who wait.

        Args:
            unknown: the running transaction may have been committed all the same.
        """
        self._away = True
        running = self._under_way[-1]
        for portion in self._under_way:
            uncertain = unknown and portion is running
            doubtful = portion.doubtful or uncertain
            (self._doubtful if doubtful else self._unsettled).extendleft(reversed(portion.settlements))
            portion.refuse(DatabaseUnavailable if uncertain else DatabaseAway)
        if unknown:
            self._uncertain.update(ticket.application.id for ticket in running.tickets)
        self._under_way.clear()

    async def _wait_for_database(self) -> None:
        """Refuse all comers and probe until a transaction gets through."""
        while self._away:
            self._refuse_waiting(DatabaseAway)
            await trio.sleep(RETRY_INTERVAL)
            try:
                await self._beat()
                await self._give_back()
            except DatabaseError as error:
                self._outage.note(error)
                continue
            self._away = False

    def _refuse_waiting(self, refusal: type[DatabaseUnavailable] = DatabaseUnavailable) -> None:
        for ticket in (*self._locked, *self._waiting):
            ticket.answer(refusal())
        self._waiting.clear()

    async def _beat(self) -> datetime | None:
        """Send the heartbeat; return the database's clock, None if another transaction holds the worker's row."""
        try:
            return await self._database.write_unless_locked(books.beat, self._worker)
        except Locked:
            self._meet_lock()
            return None

    async def _give_back(self) -> None:
        """Give back what was refused, as far as it exists; beside the writer where that has to wait for a lock."""
        refused = sorted(self._uncertain)
        try:
            await self._database.write_unless_locked(books.give_back, refused, datetime.now(UTC))
            self._uncertain.difference_update(refused)
        except Locked:
            self._meet_lock()

    async def _tend(self) -> None:
        """Send the heartbeat when it is due, and settle what dead workers have left."""
        now = trio.current_time()
        if now < self._next_beat:
            return
        self._next_beat = now + self._heartbeat
        dead_after = timedelta(seconds=0 if self._exclusive else self._dead_after)
        try:
            moment = await self._beat()
            if moment is None:
                return
            if not self.unsettled:
                self._outage.over()
            if now < self._cautious_until:
                # What a dead worker has left may be locked, and can wait.
                return
            orphans = await self._database.read(books.find_orphans, moment, dead_after, SWEEP_CHUNK)
            if orphans:
                swept = await sweep(self._database, orphans, moment)
                if swept and len(orphans) == SWEEP_CHUNK:
                    self._next_beat = now
            else:
                await self._database.write_unless_locked(
                    books.forget_dead_workers, moment, timedelta(seconds=self._dead_after)
                )
        except Locked:
            self._meet_lock()
        except DatabaseError as error:
            self._outage.note(error)
            self._away = True
            await self._wait_for_database()
