"""The outage mode, `DB_OUTAGE_POLICY=grace`: requests are served for a while when the database is unavailable.

No other part of the program remembers tokens. The rest of the program sees only what is defined here.

- `mode`: decides instead of the ledger while the database is unavailable
- `token_cache`: the tokens that the database has accepted lately
- `spool`: the requests that the database does not have yet, in memory and in a file
- `replay`: writes them to the database
"""

from __future__ import annotations

from pathlib import Path

from db.database import Database
from db.errors import DatabaseError
from db.records import Worker
from db.spool import SpoolFile
from llm_proxy.config import Settings, SettingsError
from llm_proxy.ledger.outage.mode import OutageMode
from llm_proxy.ledger.outage.replay import OrphanReplay, spool_path
from llm_proxy.ledger.outage.token_cache import OutageLimits
from llm_proxy.ledger.writer import Ledger
from llm_proxy.logging import log

__all__ = ["OutageMode", "open_outage_mode", "replay_orphans"]

_log = log.logger("ledger")


def open_outage_mode(settings: Settings, ledger: Ledger, database: Database, worker: Worker) -> OutageMode | None:
    """Open the outage mode if `DB_OUTAGE_POLICY` is `grace`. Blocks. Raises SettingsError if there can be no spool."""
    if settings.db_outage_policy != "grace":
        return None
    try:
        file = SpoolFile.open(spool_path(_folder(settings), worker.id))
    except DatabaseError as error:
        message = f"{error}; set DB_OUTAGE_SPOOL to a folder on a local disk that this user can write to"
        raise SettingsError([f"DB_OUTAGE_POLICY=grace: {message}"]) from None
    limits = OutageLimits(
        settings.db_outage_grace_window, settings.db_outage_grace_requests, settings.db_outage_grace_duration
    )
    return OutageMode(ledger, database, worker, file, limits, refresh=settings.ledger_heartbeat)


async def replay_orphans(settings: Settings, database: Database, worker: Worker) -> None:
    """Replay what a server with the outage mode may have left in the folder, for one that runs without it."""
    try:
        await OrphanReplay(_folder(settings), database, worker.id).run()
    except DatabaseError as error:
        _log.error("a spool was left for the next start", reason=str(error))


def _folder(settings: Settings) -> Path:
    if settings.db_outage_spool is not None:
        return settings.db_outage_spool
    in_memory = str(settings.database_path) == ":memory:"
    return Path("data") if in_memory else settings.database_path.parent
