"""Objects that providers keep: which project created each, and which projects use the same account."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any, Final
from urllib.parse import unquote

from sqlalchemy import Connection, Select, and_, delete, func, or_, select, union_all, update

from db.dialects.bulk import BulkInsert
from db.dialects.statements import insert_new
from db.queries.rows import Position, columns, names
from db.records import ProviderObject
from db.schema import credentials, in_flight, project_credentials, projects, provider_objects, requests

#: The batch in the path of a request that has shown its output: at OpenAI and Together, and at Mistral.
_BATCH = re.compile(r"/(?:batches|batch/jobs)/([^/?]+)")

#: Kind of objects whose ids clients choose, and can choose again when the object has expired: files at Google.
NAMED: Final = "named_file"

_record = BulkInsert(insert_new(provider_objects), names(ProviderObject))

# Each key that each project uses, and at which provider. Servers of the release before know the key of a project only.
_uses = union_all(
    select(project_credentials.c.project_id, project_credentials.c.provider, credentials.c.api_key_last4).join(
        credentials, credentials.c.id == project_credentials.c.credential_id
    ),
    select(projects.c.id.label("project_id"), projects.c.provider, projects.c.api_key_last4),
)


def record(connection: Connection, objects: Iterable[ProviderObject]) -> None:
    """Write whose these objects are. One that is recorded already stays its first owner's, unless it is `NAMED`."""
    rows = {(one.provider, one.object_id): one for one in objects}
    found = provider_objects.c
    for key in sorted(key for key, one in rows.items() if one.kind == NAMED):
        earlier = (found.provider == key[0], found.object_id == key[1], found.project_id != rows[key].project_id)
        connection.execute(delete(provider_objects).where(*earlier))
    _record(connection, [rows[key] for key in sorted(rows)])


def forget(connection: Connection, objects: Iterable[tuple[str, str, str]]) -> None:
    """Remove objects that were deleted at the provider, each given as provider, id and project.

    One whose usage is not known yet stays, so that it is listed.
    """
    for provider, object_id, project_id in sorted(set(objects)):
        found = provider_objects.c
        connection.execute(
            delete(provider_objects).where(
                *(found.provider == provider, found.object_id == object_id, found.project_id == project_id),
                or_(found.usage_id.is_(None), found.usage_id != ""),
            )
        )


def find_owners(connection: Connection, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """The project of each of these objects, given as provider and id, that is recorded."""
    keys = set(keys)
    if not keys:
        return {}
    found = provider_objects.c
    rows = connection.execute(
        select(found.provider, found.object_id, found.project_id).where(
            found.provider.in_(sorted({provider for provider, _ in keys})),
            found.object_id.in_(sorted({object_id for _, object_id in keys})),
        )
    )
    return {(provider, object_id): project_id for provider, object_id, project_id in rows}


def find_late(connection: Connection, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], ProviderObject]:
    """Those of these objects, given as provider and id, whose usage comes later or has come."""
    keys = set(keys)
    found = provider_objects.c
    rows = connection.execute(
        select(*columns(provider_objects, ProviderObject)).where(
            found.provider.in_(sorted({provider for provider, _ in keys})),
            found.object_id.in_(sorted({object_id for _, object_id in keys})),
            found.usage_id.is_not(None),
        )
    )
    return {(one.provider, one.object_id): one for one in (ProviderObject(*row) for row in rows)}


def find_batch(connection: Connection, provider: str, file_id: str) -> str:
    """The batch whose output is in a file, by the request that has shown the file; empty if it is not known."""
    found = provider_objects.c
    for rows in (requests, in_flight):  # that request may not be settled yet
        path = connection.scalar(
            select(rows.c.path)
            .join(provider_objects, found.request_id == rows.c.id)
            .where(found.provider == provider, found.object_id == file_id, found.kind == "batch_output")
        )
        if (match := _BATCH.search(path or "")) is not None:
            return unquote(match[1])
    return ""


def list_unbooked(
    connection: Connection, limit: int, after: Position | None, project_id: str | None
) -> list[ProviderObject]:
    """Objects whose usage is to come, the oldest first. A request makes one such object at most."""
    query = _unbooked(columns(provider_objects, ProviderObject), after)
    if project_id is not None:
        query = query.where(provider_objects.c.project_id == project_id)
    return [ProviderObject(*row) for row in connection.execute(query.limit(limit))]


def list_awaited(
    connection: Connection, kinds: Collection[str], since: datetime, limit: int, after: Position | None
) -> list[tuple[ProviderObject, str, str | None]]:
    """Objects of these kinds, made since a time, whose usage is to come, the oldest first.

    Each comes with the path of the request that made it and the model that this request named.
    """
    found = provider_objects.c
    query = (
        _unbooked([*columns(provider_objects, ProviderObject), requests.c.path, requests.c.requested_model], after)
        .join(requests, requests.c.id == found.request_id)
        .where(found.kind.in_(sorted(kinds)), found.created_at >= since)
    )
    return [(ProviderObject(*row[:-2]), row[-2], row[-1]) for row in connection.execute(query.limit(limit))]


def find_requested_model(connection: Connection, provider: str, object_id: str) -> str | None:
    """The model that the request named which made an object; None if that is not known."""
    made = provider_objects.c
    return connection.scalar(
        select(requests.c.requested_model)
        .join(provider_objects, made.request_id == requests.c.id)
        .where(made.provider == provider, made.object_id == object_id)
    )


def _unbooked(wanted: Iterable[Any], after: Position | None) -> Select[Any]:
    found = provider_objects.c
    query = select(*wanted).select_from(provider_objects).where(found.usage_id == "")
    if after is not None:
        query = query.where(
            found.created_at >= after.created_at,
            or_(found.created_at > after.created_at, found.request_id > after.id),
        )
    return query.order_by(found.created_at, found.request_id)


def count_unbooked(connection: Connection, since: datetime, until: datetime) -> int:
    """Number of objects, made from one time to another, whose usage is to come."""
    found = provider_objects.c
    query = select(func.count()).where(found.usage_id == "", found.created_at >= since, found.created_at < until)
    return connection.scalar(query) or 0


def find_thread(connection: Connection, run: ProviderObject) -> str | None:
    """The thread that was made by the same request as a run."""
    found = provider_objects.c
    return connection.scalar(
        select(found.object_id).where(
            *(found.project_id == run.project_id, found.provider == run.provider),
            *(found.kind == "thread", found.request_id == run.request_id),
        )
    )


def book(connection: Connection, provider: str, object_id: str, usage_id: str) -> bool:
    """Note which ledger row has the usage of an object; False if that is known already."""
    found = provider_objects.c
    booked = connection.execute(
        update(provider_objects)
        .where(found.provider == provider, found.object_id == object_id, found.usage_id == "")
        .values(usage_id=usage_id)
    )
    return booked.rowcount == 1


def find_shared(connection: Connection, pairs: Iterable[tuple[str, str]]) -> frozenset[tuple[str, str]]:
    """Those pairs of project and provider where another project uses the same account."""
    pairs = set(pairs)
    wanted, providers = ({pair[place] for pair in pairs} for place in (0, 1))
    own, every = _uses.subquery("own"), _uses.subquery("every")
    # One pass over all projects, however many pairs there are. Keys with the same last characters count as one, and
    # projects that use one credential have the same.
    key, user = every.c.api_key_last4, every.c.project_id
    accounts = (
        select(every.c.provider, key, func.min(user).label("lowest"), func.max(user).label("highest"))
        .where(every.c.provider.in_(providers))
        .group_by(every.c.provider, key)
        .subquery("accounts")
    )
    same_account = or_(
        accounts.c.api_key_last4 == own.c.api_key_last4, accounts.c.api_key_last4 == "", own.c.api_key_last4 == ""
    )
    has_others = or_(accounts.c.lowest != own.c.project_id, accounts.c.highest != own.c.project_id)
    rows = connection.execute(
        select(own.c.project_id, own.c.provider)
        .join(accounts, and_(accounts.c.provider == own.c.provider, same_account, has_others))
        .where(own.c.project_id.in_(wanted), own.c.provider.in_(providers))
        .distinct()
    )
    return frozenset((project, provider) for project, provider in rows) & pairs
