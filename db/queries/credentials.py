"""Credentials: created, read, listed and changed, never deleted; which project uses which; and their sealed API keys.

Transactions that change which key a project has lock the credentials first, then the projects, each in the order of
their ids. A project gets a credential only while that credential is locked, so nobody can change its key meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Final, Literal, TypedDict, TypeVar

from attrs import evolve, frozen
from sqlalchemy import Connection, and_, bindparam, delete, func, insert, select, update

from db.errors import Contention
from db.queries import projects
from db.queries.rows import Position, Rows, columns
from db.records import Credential, Project
from db.schema import credentials, metadata, project_credentials
from db.schema import projects as project_table

C = TypeVar("C", bound=Credential)

#: The tables whose `api_key` is sealed for the row's `id`: projects have copies of keys.
Owners = Literal["projects", "credentials"]
OWNERS: Final[tuple[Owners, ...]] = ("projects", "credentials")


class CredentialValues(TypedDict, total=False):
    """What an update sets; what is not in it stays as it is. `api_key` is the sealed form."""

    name: str
    active: bool
    api_key: str
    api_key_last4: str


@frozen
class DefaultKey:
    """A project, and the credential that it uses at its default provider; None if it has none there."""

    project: Project
    credential: Credential | None


_rows = Rows(credentials, Credential, credentials.c.api_key_last4)
create, get, find = _rows.create, _rows.get, _rows.find

_OF_PROJECTS = (
    select(project_credentials.c.project_id, *columns(credentials, Credential))
    .join(credentials, credentials.c.id == project_credentials.c.credential_id)
    .where(project_credentials.c.project_id.in_(bindparam("ids", expanding=True)))
    .order_by(credentials.c.provider)
)
_USERS_BY_DEFAULT = (
    select(project_credentials.c.project_id)
    .join(project_table, project_table.c.id == project_credentials.c.project_id)
    .where(
        project_credentials.c.credential_id == bindparam("id"),
        project_credentials.c.provider == project_table.c.provider,
    )
)
_DEFAULTS = (
    select(*columns(project_table, Project), *columns(credentials, Credential))
    .select_from(project_table)
    .outerjoin(
        project_credentials,
        and_(
            project_credentials.c.project_id == project_table.c.id,
            project_credentials.c.provider == project_table.c.provider,
        ),
    )
    .outerjoin(credentials, credentials.c.id == project_credentials.c.credential_id)
    .order_by(project_table.c.id)
)


def lock(connection: Connection, ids: Iterable[str]) -> dict[str, Credential]:
    """Read credentials and keep others from changing them, or giving them to projects, until the transaction ends."""
    return {one.id: one for one in _rows.lock(connection, ids)}


def page(connection: Connection, limit: int, after: Position | None, provider: str | None) -> list[Credential]:
    """List credentials, or only those for one provider, the newest first; see `Rows.page`."""
    return _rows.page(connection, limit, after, *(() if provider is None else (credentials.c.provider == provider,)))


def active_names(connection: Connection, limit: int) -> list[str]:
    return list(
        connection.scalars(select(credentials.c.name).where(credentials.c.active).order_by("name").limit(limit))
    )


def is_name_taken(connection: Connection, name: str) -> bool:
    return connection.scalar(select(credentials.c.id).where(credentials.c.name == name)) is not None


def change(connection: Connection, credential: C, changes: CredentialValues, now: datetime) -> C:
    """Change a credential that is locked in this transaction, and give it as it is now.

    A new key must also be copied to the projects of `lock_users_by_default`.

    Raises:
        db.errors.Duplicate: another credential has the new name.
    """
    if not changes:
        return credential
    connection.execute(update(credentials).where(credentials.c.id == credential.id).values(**changes, updated_at=now))
    return evolve(credential, **changes, updated_at=now)


def count_users(connection: Connection, ids: Collection[str]) -> dict[str, int]:
    """How many projects use these credentials, by id."""
    used = project_credentials.c.credential_id
    rows = connection.execute(select(used, func.count()).where(used.in_(ids)).group_by(used))
    return dict.fromkeys(ids, 0) | {row[0]: row[1] for row in rows}


def of_projects(connection: Connection, project_ids: Collection[str]) -> dict[str, list[Credential]]:
    """The credentials of projects in the order of their providers, by the project's id."""
    found: dict[str, list[Credential]] = {project_id: [] for project_id in project_ids}
    for project_id, *row in connection.execute(_OF_PROJECTS, {"ids": list(found)}):
        found[project_id].append(Credential(*row))
    return found


def lock_project(
    connection: Connection, project_id: str, further: Iterable[str] = ()
) -> tuple[Project, dict[str, Credential], dict[str, Credential]] | None:
    """Lock a project, the credentials that it uses, and further ones; None if there is no such project.

    Returns:
        The project, its credentials by provider, and all that are locked by id.

    Raises:
        Contention: the project got another credential meanwhile, so the transaction must begin again.
    """
    used = [credential.id for credential in of_projects(connection, [project_id])[project_id]]
    locked = lock(connection, [*used, *further])
    project = projects.get_locked(connection, project_id)
    if project is None:
        return None
    now_used = of_projects(connection, [project_id])[project_id]
    if any(credential.id not in locked for credential in now_used):
        raise Contention("the credentials of the project were changed meanwhile")
    return project, {credential.provider: credential for credential in now_used}, locked


def lock_users_by_default(connection: Connection, credential_id: str) -> list[Project]:
    """Lock the projects for which a locked credential is the one at their default provider."""
    locked = projects.lock(connection, connection.scalars(_USERS_BY_DEFAULT, {"id": credential_id}))
    # Some may have got another credential or default provider before they were locked.
    still = set(connection.scalars(_USERS_BY_DEFAULT, {"id": credential_id}))
    return [project for project in locked if project.id in still]


def assign(connection: Connection, project_id: str, chosen: Iterable[Credential]) -> None:
    """Give a locked project these credentials, one for each provider, in place of those that it has.

    Those that it does not have yet must be locked too.
    """
    connection.execute(delete(project_credentials).where(project_credentials.c.project_id == project_id))
    rows = [{"project_id": project_id, "provider": one.provider, "credential_id": one.id} for one in chosen]
    connection.execute(insert(project_credentials), rows)


def default_keys(connection: Connection, after_id: str, limit: int) -> list[DefaultKey]:
    """Projects in the order of ids, after `after_id`, each with the credential of its default provider."""
    width = len(columns(project_table, Project))
    rows = connection.execute(_DEFAULTS.where(project_table.c.id > after_id).limit(limit))
    return [DefaultKey(Project(*row[:width]), None if row[width] is None else Credential(*row[width:])) for row in rows]


def sealed_keys(connection: Connection, owners: Owners, after_id: str, limit: int) -> list[tuple[str, str]]:
    """Ids with the sealed keys, in the order of ids, after `after_id`."""
    table = metadata.tables[owners]
    query = select(table.c.id, table.c.api_key).where(table.c.id > after_id).order_by(table.c.id).limit(limit)
    return [(owner, sealed) for owner, sealed in connection.execute(query)]


def sealed_key(connection: Connection, owners: Owners, owner: str) -> str | None:
    """The sealed key of a row, None if there is no such row."""
    table = metadata.tables[owners]
    return connection.execute(select(table.c.api_key).where(table.c.id == owner)).scalar_one_or_none()


def reseal(connection: Connection, owners: Owners, owner: str, old: str, new: str) -> bool:
    """Store the same API key in another sealed form; False if the row's key has changed since it was read."""
    table = metadata.tables[owners]
    changed = connection.execute(update(table).where(table.c.id == owner, table.c.api_key == old).values(api_key=new))
    return changed.rowcount == 1
