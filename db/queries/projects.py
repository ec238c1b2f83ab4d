"""Projects: they are created, read, listed and changed, never deleted, because the ledger refers to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, TypedDict

from attrs import asdict, evolve
from sqlalchemy import Connection, Row, bindparam, case, insert, select, update

from db.dialects.statements import for_update
from db.queries.rows import Named, Position, columns, find_named, older_than
from db.records import Project
from db.schema import projects


class ProjectValues(TypedDict, total=False):
    """What an update sets; what is not in it stays as it is. `api_key` is the sealed form."""

    name: str
    provider: str
    api_key: str
    api_key_last4: str
    active: bool
    allow_unknown_objects: bool


_ALL = select(*columns(projects, Project))
_ONE = _ALL.where(projects.c.id == bindparam("id"))
_ONE_LOCKED = _ONE.with_for_update()
_LOCKED = for_update(
    _ALL.where(projects.c.id.in_(bindparam("ids", expanding=True))).order_by(projects.c.id), by=projects.c.id
)
_NEWEST_FIRST = _ALL.order_by(projects.c.created_at.desc(), projects.c.id.desc())
_CREATE = insert(projects)
#: Rows that one statement changes.
_PIECE = 500


def create(connection: Connection, project: Project) -> None:
    """Write a new project.

    Raises:
        db.errors.Duplicate: there is a project of this name.
    """
    connection.execute(_CREATE, asdict(project))


def get(connection: Connection, project_id: str) -> Project | None:
    return _record(connection.execute(_ONE, {"id": project_id}).one_or_none())


def find(connection: Connection, name: str) -> list[Named]:
    """The projects of this name, else those with these last four characters."""
    return find_named(connection, projects, projects.c.api_key_last4, name)


def get_locked(connection: Connection, project_id: str) -> Project | None:
    """Read one project and keep others from changing it until the transaction ends."""
    return _record(connection.execute(_ONE_LOCKED, {"id": project_id}).one_or_none())


def lock(connection: Connection, ids: Iterable[str]) -> list[Project]:
    """Read projects, and keep others from changing them until the transaction ends, in the order of their ids."""
    wanted = sorted(set(ids))
    return [Project(*row) for row in connection.execute(_LOCKED, {"ids": wanted})] if wanted else []


def page(connection: Connection, limit: int, after: Position | None) -> list[Project]:
    """List projects, the newest first.

    Args:
        connection: a transaction.
        limit: most rows.
        after: where the page before ended.
    """
    query = _NEWEST_FIRST.limit(limit)
    if after is not None:
        query = query.where(older_than(projects, after))
    return [Project(*row) for row in connection.execute(query)]


def change(connection: Connection, project: Project, changes: ProjectValues, now: datetime) -> Project:
    """Change a project that was read with `get_locked` in this transaction, and give it as it is now.

    Raises:
        db.errors.Duplicate: another project has the new name.
    """
    if not changes:
        return project
    connection.execute(update(projects).where(projects.c.id == project.id).values(**changes, updated_at=now))
    return evolve(project, **changes, updated_at=now)


def set_keys(connection: Connection, changed: Sequence[Project], now: datetime) -> None:
    """Write the API key that projects, locked in this transaction, share; each has it in a sealed form of its own."""
    for start in range(0, len(changed), _PIECE):
        sealed = {one.id: one.api_key for one in changed[start : start + _PIECE]}
        values = {"api_key": case(sealed, value=projects.c.id), "api_key_last4": changed[0].api_key_last4}
        connection.execute(update(projects).where(projects.c.id.in_(sealed)).values(**values, updated_at=now))


def _record(row: Row[*tuple[Any, ...]] | None) -> Project | None:
    return None if row is None else Project(*row)
