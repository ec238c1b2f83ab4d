"""Checks of the database before a server uses it.

A worker has a connection pool of its own, so one server opens up to `WORKERS` times `DATABASE_POOL_SIZE` connections.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from db import migrate
from db.database import Database
from db.dialects import ServerFacts
from db.errors import DatabaseError
from llm_proxy.config import Settings
from llm_proxy.logging import log
from llm_proxy.secrets import keys
from llm_proxy.secrets.encryption import KeyRing, KeyRingError

_log = log.logger("services")


def prepare(database: Database, settings: Settings, keyring: KeyRing, warn: Callable[[str], None]) -> None:
    """Migrate the database and check it for one worker. Blocks.

    Raises `KeyRingError` if not one API key can be decrypted, or `db.errors.DatabaseError`.
    """
    newer = migrate.prepare(database, warn)
    if newer is not None:
        warn(newer)
    locked = keys.find_locked(database, keyring)
    if locked is not None:
        if locked.all_of_them:
            raise KeyRingError(f"{locked}: ENCRYPTION_KEY is not the one that this database was used with")
        _log.warning("some projects cannot be served", reason=str(locked), key_ids=keyring.key_ids)
    adopted = keys.adopt(database, keyring)
    if adopted:
        _log.info("credentials took over the keys that servers of the release before had set", credentials=adopted)
    if settings.workers == 1:  # the parent of several workers checks once for all of them
        check_connections(database, settings, warn)


def check_connections(database: Database, settings: Settings, warn: Callable[[str], None]) -> None:
    """Warn if the database has not enough connections for this server, before it opens any. Blocks; never fails."""
    if settings.db_driver == "sqlite":
        return
    with suppress(DatabaseError):  # the next transaction reports it
        facts = database.read_now(database.describe)
        wanted = wanted_connections(settings)
        if (warning := over_limit(facts, wanted) or over_free(facts, wanted)) is not None:
            warn(warning)


def wanted_connections(settings: Settings) -> int:
    """Connections that one server may open."""
    return settings.workers * settings.database_pool_size


def over_limit(facts: ServerFacts, wanted: int) -> str | None:
    """A warning if the database does not allow so many connections, even without other clients."""
    if facts.allowed_connections is None or wanted <= facts.allowed_connections:
        return None
    return (
        f"one server alone may open {wanted} connections, more than the {facts.allowed_connections} that the database "
        "allows this user; lower DATABASE_POOL_SIZE or WORKERS"
    )


def over_free(facts: ServerFacts, wanted: int) -> str | None:
    """A warning if the database does not have so many connections beside those that are in use now."""
    if facts.allowed_connections is None or facts.open_connections is None:
        return None
    free = max(0, facts.allowed_connections - facts.open_connections)
    if wanted <= free:
        return None
    return (
        f"this server may open {wanted} connections, but the database has only {free} free now: others use "
        f"{facts.open_connections}; lower DATABASE_POOL_SIZE, or raise the database's limit"
    )
