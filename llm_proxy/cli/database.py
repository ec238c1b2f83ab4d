"""Opens the database for commands, to read beside a running server or to write without one."""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import timedelta

from attrs import evolve

from db import dsn
from db.database import Database, opened
from db.options import Options
from db.queries import ledger
from llm_proxy.cli.failures import CommandFailed
from llm_proxy.config import Settings
from llm_proxy.config.database import database_options, database_target

#: Seconds that a statement over the whole ledger may take; no request waits for it.
_PATIENT_TIMEOUT = 3600.0


def open_for_reading(
    settings: Settings, *, patiently: bool = False, imagine: bool = False
) -> AbstractContextManager[Database]:
    """Open the configured database; a server may use it at the same time.

    With `imagine`, if the SQLite file does not exist, open an empty database in memory instead of failing.
    """
    target = database_target(settings)
    if target.path is not None and not target.path.exists():
        if not imagine:
            raise CommandFailed(f"there is no SQLite file {target.path}; 'llm-proxy migrate up' makes it")
        target = dsn.parse("sqlite", None, ":memory:")
    return opened(target, patient_options(settings) if patiently else database_options(settings), exclusive=False)


def open_for_writing(settings: Settings, *, patiently: bool = False) -> AbstractContextManager[Database]:
    """Open the configured database. A SQLite file is created if it does not exist, and locked."""
    return opened(database_target(settings), patient_options(settings) if patiently else database_options(settings))


def check_idle(database: Database, settings: Settings) -> None:
    """Raise `CommandFailed` if a server uses the database, or did until a few seconds ago."""
    dead_after = timedelta(seconds=ledger.MISSED_HEARTBEATS * settings.ledger_heartbeat)
    live = database.read_now(ledger.live_workers, dead_after)
    if live:
        names = ", ".join(f"{worker.hostname} (pid {worker.pid})" for worker in live)
        raise CommandFailed(
            f"{database.target} is in use by {names}; stop the servers first (one that was killed counts as live for "
            f"{dead_after.total_seconds():g} s), or continue while they run with --allow-live"
        )


def patient_options(settings: Settings) -> Options:
    """Options of connections whose statements may take an hour."""
    options = database_options(settings)
    return evolve(options, statement_timeout=max(_PATIENT_TIMEOUT, options.statement_timeout))
