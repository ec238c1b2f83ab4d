"""The outage mode: recently used tokens are admitted for a while without the database, and recorded in it later.

`OutageMode` is called instead of the ledger. While the database answers, it passes requests on and caches what the
decisions say about tokens (`token_cache`). If an admission fails because the database is unavailable, and nothing of
it can be in the database, it may be admitted by the cached token: a few times, and not beyond the limit that was seen
last. It is on the disk (`spool`) before a byte goes upstream. From then on all requests are decided here, until
everything in the spool is in the database (`replay`). Only then the ledger decides again, so that it never decides by a
counter that lacks some of our requests. If another transaction has locked rows of a token, only that token has to wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

import trio

from db import Connection
from db.database import Database
from db.errors import DatabaseError
from db.queries import ledger as queries
from db.queries import limits as limit_queries
from db.records import Account, Limit, Reservation, Result, Token, Worker
from db.spool import SpoolFile
from llm_proxy.errors import DatabaseAway, DatabaseUnavailable, TokenLocked
from llm_proxy.ledger import writer
from llm_proxy.ledger.batch import PendingAdmission
from llm_proxy.ledger.late import ObjectUsage
from llm_proxy.ledger.locked import LOCK_RETRY
from llm_proxy.ledger.outage.replay import CHUNK, OrphanReplay
from llm_proxy.ledger.outage.spool import Spool
from llm_proxy.ledger.outage.token_cache import OutageLimits, TokenCache
from llm_proxy.ledger.transaction import AdmissionRequest, Checked, Decision, Grant, Objects, allow_lists
from llm_proxy.ledger.writer import Ledger
from llm_proxy.limits import Blocked
from llm_proxy.logging import log

#: Maximum number of requests that wait in memory and in the spool; beyond it, none is admitted.
MAX_SPOOLED = 50_000
#: Seconds between checks for spools of stopped workers.
ORPHAN_INTERVAL = 60.0
#: Cached tokens that are refreshed in one transaction.
REFRESH_CHUNK = 500

_log = log.logger("ledger")


class OutageMode:
    """Admits and settles as the ledger does, and for a while without it. `run` does the work.

    `file` is this worker's empty spool, `refresh` the seconds between two reads of the cached tokens' rows.
    """

    def __init__(
        self, ledger: Ledger, database: Database, worker: Worker, file: SpoolFile, limits: OutageLimits, refresh: float
    ) -> None:
        self._ledger = ledger
        self._database = database
        self._worker = worker
        self._orphans = OrphanReplay(file.path.parent, database, worker.id)
        self._spool = Spool(file)
        self._limits = limits
        self._refresh_interval = refresh
        self._cache = TokenCache(limits)
        # When the first request was admitted here; None while the ledger decides.
        self._since: float | None = None
        self._exhausted = False
        # Tasks that wait for the start or the end of the outage mode.
        self._waiting = trio.lowlevel.ParkingLot()
        # There is one while the last requests are being replayed: new ones wait for it, and then for the ledger.
        self._resuming: trio.Event | None = None
        #: Requests that were admitted here since the process started.
        self.admissions = 0
        ledger.on_decisions = self._on_decisions

    @property
    def spooled(self) -> int:
        """Requests whose admission or end is spooled, and not in the database yet."""
        return len(self._spool)

    @property
    def _open(self) -> bool:
        """Whether a request may be admitted without the database, apart from its token."""
        since = self._since
        return (
            not self._exhausted
            and self._spool.failure is None
            and len(self._spool) < MAX_SPOOLED
            and (since is None or trio.current_time() < since + self._limits.duration)
        )

    @property
    def admits_offline(self) -> bool:
        """Whether the database is unavailable and requests of some token are admitted."""
        offline = self._since is not None or not self._ledger.alive
        return offline and self._open and self._cache.has_valid(trio.current_time())

    @property
    def refuses_all(self) -> bool:
        """Whether all requests are refused: no more are admitted here, and the ledger does not decide yet."""
        return self._since is not None and not self._open

    async def check(self, request: AdmissionRequest) -> Checked:
        """As `Ledger.check`; by the cached token if the database is unavailable. Raises ProxyError."""
        if self._since is None:
            try:
                return await self._ledger.check(request)
            except DatabaseAway:
                pass
        if not self._open:
            raise DatabaseUnavailable
        cached, provider = self._cache.authorize_offline(request, trio.current_time(), datetime.now(UTC))
        token, project = cached.token, cached.account.project
        limited = bool(allow_lists(token, project))
        return Checked(token, project, provider, needs_body=request.named is not None, limited=limited)

    async def admit(self, request: AdmissionRequest) -> Grant:
        """Wait for the ledger's decision, or decide here if the database is unavailable. Safe to cancel.

        Raises ProxyError.
        """
        if self._resuming is not None:
            with trio.move_on_after(writer.ADMISSION_DEADLINE):
                await self._resuming.wait()
        if self._since is None:
            if request.digest in self._spool.locked:
                raise TokenLocked
            try:
                return await self._ledger.admit(request)
            except DatabaseAway:
                pass
        return await self._admit_offline(request)

    async def record(self, grant: Grant, made: Objects) -> bool:
        """As `Ledger.record`; never certain without the database."""
        return self._since is None and await self._ledger.record(grant, made)

    async def requested_model(self, grant: Grant, object_id: str) -> str:
        """As `Ledger.requested_model`."""
        return await self._ledger.requested_model(grant, object_id)

    def settle(self, grant: Grant, result: Result, objects: Objects = (), usage: ObjectUsage | None = None) -> None:
        """Record how an admitted request ended; exactly one call per grant. See `Ledger.settle`."""
        # In an outage the end of a request that the ledger admitted is safer in the spool than in the ledger's memory.
        if not self._spool.end(grant, result, objects, usage, in_database=not self._ledger.alive):
            self._ledger.settle(grant, result, objects, usage)
        elif self._since is None:
            # Nothing was admitted here, but this end is to be replayed.
            self._waiting.unpark_all()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write the spool, and replay it and those of stopped workers, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._spool.run)
            nursery.start_soon(self._refresh_cache)
            task_status.started()
            while True:
                # If the database is unavailable, the next time is early enough.
                with suppress(DatabaseError):
                    await self._orphans.run()
                if self._since is None and not self._spool:
                    with trio.move_on_after(ORPHAN_INTERVAL):
                        await self._waiting.park()
                if self._since is not None:
                    await self._replay(self._since)
                elif self._spool:
                    await self._replay_rest()
                elif self._spool.failure is not None:
                    await self._spool.empty()

    async def drain(self) -> None:
        """Wait, as long as the database is unavailable, until nothing is spooled, and remove the file."""
        while self._since is not None or self._spool:
            await self._waiting.park()
        with suppress(OSError):
            # An empty file that stays does no harm.
            await trio.to_thread.run_sync(self._spool.file.remove)
        await trio.to_thread.run_sync(self._spool.file.close)

    async def leave(self) -> None:
        """Leave the spool to the next process that starts. When this returns, all of it is on the disk if possible."""
        with suppress(DatabaseError):
            # The failure was logged when it ended the admissions.
            await self._spool.flush()
        await trio.to_thread.run_sync(self._spool.file.close)
        path = str(self._spool.file.path)
        _log.warning("requests are left in the spool for the next start", spool=path, requests=self.spooled)

    async def _admit_offline(self, request: AdmissionRequest) -> Grant:
        if not self._open:
            self._stop_admitting()
            raise DatabaseUnavailable
        now = datetime.now(UTC)
        cached, provider = self._cache.authorize_offline(request, trio.current_time(), now)
        place = (cached.token.id, cached.account.project.id, provider)
        # Its limits are those that apply when it is replayed; its row in the database names them.
        reservation = Reservation(request.id, self._worker.id, *place, request.method, request.path, now, {})
        counted = cached.counted + cached.used + 1
        grant = Grant(reservation, request.digest, cached.account, cached.token, counted)
        if self._since is None:
            self._start()
            _log.warning(
                "outage mode started: the database is unavailable, requests of recently used tokens are admitted",
                window_s=self._limits.window,
                requests_per_token=self._limits.requests,
                longest_s=self._limits.duration,
                spool=str(self._spool.file.path),
            )
        try:
            await self._spool.admit(grant, cached)
        except DatabaseError:
            if self._spool.failure is not None:
                self._stop_admitting()
            raise DatabaseUnavailable from None
        self.admissions += 1
        return grant

    def _on_decisions(self, pending: Sequence[PendingAdmission], decisions: Sequence[Decision]) -> None:
        clock = trio.current_time()
        for one, decision in zip(pending, decisions, strict=True):
            if isinstance(decision, Blocked):
                continue
            self._cache.record(one.request.digest, decision, clock, keep_used=self._since is not None)

    def _start(self) -> None:
        """Decide on all requests here from now on."""
        if self._since is None:
            self._since = trio.current_time()
            self._waiting.unpark_all()

    def _stop_admitting(self) -> None:
        """Admit no more requests until the database is back, and log the reason once."""
        if self._exhausted:
            return
        self._exhausted = True
        self._start()
        message = "outage mode admits no more requests until the database is back"
        if self._spool.failure is not None:
            _log.error(message, reason=self._spool.failure)
        else:
            lasted = f"it has lasted for {self._limits.duration:g} s"
            _log.warning(message, reason="the spool is full" if len(self._spool) >= MAX_SPOOLED else lasted)

    async def _replay(self, since: float) -> None:
        """Wait for the database, write all requests to it, and let the ledger decide again."""
        before = self._spool.replayed
        while self._since is not None:
            await trio.sleep(writer.RETRY_INTERVAL)
            # First the ledger must have written what it kept: this shows that transactions work.
            if not self._ledger.alive or self._ledger.writing:
                continue
            try:
                with suppress(DatabaseError):
                    while unlocked := self._spool.unlocked:
                        if unlocked <= CHUNK and self._resuming is None:
                            self._resuming = trio.Event()
                        await self._spool.replay(self._database, self._worker.id)
                    await self._spool.empty()
                    if not self._spool.unlocked:
                        self._since = None
                        self._exhausted = False
                        self._waiting.unpark_all()
            finally:
                if self._resuming is not None:
                    self._resuming.set()
                    self._resuming = None
        rest = f", but {len(self._spool)} that wait for locks" if self._spool else ""
        _log.warning(
            f"outage mode ended: the database is back, and has all requests of the spool{rest}",
            requests=self._spool.replayed - before,
            lasted_s=round(trio.current_time() - since, 3),
        )

    async def _replay_rest(self) -> None:
        """Write ends of requests, and what locks have held up, while the ledger decides; until an admission here."""
        while self._spool and self._since is None:
            await trio.sleep(LOCK_RETRY)
            if self._ledger.alive:
                with suppress(DatabaseError):
                    if self._spool.unlocked:
                        await self._spool.replay(self._database, self._worker.id)
                    await self._spool.replay_locked(self._database, self._worker.id)
            if not self._spool:
                await self._spool.empty()
                self._waiting.unpark_all()

    async def _refresh_cache(self) -> None:
        """Read the rows of the cached tokens regularly, so that a token that was revoked elsewhere is removed."""
        while True:
            await trio.sleep(self._refresh_interval)
            digests = self._cache.remove_stale(trio.current_time())
            if self._since is not None or not self._ledger.alive:
                continue
            with suppress(DatabaseError):
                for start in range(0, len(digests), REFRESH_CHUNK):
                    chunk = digests[start : start + REFRESH_CHUNK]
                    found, limits = await self._database.read(_look_up, chunk)
                    now = datetime.now(UTC)
                    for digest in chunk:
                        self._cache.refresh(digest, found.get(digest), limits.get(digest, ()), now)


def _look_up(
    connection: Connection, digests: Sequence[bytes]
) -> tuple[dict[bytes, tuple[Token, Account]], dict[bytes, list[Limit]]]:
    """The tokens that have these digests, each with its project, and the limits of each."""
    found = queries.look_up(connection, digests)
    subjects = {
        digest: {token.id, account.project.id, ""}
        for digest, (token, account) in found.items()
        if token.limited or account.limited
    }
    if not subjects:
        return found, {}
    limits, _ = limit_queries.of_subjects(connection, set().union(*subjects.values()))
    return found, {digest: [one for one in limits if one.subject in whose] for digest, whose in subjects.items()}
