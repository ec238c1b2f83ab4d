"""Grace: tokens that the database has opened lately go on for a while when it is away, and are written down later.

It stands in front of the ledger and is asked instead of it. While the database answers, it passes on what it is asked
and remembers what the decisions say about tokens (`acquaintance`). When an admission is refused because the database is
away, and it is certain that nothing of it got there, it may be admitted here: on a token that was verified lately, a
few times, and not beyond the limit that was last seen. Such an admission is on the disk (`spool`) before a byte goes
upstream. From then on all requests are decided here, until everything that was spooled is in the books: only then is
the ledger asked again, so that it never decides on a counter that lacks something of ours.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import trio
from attrs import define

from db.errors import DatabaseError
from db.queries import ledger as books
from db.records import Reservation
from llm_proxy import log
from llm_proxy.errors import DatabaseAway, DatabaseUnavailable
from llm_proxy.ledger import writer
from llm_proxy.ledger.acquaintance import Circle
from llm_proxy.ledger.adoption import Adopter
from llm_proxy.ledger.reconciliation import CHUNK, Spooled, reconcile
from llm_proxy.ledger.spool import Spool
from llm_proxy.ledger.spool_file import SpoolError
from llm_proxy.ledger.spool_lines import Admitted, Settled, encode
from llm_proxy.ledger.transaction import Grant, Result, Settlement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from db.database import Database
    from db.records import Worker
    from llm_proxy.errors import ProxyError
    from llm_proxy.ledger.acquaintance import Acquaintance, Terms
    from llm_proxy.ledger.portion import Ticket
    from llm_proxy.ledger.spool_file import SpoolFile
    from llm_proxy.ledger.transaction import Application
    from llm_proxy.ledger.writer import Ledger

#: Requests that may wait in memory (and on the disk) for the database; beyond this, none is admitted.
MAX_SPOOLED = 50_000
#: Seconds between looks for the spools of workers that died.
ADOPTION_INTERVAL = 60.0
#: Tokens that are looked at again in one transaction.
REVIEW_CHUNK = 500

_log = log.logger("ledger")


@define(eq=False)
class _Spooled:
    """A request of which the books lack something.

    Attributes:
        acquaintance: what it was admitted on; None where the ledger has admitted it.
        durable: its admission is on a disk.
    """

    grant: Grant
    acquaintance: Acquaintance | None = None
    durable: bool = False
    settlement: Settlement | None = None

    def entry(self) -> Spooled:
        return Spooled(self.grant.reservation, self.grant.digest, self.settlement)


class Grace:
    """Admits and settles as the ledger does, and goes on without it for a while.

    Args:
        ledger: decides as long as it can; its witness is this object from now on.
        database: where the books are.
        worker: this process's row.
        file: this worker's empty spool.
        terms: how far to go.
        review: seconds between two looks at the rows of the tokens that are remembered.
    """

    def __init__(
        self, ledger: Ledger, database: Database, worker: Worker, file: SpoolFile, terms: Terms, *, review: float
    ) -> None:
        """Begin with no memories; `run` does the work."""
        self._ledger = ledger
        self._database = database
        self._worker = worker
        self._adopter = Adopter(file.path.parent, database, worker.id)
        self._file = file
        self._spool = Spool(file)
        self._terms = terms
        self._review = review
        self._circle = Circle()
        self._pending: dict[str, _Spooled] = {}
        # The clock when the first request was admitted here; None while the ledger decides.
        self._began: float | None = None
        self._over = False
        self._begun = trio.Event()
        self._ended = trio.Event()
        # The last of the spool is on its way into the books: who comes now waits for the ledger.
        self._resuming: trio.Event | None = None
        #: Requests that were admitted here since the start.
        self.admissions = 0
        ledger.witness = self._decided

    @property
    def spooled(self) -> int:
        """Requests whose admission or end is spooled, and not in the books yet."""
        return len(self._pending)

    @property
    def open(self) -> bool:
        """Whether a request may go on while the database is away, as far as that does not depend on its token."""
        began = self._began
        return (
            not self._over
            and self._spool.failure is None
            and len(self._pending) < MAX_SPOOLED
            and (began is None or trio.current_time() < began + self._terms.duration)
        )

    @property
    def carries(self) -> bool:
        """Whether requests of some token are admitted in spite of the database's absence."""
        away = self._began is not None or not self._ledger.alive
        return away and self.open and self._circle.answers(self._terms, trio.current_time())

    async def admit(self, application: Application) -> Grant:
        """Wait for the ledger's decision; decide here where the database is away.

        Cancelling is safe at any moment.

        Raises:
            ProxyError: the request is refused.
        """
        if self._resuming is not None:
            with trio.move_on_after(writer.ADMISSION_DEADLINE):
                await self._resuming.wait()
        if self._began is None:
            try:
                return await self._ledger.admit(application)
            except DatabaseAway:
                pass
        return await self._admit(application)

    def settle(self, grant: Grant, result: Result) -> None:
        """Note how an admitted request ended; exactly one call per grant."""
        spooled = self._pending.get(grant.reservation.id)
        if spooled is None:
            if self._began is None or self._ledger.alive:
                self._ledger.settle(grant, result)
                return
            # The ledger admitted it before the outage; its end is safer on the disk than in the ledger's memory.
            spooled = self._pending[grant.reservation.id] = _Spooled(grant, durable=True)
        spooled.settlement = Settlement.of(grant, result)
        if result.outcome == "void" and spooled.acquaintance is not None:
            spooled.acquaintance.used -= 1
        self._spool.append(encode(Settled(spooled.settlement.row, grant.digest)))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write the spool, and bring it and those of dead workers into the books, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._spool.run)
            nursery.start_soon(self._look_again)
            task_status.started()
            while True:
                try:
                    await self._adopter.look()
                except DatabaseError:
                    # The next look is soon enough.
                    pass
                except OSError as error:
                    _log.error("a spool cannot be read", reason=f"{error.filename}: {error.strerror}")
                with trio.move_on_after(ADOPTION_INTERVAL):
                    await self._begun.wait()
                if self._began is not None:
                    await self._return_to_the_books(self._began)
                elif self._spool.failure is not None:
                    await self._empty()

    async def drain(self) -> None:
        """Wait until nothing is spooled any more, and take the file away. Waits as long as the database is away."""
        while self._began is not None:
            await self._ended.wait()
        with suppress(OSError):
            # An empty file that stays does no harm.
            await trio.to_thread.run_sync(self._file.remove)
        self._file.close()

    async def leave(self) -> None:
        """Leave what is spooled to the next who starts: all of it is on the disk when this returns, if it can be."""
        with suppress(SpoolError):
            # It was logged when grace ended for it.
            await self._spool.written()
        self._file.close()
        _log.warning("requests are left in the spool for the next start", spool=str(self._spool), requests=self.spooled)

    async def _admit(self, application: Application) -> Grant:
        """Admit a request on what is known, once that is on the disk."""
        if not self.open:
            self._end()
            raise DatabaseUnavailable
        now = datetime.now(UTC)
        known = self._circle.vouch(application, self._terms, trio.current_time(), now)
        reservation = Reservation(
            application.id,
            self._worker.id,
            known.token.id,
            known.project_id,
            known.provider,
            application.method,
            application.path,
            now,
        )
        grant = Grant(reservation, application.digest, known.sealed_key, known.token, known.counted + known.used)
        spooled = self._pending[reservation.id] = _Spooled(grant, known)
        self._begin()
        self._spool.append(encode(Admitted(reservation, application.digest)))
        try:
            with trio.fail_after(writer.ADMISSION_DEADLINE):
                await self._spool.written()
        except SpoolError:
            del self._pending[reservation.id]
            known.used -= 1
            self._end()
            raise DatabaseUnavailable from None
        except trio.TooSlowError:
            self.settle(grant, Result(outcome="void"))
            raise DatabaseUnavailable from None
        except trio.Cancelled:
            self.settle(grant, Result(outcome="void"))
            raise
        spooled.durable = True
        self.admissions += 1
        return grant

    def _decided(self, tickets: Sequence[Ticket], decisions: Sequence[Grant | ProxyError]) -> None:
        """Remember what a transaction of the ledger found out."""
        clock = trio.current_time()
        for ticket, decision in zip(tickets, decisions, strict=True):
            self._circle.learn(ticket.application.digest, decision, clock, used_too=self._began is not None)

    def _begin(self) -> None:
        if self._enter():
            _log.warning(
                "grace begins: the database is away, and tokens that it has opened lately go on",
                window_s=self._terms.window,
                requests_per_token=self._terms.requests,
                longest_s=self._terms.duration,
                spool=str(self._spool),
            )

    def _enter(self) -> bool:
        """Decide on all requests here from now on; False where that is so already."""
        if self._began is not None:
            return False
        self._began = trio.current_time()
        self._ended = trio.Event()
        self._begun.set()
        return True

    def _end(self) -> None:
        """Admit nobody any more until the database is back, and say once why."""
        if self._over:
            return
        self._over = True
        self._enter()
        failure = self._spool.failure
        if failure is not None:
            _log.error("grace ends: requests are refused until the database is back", reason=str(failure))
        else:
            full = len(self._pending) >= MAX_SPOOLED
            reason = "the spool is full" if full else f"it has lasted for {self._terms.duration:g} s"
            _log.warning("grace ends: requests are refused until the database is back", reason=reason)

    async def _return_to_the_books(self, began: float) -> None:
        """Wait for the database, write down all that was spooled, and let the ledger decide again."""
        reconciled = 0
        while self._began is not None:
            await trio.sleep(writer.RETRY_INTERVAL)
            # What the ledger kept is written: its own transactions get through.
            if not self._ledger.alive or self._ledger.busy:
                continue
            try:
                reconciled += await self._reconcile()
            except DatabaseError:
                continue
            finally:
                if self._resuming is not None:
                    self._resuming.set()
                    self._resuming = None
        _log.warning(
            "grace is over: the database is back, and all that was spooled is in the books",
            requests=reconciled,
            lasted_s=round(trio.current_time() - began, 3),
        )

    async def _reconcile(self) -> int:
        """Bring everything that was spooled into the books, and say how many requests that were.

        Raises:
            DatabaseError: the database is away again.
        """
        count = 0
        while self._pending:
            if len(self._pending) <= CHUNK and self._resuming is None:
                self._resuming = trio.Event()
            due = [one for one in self._pending.values() if one.durable or one.settlement is not None][:CHUNK]
            if not due:
                # They wait for the disk, and for nothing else.
                with suppress(SpoolError):
                    await self._spool.written()
                continue
            entries = [one.entry() for one in due]
            await reconcile(self._database, entries, self._worker.id)
            for one, entry in zip(due, entries, strict=True):
                if one.settlement is entry.settlement:
                    del self._pending[one.grant.reservation.id]
                    count += 1
        await self._empty()
        return count

    async def _empty(self) -> None:
        """Empty the spool, and be ready for the next time, unless somebody has been spooled meanwhile."""
        try:
            await self._spool.empty()
        except SpoolError as error:
            # What it says is in the books, where its ids are found should anybody bring it again.
            _log.error("the spool cannot be emptied", reason=str(error))
        if not self._pending:
            self._began = None
            self._over = False
            self._begun = trio.Event()
            self._ended.set()

    async def _look_again(self) -> None:
        """Look at the rows of the tokens that are remembered, so that one that was revoked is forgotten here too."""
        while True:
            await trio.sleep(self._review)
            digests = self._circle.fresh(trio.current_time(), self._terms.window)
            if self._began is not None or not self._ledger.alive:
                continue
            with suppress(DatabaseError):
                for start in range(0, len(digests), REVIEW_CHUNK):
                    chunk = digests[start : start + REVIEW_CHUNK]
                    found = await self._database.read(books.look_up, chunk)
                    now = datetime.now(UTC)
                    for digest in chunk:
                        self._circle.review(digest, found.get(digest), now)
