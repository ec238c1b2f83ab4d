"""The writer task: queues on the trio side, one transaction after the other on the database's."""

from __future__ import annotations

import math
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol

import trio
from attrs import evolve

from db.errors import CommitUnknown, DatabaseError
from db.queries import ledger as books
from llm_proxy.errors import DatabaseUnavailable, ProxyError
from llm_proxy.ledger.transaction import Application, Batch, Grant, Result, Settlement, transact

if TYPE_CHECKING:
    from collections.abc import Iterable

    from db.database import Database
    from db.records import Worker

#: Most admissions, and most settlements, in one transaction: bounds its locks and the size of its statements.
MAX_BATCH = 500
#: Seconds between attempts while the database is away.
RETRY_INTERVAL = 0.25
#: Seconds that a request waits for its admission before it is told that the database is unavailable.
ADMISSION_DEADLINE = 1.5
#: Settlements kept in memory while the database is away; beyond this, admission stays closed.
MAX_UNSETTLED = 50_000
#: Seconds between heartbeats where nothing else is said, and how many may be missing before a worker counts as dead.
HEARTBEAT_INTERVAL = 5.0
MISSED_HEARTBEATS = 4
#: Reservations of dead workers swept in one transaction.
SWEEP_CHUNK = 200


class Observer(Protocol):
    """Told of every shared transaction that was committed."""

    def observe_transaction(self, seconds: float, admitted: int, settled: int) -> None:
        """`seconds` from the hop to the commit; how many admissions were decided and settlements written."""


class _Ticket:
    """One application's place in the queue, and the task that waits there."""

    __slots__ = ("answered", "application", "decision", "queued", "task")

    def __init__(self, application: Application) -> None:
        self.application = application
        self.queued = trio.current_time()
        self.task = trio.lowlevel.current_task()
        self.answered = False
        self.decision: Grant | ProxyError

    async def wait(self) -> Grant | ProxyError:
        """Sleep until `answer`. Cancelling takes the ticket out of the game: whatever is decided then is void."""

        def give_up(_: object) -> trio.lowlevel.Abort:
            self.answered = True
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(give_up)
        return self.decision

    def answer(self, decision: Grant | ProxyError) -> bool:
        """Wake the task; False if it does not wait any more."""
        if self.answered:
            return False
        self.answered = True
        self.decision = decision
        trio.lowlevel.reschedule(self.task)
        return True


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
        self._waiting: deque[_Ticket] = deque()
        self._unsettled: deque[Settlement] = deque()
        self._doubtful: deque[Settlement] = deque()
        # Admissions that were refused because their commit's fate is unknown, by request id.
        self._uncertain: list[str] = []
        self._wake = trio.Event()
        self._idle = trio.Event()
        # Those whose transaction is running.
        self._deciding: list[_Ticket] = []
        self._writing = False
        self._away = False
        self._running = False
        self._next_beat = -math.inf

    @property
    def alive(self) -> bool:
        """Whether the writer is running and its last transaction reached the database."""
        return self._running and not self._away

    @property
    def waiting(self) -> int:
        """Requests that wait for their admission."""
        return len(self._waiting)

    @property
    def unsettled(self) -> int:
        """Settlements that are not written yet."""
        return len(self._unsettled) + len(self._doubtful) + len(self._uncertain)

    @property
    def busy(self) -> bool:
        """Whether anything is queued, or on its way to the database."""
        return bool(self._waiting) or self.unsettled > 0 or self._writing

    async def admit(self, application: Application) -> Grant:
        """Wait for the decision of the next shared transaction.

        Cancelling is safe at any moment: where the reservation was made all the same, it is given back.

        Raises:
            ProxyError: the request is refused.
        """
        if not self.alive or self.unsettled >= MAX_UNSETTLED:
            raise DatabaseUnavailable
        ticket = _Ticket(application)
        self._waiting.append(ticket)
        self._wake.set()
        decision = await ticket.wait()
        if isinstance(decision, ProxyError):
            raise decision
        return decision

    def settle(self, grant: Grant, result: Result) -> None:
        """Queue the final row of an admitted request; exactly one call per grant."""
        self._unsettled.append(Settlement.of(grant, result))
        self._wake.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write until cancelled. Reports started once the first heartbeat is in the database."""
        await self._database.write(books.beat, self._worker)
        self._running = True
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._refuse_overdue)
                await self._write()
        finally:
            self._running = False
            self._refuse_waiting()

    async def _write(self) -> None:
        while True:
            await self._tend()
            await self._write_next()
            if not self._waiting and not self.unsettled:
                self._idle.set()
                self._idle = trio.Event()
                with trio.move_on_at(self._next_beat):
                    await self._wake.wait()
                self._wake = trio.Event()

    async def _refuse_overdue(self) -> None:
        """Refuse those who have waited too long, because a transaction hangs.

        One look at all of them now and then costs less than a deadline for each.
        """
        while True:
            await trio.sleep(ADMISSION_DEADLINE / 6)
            latest = trio.current_time() - ADMISSION_DEADLINE
            for ticket in (*self._deciding, *self._waiting):
                if ticket.queued <= latest:
                    ticket.answer(DatabaseUnavailable())

    async def drain(self) -> None:
        """Wait until every settlement so far is in the database, then take this worker off the list.

        No request may be admitted or settled any more. Waits for ever while the database is away: give it a deadline.
        """
        while self.busy:
            await self._idle.wait()
        await self._database.write(books.retire, self._worker.id)

    async def _write_next(self) -> None:
        """Commit one batch of what has come together, and wake those who wait for it."""
        tickets = self._take_tickets()
        doubtful = bool(self._doubtful)
        queue = self._doubtful if doubtful else self._unsettled
        settlements = [queue.popleft() for _ in range(min(len(queue), MAX_BATCH))]
        if not tickets and not settlements:
            return
        batch = Batch(self._worker.id, [ticket.application for ticket in tickets], settlements, doubtful)
        started = trio.current_time()
        self._writing = True
        self._deciding = tickets
        try:
            decisions = await self._commit(batch)
        except DatabaseError as error:
            self._put_back(batch, tickets, error)
            await self._wait_for_database()
            return
        finally:
            self._writing = False
            self._deciding = []
        self._away = False
        self._observer.observe_transaction(trio.current_time() - started, len(tickets), len(settlements))
        for ticket, decision in zip(tickets, decisions, strict=True):
            if not ticket.answer(decision) and isinstance(decision, Grant):
                self.settle(decision, Result(outcome="void"))

    async def _commit(self, batch: Batch) -> list[Grant | ProxyError]:
        now = datetime.now(UTC)
        try:
            return await self._database.write(transact, batch, now)
        except books.ReservationsMissing:
            return await self._database.write(transact, evolve(batch, doubtful=True), now)

    def _take_tickets(self) -> list[_Ticket]:
        tickets: list[_Ticket] = []
        while self._waiting and len(tickets) < MAX_BATCH:
            ticket = self._waiting.popleft()
            if not ticket.answered:
                tickets.append(ticket)
        return tickets

    def _put_back(self, batch: Batch, tickets: Iterable[_Ticket], error: DatabaseError) -> None:
        """Keep what must be written, refuse those who wait."""
        self._away = True
        unknown = isinstance(error, CommitUnknown)
        keep = self._doubtful if batch.doubtful or unknown else self._unsettled
        keep.extendleft(reversed(batch.settlements))
        for ticket in tickets:
            ticket.answer(DatabaseUnavailable())
            if unknown:
                self._uncertain.append(ticket.application.id)

    async def _wait_for_database(self) -> None:
        """Refuse all comers and probe until a transaction gets through."""
        while self._away:
            self._refuse_waiting()
            await trio.sleep(RETRY_INTERVAL)
            try:
                await self._database.write(books.beat, self._worker)
                await self._database.write(books.give_back, self._uncertain, datetime.now(UTC))
            except DatabaseError:
                continue
            self._uncertain.clear()
            self._away = False

    def _refuse_waiting(self) -> None:
        while self._waiting:
            self._waiting.popleft().answer(DatabaseUnavailable())

    async def _tend(self) -> None:
        """Send the heartbeat when it is due, and settle what dead workers have left."""
        now = trio.current_time()
        if now < self._next_beat:
            return
        self._next_beat = now + self._heartbeat
        dead_after = timedelta(seconds=0 if self._exclusive else self._dead_after)
        try:
            moment = await self._database.write(books.beat, self._worker)
            orphans = await self._database.read(books.find_orphans, moment, dead_after, SWEEP_CHUNK)
            if orphans:
                await self._database.write(books.sweep, orphans, moment)
                if len(orphans) == SWEEP_CHUNK:
                    self._next_beat = now
            else:
                await self._database.write(books.forget_dead_workers, moment, timedelta(seconds=self._dead_after))
        except DatabaseError:
            self._away = True
            await self._wait_for_database()
