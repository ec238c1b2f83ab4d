"""The audit log: rows are added, listed and pruned, and never changed."""

from __future__ import annotations

from datetime import datetime

from attrs import frozen
from msgspec.structs import asdict
from sqlalchemy import Connection, insert, select

from db.queries import rows
from db.records import AuditEntry
from db.schema import audit


@frozen
class Filter:
    """Which entries are meant; None leaves a field open. `since` is included, `until` is not."""

    resource_id: str | None = None
    resource: str | None = None
    operation: str | None = None
    outcome: str | None = None
    actor: str | None = None
    since: datetime | None = None
    until: datetime | None = None


_CREATE = insert(audit)
_NEWEST_FIRST = select(*rows.columns(audit, AuditEntry)).order_by(audit.c.id.desc())


def create(connection: Connection, entry: AuditEntry) -> None:
    """Write a new entry.

    Raises:
        db.errors.Duplicate: there is an entry of this id.
    """
    connection.execute(_CREATE, asdict(entry))


def page(connection: Connection, limit: int, after_id: str | None, wanted: Filter) -> list[AuditEntry]:
    """List entries, the newest first.

    Args:
        connection: a transaction.
        limit: maximum number of rows.
        after_id: id of the last row of the page before.
        wanted: which ones.
    """
    query = _NEWEST_FIRST.limit(limit)
    if after_id is not None:
        query = query.where(audit.c.id < after_id)
    for name in ("resource_id", "resource", "operation", "outcome", "actor"):
        value = getattr(wanted, name)
        if value is not None:
            query = query.where(audit.c[name] == value)
    if wanted.since is not None:
        query = query.where(audit.c.occurred_at >= wanted.since)
    if wanted.until is not None:
        query = query.where(audit.c.occurred_at < wanted.until)
    return [AuditEntry(*row) for row in connection.execute(query)]


def prune(connection: Connection, before: datetime, limit: int) -> int:
    """Delete the oldest entries from before a time, at most `limit`; say how many they were."""
    return rows.prune(connection, audit.c.occurred_at, before, limit)
