"""Whether the connections that a server may open fit into what its database takes.

A worker keeps a pool of its own, so a server opens up to `WORKERS` times `DATABASE_POOL_SIZE` connections, and several
servers on one database that many each.
"""

from __future__ import annotations

from contextlib import suppress

from db.database import Database, ServerFacts
from db.errors import DatabaseError
from llm_proxy.config import Settings


def wanted_connections(settings: Settings) -> int:
    """What one server may open, all its workers together."""
    return settings.workers * settings.database_pool_size


def too_many(facts: ServerFacts, wanted: int) -> str | None:
    """A complaint where the database would not take them all even if it had no other client."""
    if facts.allowed_connections is None or wanted <= facts.allowed_connections:
        return None
    return (
        f"one server alone may open {wanted} connections, more than the {facts.allowed_connections} that the database "
        "takes from this user; lower DATABASE_POOL_SIZE or WORKERS"
    )


def complaint(database: Database, settings: Settings) -> str | None:
    """What does not fit, before anything else of this server is connected. Blocks; never fails."""
    if settings.db_driver == "sqlite":
        return None
    with suppress(DatabaseError):  # whoever needs the database next will say it
        facts = database.read_now(database.describe)
        wanted = wanted_connections(settings)
        return too_many(facts, wanted) or crowded(facts, wanted)
    return None


def crowded(facts: ServerFacts, wanted: int) -> str | None:
    """A complaint where it does not take them all beside those that others have at this moment."""
    if facts.allowed_connections is None or facts.open_connections is None:
        return None
    left = max(0, facts.allowed_connections - facts.open_connections)
    if wanted <= left:
        return None
    return (
        f"this server may open {wanted} connections, but the database has only {left} left at this moment: others have "
        f"{facts.open_connections}; lower DATABASE_POOL_SIZE, or raise the database's limit"
    )
