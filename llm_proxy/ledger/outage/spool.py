"""The worker's spool: requests that the database does not have yet, in memory and in a file on the worker's disk.

What the worker replays is in memory; the file is for the case that the worker dies. A request is in the file before a
byte of it goes upstream. Requests that wait at the same time share one transaction of the file, and so one fsync (group
commit). A record in the file is a `Settlement`; its outcome is `unknown` as long as the request is running. It has the
SHA-256 digest of the token, and no secret, header or body.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import msgspec
import trio
from attrs import define, field

from db.database import Database
from db.errors import CommitUnknown, DatabaseError, Locked, Unavailable
from db.records import UNKNOWN, VOID, Result
from db.spool import SpoolFile
from llm_proxy.ledger.late import ObjectUsage
from llm_proxy.ledger.outage.replay import CHUNK, replay
from llm_proxy.ledger.outage.token_cache import CachedToken
from llm_proxy.ledger.transaction import Grant, Objects, Settlement
from llm_proxy.logging import log

#: Seconds that a request waits for the disk before it is refused.
DISK_DEADLINE = 1.5

_log = log.logger("ledger")


@define(eq=False)
class _Request:
    """A spooled request; `cached` is the token that it was admitted by, None if the ledger admitted it."""

    settlement: Settlement
    cached: CachedToken | None = None
    durable: bool = False

    @property
    def replayable(self) -> bool:
        return self.durable or self.settlement.row.result is not UNKNOWN


@define(eq=False)
class _Group:
    """Records that are written together. `failure` says why they were not."""

    records: list[bytes] = field(factory=list)
    from_empty: bool = False
    done: trio.Event = field(factory=trio.Event)
    failure: DatabaseError | None = None


class Spool:
    """The requests, in the order of their admission. `run` writes them to the file, which is open and empty at first.

    Its length is the number of requests that the database does not have, or not completely.
    """

    def __init__(self, file: SpoolFile) -> None:
        self.file = file
        #: Why a write failed. Nothing is written after it until the file is emptied.
        self.failure: str | None = None
        #: Digests of tokens whose requests wait for the locks of other transactions.
        self.locked: set[bytes] = set()
        #: Requests that were written to the database so far.
        self.replayed = 0
        self._requests: dict[str, _Request] = {}
        self._next = _Group()
        self._wake = trio.Event()
        self._thread = trio.CapacityLimiter(1)

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def unlocked(self) -> int:
        """Number of requests that wait for no lock."""
        return sum(one.settlement.digest not in self.locked for one in self._requests.values())

    async def admit(self, grant: Grant, cached: CachedToken) -> None:
        """Add a request that the ledger does not know, and wait until it is on the disk.

        Raises DatabaseError if it is not in time. Then the request must not be sent, and nothing more is to be done.
        """
        request = _Request(Settlement.of(grant, UNKNOWN), cached)
        self._requests[grant.reservation.id] = request
        cached.used += 1
        self._append(request.settlement)
        try:
            await self.flush()
        except (CommitUnknown, trio.Cancelled):
            # It may be on the disk, or may be written later.
            self.end(grant, VOID)
            raise
        except DatabaseError:
            del self._requests[grant.reservation.id]
            cached.used -= 1
            raise
        request.durable = True

    def end(
        self,
        grant: Grant,
        result: Result,
        objects: Objects = (),
        usage: ObjectUsage | None = None,
        *,
        in_database: bool = False,
    ) -> bool:
        """Record how a request ended; False if the spool does not have it.

        With `in_database`, one that the ledger admitted is added.
        """
        key = grant.reservation.id
        if key not in self._requests and not in_database:
            return False
        settlement = Settlement.of(grant, result, objects, usage)
        request = self._requests.setdefault(key, _Request(settlement))
        request.settlement = settlement
        if result.outcome == "void" and request.cached is not None:
            request.cached.used -= 1
        self._append(settlement)
        return True

    async def replay(self, database: Database, worker_id: str) -> None:
        """Write the oldest requests to the database. Those that have not ended are the ledger's from then on.

        If a lock holds some of them up, those of their tokens are left for `replay_locked`. Raises DatabaseError if the
        database is unavailable again. What it took is written.
        """
        unlocked = (one for one in self._requests.values() if one.settlement.digest not in self.locked)
        due = [one for one in unlocked if one.replayable][:CHUNK]
        if not due:
            # All of them are waiting for the disk.
            with suppress(DatabaseError):
                await self.flush()
            return
        try:
            await self._write(due, database, worker_id)
        except Locked:
            for digest in {one.settlement.digest for one in due}:
                await self._write_token(digest, database, worker_id)

    async def replay_locked(self, database: Database, worker_id: str) -> None:
        """Try again to write what locks have held up. Raises DatabaseError."""
        for digest in list(self.locked):
            await self._write_token(digest, database, worker_id)

    async def _write_token(self, digest: bytes, database: Database, worker_id: str) -> None:
        requests = [one for one in self._requests.values() if one.settlement.digest == digest]
        try:
            await self._write([one for one in requests if one.replayable][:CHUNK], database, worker_id)
        except Locked:
            self.locked.add(digest)
        if not any(one.settlement.digest == digest for one in self._requests.values()):
            self.locked.discard(digest)

    async def _write(self, due: Sequence[_Request], database: Database, worker_id: str) -> None:
        settlements = [request.settlement for request in due]
        if settlements:
            await replay(database, settlements, worker_id)
        for request, settlement in zip(due, settlements, strict=True):
            # Otherwise it has ended meanwhile, and its settlement must still be written.
            if request.settlement is settlement:
                del self._requests[settlement.row.id]
                self.replayed += 1

    async def empty(self) -> None:
        """Delete the records of the file that the database has, and write again after a failure.

        If that fails, the failure is logged.
        """
        self.failure = None
        self._next.records[:] = [msgspec.json.encode(one.settlement) for one in self._requests.values()]
        self._next.from_empty = True
        try:
            await self.flush()
        except DatabaseError as error:
            # If another worker replays the file, the database finds the requests by their ids.
            self.failure = str(error)
            _log.error("the spool cannot be emptied", reason=self.failure)

    async def flush(self) -> None:
        """Wait until all records are on the disk, for `DISK_DEADLINE` seconds.

        Raises:
            CommitUnknown: they may be there, or may be written later.
            DatabaseError: those that nobody has waited for before are not there.
        """
        if self.failure is not None:
            # Callers try again in loops: other tasks must run meanwhile.
            await trio.lowlevel.checkpoint()
            raise Unavailable(self.failure)
        group = self._next
        self._wake.set()
        with trio.move_on_after(DISK_DEADLINE) as deadline:
            await group.done.wait()
        if deadline.cancelled_caught:
            raise CommitUnknown(f"{self.file.path} was not written in time")
        if group.failure is not None:
            raise group.failure

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            group, self._next = self._next, _Group()
            if self.failure is not None and not group.from_empty:
                group.failure = Unavailable(self.failure)
            else:
                write = partial(self.file.append, group.records, from_empty=group.from_empty)
                try:
                    await trio.to_thread.run_sync(write, limiter=self._thread)
                except DatabaseError as error:
                    group.failure, self.failure = error, str(error)
            group.done.set()

    def _append(self, settlement: Settlement) -> None:
        if self.failure is None:
            self._next.records.append(msgspec.json.encode(settlement))
            self._wake.set()
