"""Writes spooled requests to the ledger: each once, however often, and by whichever worker, it is replayed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import msgspec
import trio
from attrs import define, field

from db import Connection
from db.database import Database
from db.errors import REFUSALS, DatabaseError, FileInUse
from db.queries import ledger as queries
from db.records import UNKNOWN, SettledRequest
from db.spool import SpoolFile
from llm_proxy.ledger.label_values import LabelValues
from llm_proxy.ledger.limits import Limits
from llm_proxy.ledger.transaction import Settlement, transact
from llm_proxy.logging import log

#: Maximum number of requests in one transaction.
CHUNK = 500

_decoder = msgspec.json.Decoder(Settlement)
_log = log.logger("ledger")


def write_spooled(connection: Connection, spooled: Sequence[Settlement], worker_id: str, now: datetime) -> None:
    """Reserve and count the requests that the database does not have, and settle those that have ended.

    The others stay open: their worker settles them, or the sweep as `unknown` after the worker has stopped.
    """
    label_values = LabelValues()
    # Its locks come before those of tokens everywhere.
    rows = label_values.bound(connection, [settlement.row for settlement in spooled])
    limits = Limits.of_rows(connection, rows)
    missing = queries.reserve_late(connection, [limits.assign(row) for row in rows])
    ended = [settlement for settlement in spooled if settlement.row.result.outcome != "unknown"]
    transact(connection, worker_id, (), ended, now, doubtful=True, unjudged=missing, label_values=label_values)


async def replay(database: Database, spooled: Sequence[Settlement], worker_id: str) -> None:
    """Write requests in one transaction, or in several if the database refuses one of them.

    What it refuses even alone is written to the log, and delays no other request. Raises DatabaseError if the database
    is unavailable: what is written may be replayed again.
    """
    try:
        await database.write_unless_locked(write_spooled, spooled, worker_id, datetime.now(UTC))
    except REFUSALS as error:
        if len(spooled) > 1:
            middle = len(spooled) // 2
            for half in (spooled[:middle], spooled[middle:]):
                await replay(database, half, worker_id)
            return
        row = spooled[0].row
        if row.result.outcome == "unknown":
            _log.error("a spooled request was refused", reservation=row.by_column(), exc_info=error)
            return
        _log.error("a spooled settlement was refused and is lost", settlement=row.by_column(), exc_info=error)
        # The reservation stays, and is settled as `unknown` when its worker has stopped.
        running = SettledRequest(row.reservation, UNKNOWN, row.settled_at)
        await replay(database, [Settlement(running, spooled[0].digest)], worker_id)


def decode(records: Sequence[bytes]) -> tuple[list[Settlement], bool]:
    """Decode a spool's records: one for each request, oldest first; True if one of them is damaged."""
    found: dict[str, Settlement] = {}
    damaged = False
    for record in records:
        try:
            settlement = _decoder.decode(record)
        except msgspec.DecodeError:
            damaged = True
        else:
            # How a request ended was recorded after its admission.
            found[settlement.row.id] = settlement
    return [found[key] for key in sorted(found)], damaged


@define(eq=False)
class OrphanReplay:
    """Replays the spools that workers have left in a folder, which need not exist."""

    folder: Path
    database: Database
    worker_id: str
    _foreign: set[str] = field(factory=set, init=False)

    async def run(self) -> None:
        """Replay and delete each spool whose worker has stopped. One that cannot be read is left for the next time.

        Raises DatabaseError if the database is unavailable.
        """
        orphans = _read_orphans(self.folder, spool_path(self.folder, self.worker_id))
        # One after the other, so that each is locked only as long as necessary.
        while (found := await trio.to_thread.run_sync(next, orphans, None)) is not None:
            orphan, spooled, damaged = found
            path = str(orphan.path)
            try:
                if not await self._has_tokens(spooled):
                    if path not in self._foreign:
                        self._foreign.add(path)
                        _log.warning("a spool belongs to another database and was left alone", spool=path)
                    continue
                for start in range(0, len(spooled), CHUNK):
                    await replay(self.database, spooled[start : start + CHUNK], self.worker_id)
                await trio.to_thread.run_sync(partial(orphan.remove, damaged=damaged))
            except OSError as error:
                _log.error("a spool was replayed and cannot be removed", spool=path, reason=error.strerror)
            finally:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(orphan.close)
            if damaged:
                _log.error("a spool is damaged: records may be lost, the file was renamed to ….damaged", spool=path)
            if spooled:
                open_ = sum(settlement.row.result.outcome == "unknown" for settlement in spooled)
                message = "the spool of a stopped worker was replayed"
                _log.warning(message, spool=path, requests=len(spooled), unsettled=open_)

    async def _has_tokens(self, spooled: Sequence[Settlement]) -> bool:
        """Whether the database has all the tokens. Tokens are never deleted, and databases may share a folder."""
        ids = sorted({settlement.row.reservation.token_id for settlement in spooled})
        for start in range(0, len(ids), CHUNK):
            if not await self.database.read(queries.are_tokens, ids[start : start + CHUNK]):
                return False
        return True


def spool_path(folder: Path, worker_id: str) -> Path:
    return folder / f"outage-{worker_id}.spool.db"


def _read_orphans(folder: Path, own: Path) -> Iterator[tuple[SpoolFile, list[Settlement], bool]]:
    """Open and read the spools of stopped workers, one after the other; True if records are damaged."""
    for path in sorted(folder.glob("outage-*.spool.db")):
        if path == own:
            continue
        try:
            orphan = SpoolFile.open(path)
        except (FileInUse, FileNotFoundError):
            continue
        except (DatabaseError, OSError) as error:
            _log.error("a spool cannot be opened", spool=str(path), reason=str(error))
            continue
        try:
            records, incomplete = orphan.read()
        except (DatabaseError, OSError) as error:
            _log.error("a spool cannot be read", spool=str(path), reason=str(error))
            orphan.close()
        else:
            spooled, damaged = decode(records)
            yield orphan, spooled, damaged or incomplete
