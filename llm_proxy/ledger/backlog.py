"""Requests of which the books lack something: in memory until that is written, and on the disk in case of a crash."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import trio
from attrs import define, field

from db.records import Result
from llm_proxy.ledger.outage.reconciliation import CHUNK, Spooled, reconcile
from llm_proxy.ledger.outage.spool import Spool
from llm_proxy.ledger.outage.spool_file import SpoolError
from llm_proxy.ledger.outage.spool_lines import Admitted, Settled, encode
from llm_proxy.ledger.outage.token_cache import Acquaintance
from llm_proxy.ledger.transaction import Grant, Settlement
from llm_proxy.logging import log

if TYPE_CHECKING:
    from db.database import Database

#: Seconds that a request waits for the disk before it is told that it cannot go on.
DISK_DEADLINE = 1.5

_log = log.logger("ledger")


@define(eq=False)
class _Request:
    """One of them.

    Attributes:
        grant: its admission.
        acquaintance: what it was admitted on; None where the ledger has admitted it.
        durable: the admission is on a disk.
        settlement: its end, None before that.
    """

    grant: Grant
    acquaintance: Acquaintance | None = None
    durable: bool = False
    settlement: Settlement | None = None

    def spooled(self) -> Spooled:
        return Spooled(self.grant.reservation, self.grant.digest, self.settlement)


@define(eq=False)
class Backlog:
    """All of them, in the order of their admission.

    Attributes:
        spool: where they are written.
        brought: how many got into the books so far.
    """

    spool: Spool
    brought: int = field(default=0, init=False)
    _requests: dict[str, _Request] = field(factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        """How many requests wait for the books."""
        return len(self._requests)

    async def admit(self, grant: Grant, acquaintance: Acquaintance) -> None:
        """Take in a request that the ledger knows nothing of, and wait until it is on the disk.

        Where this does not return, the request is given back: it was never sent.

        Raises:
            SpoolError: it cannot be written, or not in time.
        """
        key = grant.reservation.id
        request = self._requests[key] = _Request(grant, acquaintance)
        self.spool.append(encode(Admitted(grant.reservation, grant.digest)))
        try:
            with trio.fail_after(DISK_DEADLINE):
                await self.spool.written()
        except SpoolError:
            del self._requests[key]
            acquaintance.used -= 1
            raise
        except (trio.TooSlowError, trio.Cancelled) as reason:
            # It may be on the disk, or may yet get there.
            self.end(grant, Result(outcome="void"))
            if isinstance(reason, trio.TooSlowError):
                raise SpoolError(f"{self.spool} was not written in time") from None
            raise
        request.durable = True

    def end(self, grant: Grant, result: Result, *, known_to_books: bool = False) -> bool:
        """Note how a request ended; False where nothing of it is here.

        Args:
            grant: its admission.
            result: its end.
            known_to_books: take it in all the same: its admission is in the books.
        """
        request = self._requests.get(grant.reservation.id)
        if request is None:
            if not known_to_books:
                return False
            request = self._requests[grant.reservation.id] = _Request(grant, durable=True)
        request.settlement = Settlement.of(grant, result)
        if result.outcome == "void" and request.acquaintance is not None:
            request.acquaintance.used -= 1
        self.spool.append(encode(Settled(request.settlement.row, grant.digest)))
        return True

    async def bring(self, database: Database, worker_id: str, nearly_done: Callable[[], None]) -> None:
        """Bring all of them into the books.

        What has not ended yet is the ledger's from then on.

        Args:
            database: where the books are.
            worker_id: of this worker.
            nearly_done: called when one transaction can hold the rest.

        Raises:
            DatabaseError: the database is away again. What it took is written.
        """
        while self._requests:
            if len(self._requests) <= CHUNK:
                nearly_done()
            due = [one for one in self._requests.values() if one.durable or one.settlement is not None][:CHUNK]
            if not due:
                # They wait for the disk, and for nothing else.
                with suppress(SpoolError), trio.move_on_after(DISK_DEADLINE):
                    await self.spool.written()
                continue
            brought = [one.spooled() for one in due]
            await reconcile(database, brought, worker_id)
            for one, written in zip(due, brought, strict=True):
                # Else it has ended meanwhile, and that is yet to be written.
                if one.settlement is written.settlement:
                    del self._requests[written.reservation.id]
                    self.brought += 1

    async def empty_spool(self) -> None:
        """Take from the disk what the books have. Where that fails, nothing is spooled until it does not."""
        try:
            with trio.fail_after(DISK_DEADLINE):
                await self.spool.empty()
        except SpoolError as error:
            self.spool.failure = error
        except trio.TooSlowError:
            self.spool.failure = SpoolError(f"{self.spool} was not written in time")
        if self.spool.failure is not None:
            # Should anybody bring it again, its requests are found in the books by their ids.
            _log.error("the spool cannot be emptied", reason=str(self.spool.failure))
