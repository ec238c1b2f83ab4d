"""API keys as they are sealed: those of projects and of credentials, which have the same columns."""

from __future__ import annotations

from typing import Final, Literal

from sqlalchemy import Connection, select, update

from db.schema import metadata

Owners = Literal["projects", "credentials"]
#: The tables whose `api_key` is sealed for the row's `id`.
OWNERS: Final[tuple[Owners, ...]] = ("projects", "credentials")


def page(connection: Connection, owners: Owners, after_id: str, limit: int) -> list[tuple[str, str]]:
    """Ids with the sealed keys, in the order of ids, after `after_id`."""
    table = metadata.tables[owners]
    query = select(table.c.id, table.c.api_key).where(table.c.id > after_id).order_by(table.c.id).limit(limit)
    return [(owner, sealed) for owner, sealed in connection.execute(query)]


def get(connection: Connection, owners: Owners, owner: str) -> str | None:
    """The sealed key of a row, None if there is no such row."""
    table = metadata.tables[owners]
    return connection.execute(select(table.c.api_key).where(table.c.id == owner)).scalar_one_or_none()


def reseal(connection: Connection, owners: Owners, owner: str, old: str, new: str) -> bool:
    """Store the same API key in another sealed form; False if the row's key has changed since it was read."""
    table = metadata.tables[owners]
    changed = connection.execute(update(table).where(table.c.id == owner, table.c.api_key == old).values(api_key=new))
    return changed.rowcount == 1
