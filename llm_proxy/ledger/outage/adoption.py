"""Spools that dead workers have left: read, brought into the books, and taken away, by whoever finds them first."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from attrs import define, field

from db.queries import ledger as books
from llm_proxy.ledger.outage import spool_file
from llm_proxy.ledger.outage.reconciliation import CHUNK, Spooled, reconcile, spooled
from llm_proxy.logging import log

if TYPE_CHECKING:
    from db.database import Database
    from llm_proxy.ledger.outage.spool_file import SpoolFile
    from llm_proxy.ledger.outage.spool_lines import Contents

_log = log.logger("ledger")


@define(eq=False)
class Adopter:
    """Looks for orphaned spools in a folder, for a worker that is alive.

    Attributes:
        folder: where they are; it need not exist.
        database: where their requests belong, as far as it knows their tokens.
        worker_id: of the worker that looks.
    """

    folder: Path
    database: Database
    worker_id: str
    _foreign: set[Path] = field(factory=set, init=False)

    async def look(self) -> int:
        """Bring every orphan into the books; return how many requests were in them.

        What had not ended when its worker died becomes an open reservation of that worker, which the sweep settles as
        `unknown`, as after any crash.

        Raises:
            DatabaseError: the database is away; what is left stays for the next time.
            OSError: a spool cannot be read or taken away.
        """
        adopted = 0
        # One after the other, so that the locks are ours while we need them only.
        orphans = spool_file.orphans(self.folder)
        while (orphan := await trio.to_thread.run_sync(next, orphans, None)) is not None:
            try:
                adopted += await self._adopt(orphan)
            finally:
                orphan.close()
        return adopted

    async def _adopt(self, orphan: SpoolFile) -> int:
        contents = await trio.to_thread.run_sync(orphan.read)
        requests = spooled(contents)
        if not await self._knows(requests):
            if orphan.path not in self._foreign:
                self._foreign.add(orphan.path)
                _log.warning("a spool is of another database, and was left alone", spool=str(orphan.path))
            return 0
        for start in range(0, len(requests), CHUNK):
            await reconcile(self.database, requests[start : start + CHUNK], self.worker_id)
        damaged = any(not damage.torn for damage in contents.damages)
        await trio.to_thread.run_sync(partial(orphan.remove, keep_damaged=damaged))
        _tell(orphan, contents)
        return len(requests)

    async def _knows(self, requests: Sequence[Spooled]) -> bool:
        """Whether the database has all the tokens, which are never deleted: a folder may serve several databases."""
        ids = sorted({request.reservation.token_id for request in requests})
        for start in range(0, len(ids), CHUNK):
            if not await self.database.read(books.are_tokens, ids[start : start + CHUNK]):
                return False
        return True


def _tell(orphan: SpoolFile, contents: Contents) -> None:
    for damage in contents.damages:
        where = {"spool": str(orphan.path), "offset": damage.offset, "bytes": damage.length}
        if damage.torn:
            _log.warning("the last line of a spool was cut off by a crash, and nothing was sent on it", **where)
        else:
            _log.error("a line of a spool is damaged and was left out; the file is kept as .damaged", **where)
    if contents:
        _log.warning(
            "the spool of a worker that died is in the books",
            spool=str(orphan.path),
            requests=len(contents),
            unsettled=len(contents.reservations.keys() - contents.settled.keys()),
        )
