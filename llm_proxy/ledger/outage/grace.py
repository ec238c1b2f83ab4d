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

from db.errors import DatabaseError
from db.queries import ledger as books
from db.records import Reservation
from llm_proxy.errors import DatabaseAway, DatabaseUnavailable
from llm_proxy.ledger import writer
from llm_proxy.ledger.backlog import Backlog
from llm_proxy.ledger.outage.adoption import Adopter
from llm_proxy.ledger.outage.spool import Spool
from llm_proxy.ledger.outage.spool_file import SpoolError
from llm_proxy.ledger.outage.token_cache import Circle
from llm_proxy.ledger.transaction import Grant
from llm_proxy.logging import log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from db.database import Database
    from db.records import Result, Token, Worker
    from llm_proxy.errors import ProxyError
    from llm_proxy.ledger.batch import PendingAdmission
    from llm_proxy.ledger.outage.spool_file import SpoolFile
    from llm_proxy.ledger.outage.token_cache import Terms
    from llm_proxy.ledger.transaction import AdmissionRequest
    from llm_proxy.ledger.writer import Ledger

#: Requests that may wait in memory (and on the disk) for the database; beyond this, none is admitted.
MAX_SPOOLED = 50_000
#: Seconds between looks for the spools of workers that died.
ADOPTION_INTERVAL = 60.0
#: Tokens that are looked at again in one transaction.
REVIEW_CHUNK = 500

_log = log.logger("ledger")


class Grace:
    """Admits and settles as the ledger does, and goes on without it for a while.

    Args:
        ledger: decides as long as it can; its on_decisions is this object from now on.
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
        self._backlog = Backlog(self._spool)
        # The clock when the first request was admitted here; None while the ledger decides.
        self._began: float | None = None
        self._over = False
        self._begun = trio.Event()
        self._ended = trio.Event()
        # The last of the spool is on its way into the books: who comes now waits for the ledger.
        self._resuming: trio.Event | None = None
        #: Requests that were admitted here since the start.
        self.admissions = 0
        ledger.on_decisions = self._decided

    @property
    def spooled(self) -> int:
        """Requests whose admission or end is spooled, and not in the books yet."""
        return len(self._backlog)

    @property
    def open(self) -> bool:
        """Whether a request may go on while the database is away, as far as that does not depend on its token."""
        began = self._began
        return (
            not self._over
            and self._spool.failure is None
            and len(self._backlog) < MAX_SPOOLED
            and (began is None or trio.current_time() < began + self._terms.duration)
        )

    @property
    def carries(self) -> bool:
        """Whether requests of some token are admitted in spite of the database's absence."""
        away = self._began is not None or not self._ledger.alive
        return away and self.open and self._circle.answers(self._terms, trio.current_time())

    @property
    def refuses(self) -> bool:
        """Whether everybody is refused, because grace has ended and the ledger does not decide yet."""
        return self._began is not None and not self.open

    async def check(self, application: AdmissionRequest) -> tuple[Token, str]:
        """Judge a request by its head before its body is waited for, by what is remembered if the database is away.

        Raises:
            ProxyError: the request is refused.
        """
        if self._began is None:
            try:
                return await self._ledger.check(application)
            except DatabaseAway:
                pass
        if not self.open:
            raise DatabaseUnavailable
        known = self._circle.check(application, self._terms, trio.current_time(), datetime.now(UTC))
        return known.token, known.provider

    async def admit(self, application: AdmissionRequest) -> Grant:
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
        # The ledger's memory is no place for an end that comes in an outage, if there is a disk.
        if not self._backlog.end(grant, result, known_to_books=self._began is not None and not self._ledger.alive):
            self._ledger.settle(grant, result)

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
                    await self._backlog.empty_spool()

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

    async def _admit(self, application: AdmissionRequest) -> Grant:
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
        self._begin()
        try:
            await self._backlog.admit(grant, known)
        except SpoolError:
            if self._spool.failure is not None:
                self._end()
            raise DatabaseUnavailable from None
        self.admissions += 1
        return grant

    def _decided(self, tickets: Sequence[PendingAdmission], decisions: Sequence[Grant | ProxyError]) -> None:
        """Remember what a transaction of the ledger found out."""
        clock = trio.current_time()
        for ticket, decision in zip(tickets, decisions, strict=True):
            self._circle.learn(ticket.request.digest, decision, clock, used_too=self._began is not None)

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
            full = len(self._backlog) >= MAX_SPOOLED
            reason = "the spool is full" if full else f"it has lasted for {self._terms.duration:g} s"
            _log.warning("grace ends: requests are refused until the database is back", reason=reason)

    async def _return_to_the_books(self, began: float) -> None:
        """Wait for the database, write down all that was spooled, and let the ledger decide again."""
        before = self._backlog.brought
        while self._began is not None:
            await trio.sleep(writer.RETRY_INTERVAL)
            # What the ledger kept is written: its own transactions get through.
            if not self._ledger.alive or self._ledger.busy:
                continue
            try:
                await self._backlog.bring(self._database, self._worker.id, self._hold)
                await self._backlog.empty_spool()
            except DatabaseError:
                continue
            else:
                self._rest()
            finally:
                self._release()
        _log.warning(
            "grace is over: the database is back, and all that was spooled is in the books",
            requests=self._backlog.brought - before,
            lasted_s=round(trio.current_time() - began, 3),
        )

    def _rest(self) -> None:
        """Let the ledger decide again, unless a request has come in meanwhile."""
        if not self._backlog:
            self._began = None
            self._over = False
            self._begun = trio.Event()
            self._ended.set()

    def _hold(self) -> None:
        """Let who comes now wait for the ledger."""
        if self._resuming is None:
            self._resuming = trio.Event()

    def _release(self) -> None:
        if self._resuming is not None:
            self._resuming.set()
            self._resuming = None

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
