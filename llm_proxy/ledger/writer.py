"""The ledger of one worker: queues on the trio side, one transaction after the other on the database's side."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Protocol

import msgspec
import trio
from attrs import define, field
from trio.testing import wait_all_tasks_blocked

from db.database import Database
from db.errors import REFUSALS, CommitUnknown, DatabaseError, Locked
from db.queries import ledger as queries
from db.queries import objects
from db.records import VOID, Result, SettledRequest, Worker
from llm_proxy.errors import DatabaseAway, DatabaseUnavailable, ProxyError, TokenInvalid, TokenLocked
from llm_proxy.ledger import isolation
from llm_proxy.ledger.batch import MAX_BATCH, Batch, PendingAdmission, refuse
from llm_proxy.ledger.label_values import LabelValues
from llm_proxy.ledger.late import ObjectUsage, log_booked
from llm_proxy.ledger.locked import LockedRequests, LockedRows
from llm_proxy.ledger.lookup import Lookups, ObjectRecords
from llm_proxy.ledger.transaction import (
    AdmissionRequest,
    Checked,
    Decision,
    Grant,
    Objects,
    Settlement,
    allow_lists,
    judge,
    records_of,
    transact,
)
from llm_proxy.ledger.waiting import BlockedRequests
from llm_proxy.limits import Blocked
from llm_proxy.logging import log

#: Maximum seconds that a transaction waits until the process is idle, so that more requests join it.
ADMISSION_PATIENCE = 0.005
#: Maximum seconds that settlements wait for an admission whose transaction they can share. Those that others may wait
#: for, perhaps at another server, do not.
SETTLEMENT_PATIENCE = 0.02
#: Seconds between attempts while the database is unavailable.
RETRY_INTERVAL = 0.25
#: Seconds that a request waits for its admission before it is refused because the database is unavailable.
ADMISSION_DEADLINE = 1.5
#: Settlements kept in memory while the database is unavailable; beyond this number, no request is admitted.
MAX_UNSETTLED = 50_000
#: Default seconds between heartbeats.
HEARTBEAT_INTERVAL = 5.0
#: Reservations of dead workers swept in one transaction.
SWEEP_CHUNK = 200

_log = log.logger("ledger")


@define(eq=False)
class OutageLog:
    """Logs each reason why the database is unavailable once, and the end; not every attempt in between."""

    _since: float = field(default=0.0, init=False)
    _reasons: set[str] = field(factory=set, init=False)

    def note(self, error: DatabaseError) -> None:
        if not self._reasons:
            self._since = trio.current_time()
        reason = str(error)
        if reason not in self._reasons:
            self._reasons.add(reason)
            _log.error("the database is away", reason=reason)

    def over(self) -> None:
        """Log that the database took a transaction, if that is news."""
        if self._reasons:
            self._reasons.clear()
            _log.info("the database is back", seconds=round(trio.current_time() - self._since, 3))


class Observer(Protocol):
    """Gets, after every commit, the seconds since the hop to the thread, and the admissions and settlements in it.

    If rows of late usage were in it, it gets their number too.
    """

    def observe_transaction(self, seconds: float, admitted: int, settled: int) -> None: ...

    def late_usage(self, result: str, count: int = 1) -> None: ...


class Ledger:
    """Admits and settles the requests of one worker process. `run` does the work.

    `worker` is this process's row, refreshed every `heartbeat` seconds, an interval that all workers of one database
    share. `observer` is called after every committed transaction. `exclusive` means that no other process can be
    writing to this database (SQLite), so that reservations of other workers are known to be orphans without waiting.
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
        self._database = database
        self._worker = worker
        self._observer = observer
        self._exclusive = exclusive
        self._heartbeat = heartbeat
        self._dead_after = timedelta(seconds=queries.MISSED_HEARTBEATS * heartbeat)
        self._lookups = Lookups(database, ADMISSION_DEADLINE)
        self._objects = ObjectRecords(database)
        self._label_values = LabelValues()
        self._waiting: deque[PendingAdmission] = deque()
        self._unsettled: deque[Settlement] = deque()
        self._doubtful: deque[Settlement] = deque()
        # Blocked by locks of other transactions.
        self._locked = LockedRequests()
        # Running requests are in the way of a limit.
        self._blocked = BlockedRequests()
        self._aside = LockedRows(
            database,
            self._locked,
            self._commit,
            lambda: self._away,
            lambda: self._wake.set(),  # noqa: PLW0108 - the event is replaced often
        )
        self._wake = trio.Event()
        self._idle = trio.Event()
        # Called with every decision of a committed transaction, whether or not the request still waits for it.
        self.on_decisions: Callable[[Sequence[PendingAdmission], Sequence[Decision]], None] | None = None
        # Admitted requests that are not settled yet.
        self._open = 0
        # The latest start of the next transaction that has any of `_unsettled`.
        self._settle_by = math.inf
        # The writer's sleep, while it has nothing to do before its deadline.
        self._sleep: trio.CancelScope | None = None
        # A stack: the running batch is last, the next one before it.
        self._under_way: list[Batch] = []
        self._away = False
        self._outage = OutageLog()
        self._running = False
        self._next_beat = -math.inf
        # No heartbeat may follow the removal of the worker's row: it would add the row again.
        self._beating = trio.Lock()
        self._retired = False

    @property
    def alive(self) -> bool:
        """Whether the writer is running and its last transaction was committed."""
        return self._running and not self._away

    @property
    def waiting(self) -> int:
        """Number of requests that wait for their admission, or for the lookup before it."""
        return len(self._waiting) + len(self._locked) + len(self._blocked) + self._lookups.waiting

    @property
    def unsettled(self) -> int:
        """Number of settlements that are not written yet."""
        under_way = sum(len(batch.settlements) for batch in self._under_way)
        return under_way + self._kept + len(self._aside.uncertain)

    @property
    def _kept(self) -> int:
        """Number of settlements that are in no transaction yet."""
        kept = len(self._unsettled) + len(self._doubtful)
        aside = self._aside.settlements
        # Read at each admission, and rows are rarely locked.
        return kept + sum(map(len, aside.values())) if aside else kept

    @property
    def lag(self) -> float:
        """Seconds since the end of the oldest request that is not settled yet; 0 if there is none."""
        waiting = [self._unsettled, self._doubtful, *self._aside.settlements.values()]
        queues = [*waiting, *(batch.settlements for batch in self._under_way)]
        ends = [queue[0].row.settled_at for queue in queues if queue]
        return max(0.0, (datetime.now(UTC) - min(ends)).total_seconds()) if ends else 0.0

    @property
    def busy(self) -> bool:
        """Whether anything is queued, or on its way to the database."""
        return self.writing or bool(self._locked) or self.unsettled > 0

    @property
    def writing(self) -> bool:
        """The same, except for what the locks of other transactions hold up."""
        return bool(self._waiting or self._blocked or self._under_way or self._unsettled or self._doubtful)

    async def check(self, request: AdmissionRequest) -> Checked:
        """Judge a request by its head before its body is read. Nothing is counted, and `admit` judges it again.

        Its body must be read for what it names if other projects use the same account. Safe to cancel.

        Raises:
            DatabaseAway: the database does not answer.
            ProxyError: the request is refused.
        """
        if self._away:
            raise DatabaseAway
        if not self._running:
            raise DatabaseUnavailable
        found = await self._lookups.find(request.digest)
        if found is None:
            raise TokenInvalid
        token, account = found
        provider = request.provider(account)
        refusal = judge(request, token, account, provider, datetime.now(UTC))
        if refusal is not None:
            raise refusal.about(token.id, account.project.id, provider)
        limited = token.limited or account.limited or bool(allow_lists(token, account.project))
        if request.named is None:
            return Checked(token, account.project, provider, needs_body=False, limited=limited)
        wanted = [(request.named, account.project.id, provider)]
        try:
            known = await self._database.read(isolation.read, wanted)
        except DatabaseError:
            raise DatabaseAway from None
        # What the body names is not known yet, and is judged later.
        refusal = known.refusal(msgspec.structs.replace(request.named, unread=False), account.project, provider)
        if refusal is not None:
            raise refusal.about(token.id, account.project.id, provider)
        needs_body = request.named.unread and bool(known.shared)
        return Checked(token, account.project, provider, needs_body=needs_body, limited=limited)

    async def admit(self, request: AdmissionRequest) -> Grant:
        """Wait for the decision of the next shared transaction.

        Safe to cancel: if a reservation is made anyway, it is given back.

        Raises:
            DatabaseAway: the request was in no transaction that was, or can still be, committed.
            ProxyError: the request is refused.
        """
        if self._away:
            raise DatabaseAway
        if not self._running or self._kept >= MAX_UNSETTLED:
            raise DatabaseUnavailable
        one = PendingAdmission(request)
        self._waiting.append(one)
        self._wake.set()
        decision = await one.wait()
        if isinstance(decision, ProxyError):
            raise decision
        return decision

    async def record(self, grant: Grant, made: Objects) -> bool:
        """Record the objects that a running request has created; False if that is not certain in time.

        Then they must be given to `settle`. Safe to cancel.
        """
        return self._running and not self._away and await self._objects.record(records_of(grant.reservation, made))

    async def requested_model(self, grant: Grant, object_id: str) -> str:
        """The model that the request named which made an object; empty if the database does not know, or not now."""
        if not self._running or self._away:
            return ""
        try:
            return await self._database.read(objects.find_requested_model, grant.reservation.provider, object_id) or ""
        except DatabaseError:
            return ""

    def settle(self, grant: Grant, result: Result, objects: Objects = (), usage: ObjectUsage | None = None) -> None:
        """Queue the final row of an admitted request; exactly one call per grant.

        `objects` are those that it created or deleted at the provider, and that `record` has not recorded. `usage`
        is that of an object, if the request has seen its final state.
        """
        settlement = Settlement.of(grant, result, objects, usage)
        if grant.reservation.limits == {}:
            # What a request holds that was admitted without the database is in its row alone.
            self._doubtful.append(settlement)
            self._wake.set()
            return
        self._open -= 1
        self._unsettled.append(settlement)
        latest = trio.current_time() + (0.0 if grant.makes_room else SETTLEMENT_PATIENCE)
        if len(self._unsettled) == 1 or latest < self._settle_by:
            self._settle_by = latest
            if self._sleep is not None:
                # To wake it costs a pass of the scheduler.
                self._sleep.deadline = self._due

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write until cancelled. Reports started once the first heartbeat is in the database."""
        await self._database.write(queries.beat, self._worker)
        self._running = True
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._refuse_overdue)
                nursery.start_soon(self._aside.run)
                nursery.start_soon(self._lookups.run)
                nursery.start_soon(self._objects.run)
                await self._write()
        finally:
            self._running = False
            for batch in self._under_way:
                refuse(batch.pending, DatabaseUnavailable)
            self._refuse_waiting()
            self._idle.set()

    async def _write(self) -> None:
        while True:
            await self._tend()
            await self._gather()
            await self._write_next()

    @property
    def _due(self) -> float:
        """When there is work for the writer, in trio's time, unless it is woken before."""
        if self._waiting or self._doubtful:
            return -math.inf
        # A settlement may make room for the requests that are blocked.
        settle_by = math.inf if not self._unsettled else -math.inf if self._blocked else self._settle_by
        return min(self._next_beat, self._locked.retry_at, self._blocked.retry_at, settle_by)

    async def _gather(self) -> None:
        """Sleep until there is work, then wait briefly so that more requests can join. A lone one is not delayed.

        A transaction costs much more than one request's part in it. So it starts when the process has nothing else to
        do: an earlier start would make this request no faster, and the next ones slower. No client waits for a
        settlement, unless it needs what that gives back, so settlements wait for an admission.
        """
        if not self.busy:
            self._idle.set()
            self._idle = trio.Event()
        due = self._due
        if due > trio.current_time():
            self._wake = trio.Event()
            with trio.move_on_at(due) as self._sleep:
                await self._wake.wait()
            self._sleep = None
        if self._waiting and (self._open or len(self._waiting) > 1):
            with trio.move_on_after(ADMISSION_PATIENCE):
                await wait_all_tasks_blocked()

    async def _refuse_overdue(self) -> None:
        """Refuse requests that have waited too long because a transaction hangs.

        Checking all of them now and then costs less than a deadline for each.
        """
        while True:
            await trio.sleep(ADMISSION_DEADLINE / 6)
            latest = trio.current_time() - ADMISSION_DEADLINE
            for batch in self._under_way:
                refuse(batch.pending, DatabaseUnavailable, latest)
            refuse(self._locked, TokenLocked, latest)
            refuse(self._waiting, DatabaseAway, latest)

    async def drain(self) -> None:
        """Wait until every settlement so far is in the database, then remove this worker's row.

        No request may be admitted or settled any more. Waits as long as the database is unavailable: set a deadline.
        If the writer has failed, nothing is written: open requests become `unknown` when the heartbeat is missing.
        """
        while self.busy and self._running:
            await self._idle.wait()
        if self._running:
            async with self._beating:
                self._retired = True
                await self._database.write(queries.retire, self._worker.id)

    async def _write_next(self) -> None:
        """Commit what is queued in one transaction, or in several if that one is refused."""
        pending, held = self._take_pending(), []
        cautious = self._aside.cautious
        now = trio.current_time()
        if self._blocked and (self._unsettled or now >= self._blocked.retry_at):
            # They came earlier, and a settlement in this transaction may make room for them.
            pending = self._blocked.take(now) + pending
        if (pending and cautious) or now >= self._locked.retry_at:
            held = self._locked.take(MAX_BATCH)
        if cautious:
            held, pending = held + pending, []
            for queue in (self._doubtful, self._unsettled):
                self._aside.add(queue)
                queue.clear()
        doubtful = bool(self._doubtful)
        queue = self._doubtful if doubtful else self._unsettled
        settlements = [queue.popleft() for _ in range(min(len(queue), MAX_BATCH))]
        if pending or settlements:
            self._under_way.append(Batch(pending, settlements, doubtful))
        if held:
            held.sort(key=lambda one: one.blocked is None)
            self._under_way.append(Batch(held, [], skip_locked=True))
        try:
            while self._under_way:
                await self._write_batch(self._under_way[-1])
        except DatabaseError as error:
            self._outage.note(error)
            self._put_back(unknown=isinstance(error, CommitUnknown))
            await self._wait_for_database()

    async def _write_batch(self, batch: Batch) -> None:
        """Commit one transaction, and wake the requests that wait for it."""
        try:
            await self._commit(batch, partial(self._committed, batch))
        except Locked:
            self._skip_locked(batch)
        except REFUSALS as error:
            # Any exception that is not the database's is a bug and ends the worker: no row is to blame, and its open
            # requests are settled as `unknown`.
            await self._cut(batch, error)

    def _committed(self, batch: Batch, decisions: list[Decision]) -> None:
        self._under_way.pop()
        self._outage.over()
        decided = list(zip(batch.pending, decisions, strict=True))
        if batch.skip_locked:
            still_locked = [one for one, decision in decided if isinstance(decision, TokenLocked)]
            self._locked.put_back(still_locked, trio.current_time())
            for _, locked in decided:
                if isinstance(locked, TokenLocked) and locked.counter is not None:
                    self._aside.miss(locked.counter)
            decided = [pair for pair in decided if not isinstance(pair[1], TokenLocked)]
        if self.on_decisions is not None:
            self.on_decisions(batch.pending, decisions)
        blocked: list[tuple[PendingAdmission, Blocked]] = []
        for one, decision in decided:
            if isinstance(decision, Blocked):
                if not one.answered:
                    blocked.append((one, decision))
                continue
            if isinstance(decision, ProxyError) and decision.__cause__ is not None:
                message = "the admission check of a request failed"
                _log.error(message, request_id=one.request.id, exc_info=decision.__cause__)
            if isinstance(decision, Grant):
                self._open += 1
                if not one.answer(decision):
                    self.settle(decision, VOID)
            else:
                one.answer(decision)
        if blocked:
            self._blocked.put(blocked, trio.current_time())

    def _skip_locked(self, batch: Batch) -> None:
        """Write at once what no other transaction blocks, and leave the rest for later."""
        self._under_way.pop()
        self._aside.on_lock()
        self._aside.add(batch.settlements)
        if batch.skip_locked:
            # The table itself is locked.
            self._locked.put_back(batch.pending, trio.current_time())
        elif batch.pending:
            self._under_way.append(Batch(batch.pending, [], skip_locked=True))

    async def _cut(self, batch: Batch, error: Exception) -> None:
        """Find the rows that cause a refusal, so that all others are written.

        Raises DatabaseError if the database refuses even a heartbeat: then these rows are not the cause.
        """
        parts = batch.parts()
        if not parts:
            await self._beat()
            batch.give_up(error)
        self._under_way[-1:] = reversed(parts)

    async def _commit(self, batch: Batch, then: Callable[[list[Decision]], None] | None = None) -> None:
        """Write a batch; `then` gets the decisions as soon as it is committed."""
        started = trio.current_time()
        booked: list[SettledRequest] = []
        work = (self._worker.id, [one.request for one in batch.pending], batch.settlements, datetime.now(UTC))
        run = partial(
            transact,
            doubtful=batch.doubtful,
            skip_locked=batch.skip_locked,
            waiting=set(self._blocked.limits),
            retried=batch.retried,
            booked=booked,
            label_values=self._label_values,
        )
        try:
            decisions = await self._database.write_unless_locked(run, *work, then=then)
        except queries.ReservationsMissing:
            run = partial(run, doubtful=True)
            decisions = await self._database.write_unless_locked(run, *work, then=then)
        decided = sum(not isinstance(one, Blocked | TokenLocked) for one in decisions)
        self._observer.observe_transaction(trio.current_time() - started, decided, len(batch.settlements))
        if booked:
            log_booked(booked)
            self._observer.late_usage("booked", len(booked))

    def _take_pending(self) -> list[PendingAdmission]:
        pending: list[PendingAdmission] = []
        while self._waiting and len(pending) < MAX_BATCH:
            one = self._waiting.popleft()
            if not one.answered and not self._locked.join(one):
                pending.append(one)
        return pending

    def _put_back(self, *, unknown: bool) -> None:
        """Queue the settlements again, refuse the requests that wait. If `unknown`, the running commit may be done."""
        self._away = True
        running = self._under_way[-1]
        for batch in self._under_way:
            uncertain = unknown and batch is running
            doubtful = batch.doubtful or uncertain
            (self._doubtful if doubtful else self._unsettled).extendleft(reversed(batch.settlements))
            refuse(batch.pending, DatabaseUnavailable if uncertain else DatabaseAway)
        if unknown:
            self._aside.uncertain.update(one.request.id for one in running.pending)
        self._under_way.clear()

    async def _wait_for_database(self) -> None:
        """Refuse all requests and probe until a transaction is committed."""
        while self._away:
            self._refuse_waiting(DatabaseAway)
            await trio.sleep(RETRY_INTERVAL)
            try:
                await self._beat()
                await self._aside.give_back(sorted(self._aside.uncertain))
            except Locked:
                # `LockedRows.run` gives back.
                self._aside.on_lock()
            except DatabaseError as error:
                self._outage.note(error)
                continue
            self._away = False

    def _refuse_waiting(self, refusal: type[DatabaseUnavailable] = DatabaseUnavailable) -> None:
        refuse((*self._locked, *self._blocked, *self._waiting), refusal)
        self._waiting.clear()
        self._blocked.clear()

    async def _beat(self) -> datetime | None:
        """Send the heartbeat; return the database's time.

        None if another transaction holds the worker's row, or if the row was removed at the end.
        """
        async with self._beating:
            try:
                return None if self._retired else await self._database.write_unless_locked(queries.beat, self._worker)
            except Locked:
                self._aside.on_lock()
                return None

    async def _tend(self) -> None:
        """Send the heartbeat when it is due, and settle the open requests of dead workers."""
        now = trio.current_time()
        if now < self._next_beat:
            return
        self._next_beat = now + self._heartbeat
        try:
            database_time = await self._beat()
            if database_time is None:
                return
            if not self.unsettled:
                self._outage.over()
            if self._aside.cautious:
                # Requests of a dead worker may be locked, and can wait.
                return
            dead_after = timedelta() if self._exclusive else self._dead_after
            orphans = await self._database.read(queries.find_orphans, database_time, dead_after, SWEEP_CHUNK)
            if orphans:
                swept = await _sweep(self._database, orphans, database_time)
                if swept and len(orphans) == SWEEP_CHUNK:
                    self._next_beat = now
            else:
                await self._database.write_unless_locked(queries.forget_dead_workers, database_time, self._dead_after)
        except Locked:
            self._aside.on_lock()
        except DatabaseError as error:
            self._outage.note(error)
            self._away = True
            await self._wait_for_database()


async def _sweep(database: Database, orphans: Sequence[str], now: datetime) -> int:
    """Settle requests of dead workers as `unknown`; return how many. One that the database refuses is logged.

    Raises DatabaseError if the requests are not the cause.
    """
    try:
        return await database.write_unless_locked(queries.sweep, orphans, now)
    except REFUSALS as error:
        if len(orphans) == 1:
            _log.error("a dead worker's request cannot be settled", request_id=orphans[0], exc_info=error)
            return 0
    middle = len(orphans) // 2
    return await _sweep(database, orphans[:middle], now) + await _sweep(database, orphans[middle:], now)
