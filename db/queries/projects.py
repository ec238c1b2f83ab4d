"""Projects: they are created, read, listed and changed, never deleted, because the ledger refers to them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TypedDict

from attrs import evolve
from sqlalchemy import Connection, case, update

from db.queries.rows import Rows
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
    allow_request_labels: bool
    stream_usage: str | None
    models: dict[str, list[str]] | None


#: Rows that one statement changes.
_PIECE = 500

_rows = Rows(projects, Project, projects.c.api_key_last4)
create, get, find, page = _rows.create, _rows.get, _rows.find, _rows.page
get_locked, lock = _rows.get_locked, _rows.lock


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
