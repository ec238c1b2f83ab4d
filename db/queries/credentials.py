"""Credentials: keys of providers, each used by any number of projects."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import TypedDict

from attrs import asdict, evolve, frozen
from sqlalchemy import Connection, and_, bindparam, delete, func, insert, select, update

from db.queries.rows import columns
from db.records import Credential, Project
from db.schema import credentials, project_credentials, projects


class CredentialValues(TypedDict, total=False):
    """What an update sets; what is not in it stays as it is. `api_key` is the sealed form."""

    name: str
    api_key: str
    api_key_last4: str
    active: bool


@frozen
class DefaultKey:
    """A project, and the credential that it uses at its default provider; None if it has none there.

    `users` is the number of projects that use the credential.
    """

    project: Project
    credential: Credential | None
    users: int


_ALL = select(*columns(credentials, Credential))
_ONE = _ALL.where(credentials.c.id == bindparam("id"))
_ONE_LOCKED = _ONE.with_for_update()
_LINK = and_(
    project_credentials.c.project_id == bindparam("project_id"), project_credentials.c.provider == bindparam("at")
)
_USERS = (
    select(func.count())
    .where(project_credentials.c.credential_id == credentials.c.id)
    .correlate(credentials)
    .scalar_subquery()
)
_DEFAULTS = (
    select(*columns(projects, Project), *columns(credentials, Credential), _USERS)
    .select_from(projects)
    .outerjoin(
        project_credentials,
        and_(project_credentials.c.project_id == projects.c.id, project_credentials.c.provider == projects.c.provider),
    )
    .outerjoin(credentials, credentials.c.id == project_credentials.c.credential_id)
    .order_by(projects.c.id)
)


def create(connection: Connection, credential: Credential) -> None:
    """Write a new credential.

    Raises:
        db.errors.Duplicate: there is a credential of this name.
    """
    connection.execute(insert(credentials), asdict(credential))


def get(connection: Connection, credential_id: str) -> Credential | None:
    row = connection.execute(_ONE, {"id": credential_id}).one_or_none()
    return None if row is None else Credential(*row)


def get_locked(connection: Connection, credential_id: str) -> Credential | None:
    """Read one credential and keep others from changing it until the transaction ends."""
    row = connection.execute(_ONE_LOCKED, {"id": credential_id}).one_or_none()
    return None if row is None else Credential(*row)


def names(connection: Connection, wanted: Collection[str]) -> set[str]:
    """Those of these names that credentials have."""
    return set(connection.scalars(select(credentials.c.name).where(credentials.c.name.in_(wanted))))


def change(connection: Connection, credential: Credential, changes: CredentialValues, now: datetime) -> Credential:
    """Change a credential that was read with `get_locked` in this transaction, and give it as it is now.

    Raises:
        db.errors.Duplicate: another credential has the new name.
    """
    if not changes:
        return credential
    connection.execute(update(credentials).where(credentials.c.id == credential.id).values(**changes, updated_at=now))
    return evolve(credential, **changes, updated_at=now)


def use(connection: Connection, project_id: str, provider: str, credential_id: str) -> None:
    """Let a project use this credential at the provider, instead of the one that it has used there."""
    connection.execute(delete(project_credentials).where(_LINK), {"project_id": project_id, "at": provider})
    values = {"project_id": project_id, "provider": provider, "credential_id": credential_id}
    connection.execute(insert(project_credentials), values)


def default_keys(connection: Connection, after_id: str, limit: int) -> list[DefaultKey]:
    """Projects in the order of ids, after `after_id`, each with the credential of its default provider."""
    width = len(columns(projects, Project))
    rows = connection.execute(_DEFAULTS.where(projects.c.id > after_id).limit(limit))
    return [
        DefaultKey(Project(*row[:width]), None if row[width] is None else Credential(*row[width:-1]), row[-1] or 0)
        for row in rows
    ]
