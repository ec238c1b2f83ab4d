"""How commands come to the database itself: to look at it beside a running server, or to change it without one."""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import timedelta

from attrs import evolve

from db import dsn
from db.database import Database, opened
from db.options import Options
from db.queries import ledger
from llm_proxy.cli.failures import Failure
from llm_proxy.config import Settings
from llm_proxy.ledger.writer import MISSED_HEARTBEATS
from llm_proxy.services import database_options, database_target

#: Seconds that a statement over the whole ledger may take: nobody's request waits for it.
_PATIENCE = 3600.0


def look_at(settings: Settings, *, patiently: bool = False) -> AbstractContextManager[Database]:
    """Open the configured database for reading; a server may be using it.

    Args:
        settings: where it is.
        patiently: give statements an hour, instead of the time that the ones of a server get.

    Raises:
        Failure: there is no such SQLite file; it is not made.
        db.errors.DatabaseError: it cannot be opened.
    """
    target = database_target(settings)
    if target.path is not None and not target.path.exists():
        raise Failure(f"there is no SQLite file {target.path}; 'llm-proxy migrate up' makes it")
    return opened(target, _options(settings, patiently=patiently), exclusive=False)


def look_at_or_imagine(settings: Settings) -> AbstractContextManager[Database]:
    """Open the configured database for reading; where there is no SQLite file yet, an empty one in memory."""
    target = database_target(settings)
    if target.path is not None and not target.path.exists():
        target = dsn.parse("sqlite", None, ":memory:")
    return opened(target, database_options(settings), exclusive=False)


def change(settings: Settings, *, patiently: bool = False) -> AbstractContextManager[Database]:
    """Open the configured database for writing, `patiently` as for `look_at`.

    A SQLite file is made where there is none, and locked.

    Raises:
        db.errors.FileInUse: a server has the SQLite file.
        db.errors.DatabaseError: it cannot be opened.
    """
    return opened(database_target(settings), _options(settings, patiently=patiently))


def check_idle(database: Database, settings: Settings) -> None:
    """Make sure that no server works on the database. Raises `Failure` if one does, or did a moment ago."""
    dead_after = timedelta(seconds=MISSED_HEARTBEATS * settings.ledger_heartbeat)
    live = database.read_now(ledger.live_workers, dead_after)
    if live:
        names = ", ".join(f"{worker.hostname} (pid {worker.pid})" for worker in live)
        raise Failure(
            f"{database.target} is in use by {names}; stop the servers first (one that was killed counts as live for "
            f"{dead_after.total_seconds():g} s), or go on beside them with --allow-live"
        )


def patient_options(settings: Settings) -> Options:
    """How to connect for work that nobody's request waits for: statements get an hour."""
    options = database_options(settings)
    return evolve(options, statement_timeout=max(_PATIENCE, options.statement_timeout))


def _options(settings: Settings, *, patiently: bool) -> Options:
    return patient_options(settings) if patiently else database_options(settings)
