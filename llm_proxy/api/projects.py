"""Projects: each uses the credentials of providers, one for each, and owns tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from operator import attrgetter
from typing import Annotated, Any, Final, get_args

from attrs import evolve
from msgspec import UNSET, Meta, Struct, UnsetType

from db import Connection, records
from db.errors import Duplicate
from db.queries import credentials as credential_queries
from db.queries import projects as queries
from db.queries import tokens as token_queries
from llm_proxy.api import credentials
from llm_proxy.api.operations import Call, Change, Operation, Resource, found
from llm_proxy.api.pages import ByCreation, page, page_of, position_cursor
from llm_proxy.api.schema import (
    Body,
    Changes,
    Id,
    Key,
    Patterns,
    References,
    Timestamp,
    doc,
    given,
    one_of,
    patterns_of,
    quoted,
    shown,
    stored_patterns,
    text,
)
from llm_proxy.errors import CredentialNotFound, CredentialShared, InvalidBody, NameTaken, ProjectNotFound
from llm_proxy.gateway.providers.provider import StreamUsage
from llm_proxy.identifiers import new_id
from llm_proxy.logging import log
from llm_proxy.secrets import keys

_COLLECTION: Final = "/manage/projects"
_ONE: Final = "/manage/projects/{project_id}"

_Name = Annotated[str, text(1, 255), doc("Unique among all projects.")]
_Provider = Annotated[str, text(1, 64)]
_Unknown = Annotated[bool, doc("Whether its tokens may name objects at a provider that no project has created.")]
_Labels = Annotated[bool, doc("Whether requests may have labels of their own, in headers.")]
_StreamUsage = Annotated[
    Annotated[str, one_of(get_args(StreamUsage))] | None,
    doc(
        "Whether streams of chats are asked for their token usage: `ask` or `off`; null: the setting of the provider.",
        null="the setting of the provider",
    ),
]

_Models = Annotated[
    Patterns | None,
    doc("Patterns of the models that requests of its tokens may name; null: all models.", null="all models"),
]

#: Maximum number of credentials that an error names.
_FEW: Final = 10

_log = log.logger("manage")

RESOURCE: Final = Resource(
    "Projects",
    "project",
    ProjectNotFound,
    queries.find,
    hints={(_ONE, "DELETE"): 'Projects are never deleted, because the ledger refers to them: PATCH {"active": false}.'},
)


class UsedCredential(Struct):
    """A credential that a project uses."""

    id: Annotated[Id, doc("Its id.")]
    name: Annotated[str, text(1, 255), doc("Its name.")]
    provider: Annotated[_Provider, doc("The provider that it is for.")]
    api_key_last4: Annotated[str, text(0, 4), doc("The last characters of its API key.")]
    active: Annotated[bool, doc("Whether requests with its API key are accepted.")]


class Project(Struct):
    """A project, without API keys."""

    id: Annotated[Id, doc("Its id.")]
    name: _Name
    provider: Annotated[_Provider, doc("The provider of requests whose path names none.")]
    api_key_last4: Annotated[str, text(0, 4), doc("The last characters of the API key for that provider.")]
    credentials: Annotated[list[UsedCredential], doc("The credentials that it uses, one for each provider.")]
    allow_unknown_objects: _Unknown
    allow_request_labels: _Labels
    stream_usage: _StreamUsage
    models: _Models
    active: Annotated[bool, doc("Whether its tokens are accepted.")]
    created_at: Annotated[Timestamp, doc("When it was created.")]
    updated_at: Annotated[Timestamp, doc("When it was last changed.")]


class Revocation(Struct):
    """How many tokens were revoked."""

    revoked: Annotated[int, Meta(ge=0, le=2**31), doc("Number of tokens that were active until now.")]


class NewProject(Body, kw_only=True):
    """A project to create: with an API key, which becomes a credential of the project's name, or with credentials."""

    name: _Name
    api_key: Annotated[Key, doc("An API key of the provider. It is stored encrypted and never shown.")] | UnsetType = (
        UNSET
    )
    credentials: (
        Annotated[References, doc("Names or ids of credentials, one for each provider, in place of `api_key`.")]
        | UnsetType
    ) = UNSET
    provider: (
        Annotated[_Provider, doc("The provider of the API key; with `credentials`, of requests whose path names none.")]
        | UnsetType
    ) = UNSET
    allow_unknown_objects: _Unknown = False
    allow_request_labels: _Labels = False
    stream_usage: _StreamUsage = None
    models: _Models = None


class ProjectChanges(Changes, kw_only=True):
    """Changes of a project."""

    name: _Name | UnsetType = UNSET
    api_key: (
        Annotated[Key, doc("A new API key, if no other project uses the credential; used from the next request on.")]
        | UnsetType
    ) = UNSET
    credentials: (
        Annotated[References, doc("Names or ids of all credentials that it is to use, one for each provider.")]
        | UnsetType
    ) = UNSET
    provider: (
        Annotated[_Provider, doc("The provider of requests whose path names none; it needs a credential there.")]
        | UnsetType
    ) = UNSET
    allow_unknown_objects: _Unknown | UnsetType = UNSET
    allow_request_labels: _Labels | UnsetType = UNSET
    stream_usage: _StreamUsage | UnsetType = UNSET
    models: _Models | UnsetType = UNSET
    active: Annotated[bool, doc("Whether the project's tokens are accepted.")] | UnsetType = UNSET


def _check(sent: Collection[str], _values: Mapping[str, Any], _now: datetime) -> Iterable[str]:
    if "api_key" in sent and "credentials" in sent:
        yield "only one of 'api_key', 'credentials' can be given"


def _check_new(sent: Collection[str], values: Mapping[str, Any], now: datetime) -> Iterable[str]:
    yield from _check(sent, values, now)
    if "api_key" not in sent and "credentials" not in sent:
        yield "'api_key' is missing (or 'credentials')"


def _shown(project: records.Project, used: Iterable[records.Credential]) -> Project:
    in_order = sorted(used, key=attrgetter("provider"))
    used_ones = [shown(UsedCredential, one) for one in in_order]
    return shown(Project, project, credentials=used_ones, models=patterns_of(project.models))


async def _ids(call: Call, references: list[str] | UnsetType) -> list[str]:
    found = []
    for reference in references or ():
        try:
            found.append(await call.resolve(reference, credential_queries.find, CredentialNotFound))
        except CredentialNotFound:
            raise CredentialNotFound(await call.services.database.read(_unknown, reference)) from None
    return found


def _unknown(connection: Connection, reference: str) -> str:
    """Describe a reference to no credential; if there are only a few, name them."""
    names = credential_queries.active_names(connection, _FEW + 1)
    those = f" (active ones: {', '.join(names)})" if 0 < len(names) <= _FEW else ""
    return f"No credential has the id or name {quoted(reference)}{those}."


def _chosen(
    connection: Connection,
    ids: Iterable[str],
    locked: Mapping[str, records.Credential],
    before: Collection[records.Credential] = (),
) -> dict[str, records.Credential]:
    """The credentials of these ids by provider. One that is deactivated is refused, unless it was used `before`."""
    chosen: dict[str, records.Credential] = {}
    for identity in ids:
        one = locked.get(identity)
        if one is None:
            raise CredentialNotFound(_unknown(connection, identity))
        if not one.active and one not in before:
            raise InvalidBody(f"'credentials': '{one.name}' is deactivated; activate it first.")
        other = chosen.setdefault(one.provider, one)
        if other is not one:
            names = f"'{other.name}' and '{one.name}'"
            raise InvalidBody(
                f"'credentials': {names} are both for {one.provider}; a project has one for each provider."
            )
    return chosen


def _names(used: Mapping[str, records.Credential]) -> dict[str, str]:
    return {provider: used[provider].name for provider in sorted(used)}


def _default(call: Call, wanted: str | UnsetType, chosen: Mapping[str, records.Credential]) -> str:
    """The default provider of a new project with these credentials."""
    usual = call.services.providers.default.name
    provider = wanted or (usual if usual in chosen else next(iter(chosen)) if len(chosen) == 1 else "")
    if provider not in chosen:
        raise InvalidBody(f"'provider' must be one of {', '.join(chosen)}, the providers of 'credentials'.")
    return provider


@Operation(RESOURCE, "GET", _COLLECTION, "listProjects", page_of(Project), query=ByCreation)
async def _list(call: Call, query: ByCreation) -> object:
    """List the projects, the newest first."""

    def read(connection: Connection) -> tuple[list[records.Project], dict[str, list[records.Credential]]]:
        rows = queries.page(connection, query.limit + 1, query.cursor or None)
        return rows, credential_queries.of_projects(connection, [row.id for row in rows])

    rows, used = await call.services.database.read(read)
    return page(rows, query.limit, lambda row: _shown(row, used[row.id]), position_cursor)


@Operation(
    RESOURCE,
    "POST",
    _COLLECTION,
    "createProject",
    Project,
    status=201,
    body=NewProject,
    check=_check_new,
    errors=(NameTaken, CredentialNotFound),
)
async def _create(call: Call, new: NewProject) -> Project:
    """Create a project."""
    services, identity = call.services, new_id()
    ids = await _ids(call, new.credentials)
    if new.provider:
        credentials.configured(call, new.provider)
    used: dict[str, records.Credential] = {}

    def create(connection: Connection) -> Change[records.Project]:
        nonlocal used
        made = None
        if new.api_key:
            own = credentials.made(call, new.name, new.provider or services.providers.default.name, new.api_key)
            if credential_queries.is_name_taken(connection, own.name):
                raise NameTaken(credentials.TAKEN)
            credential_queries.create(connection, own)
            used = {own.provider: own}
            made = Change(None, own)
        else:
            used = _chosen(connection, ids, credential_queries.lock(connection, ids))
        provider = next(iter(used)) if new.api_key else _default(call, new.provider, used)
        plain = records.Project(
            identity,
            new.name,
            provider,
            "",
            "",
            active=True,
            created_at=call.now,
            updated_at=call.now,
            allow_unknown_objects=new.allow_unknown_objects,
            allow_request_labels=new.allow_request_labels,
            stream_usage=new.stream_usage,
            models=stored_patterns(new.models),
        )
        project = keys.with_key(plain, used[provider], services.keyring)
        queries.create(connection, project)
        credential_queries.assign(connection, identity, used.values())
        return Change(None, project, also={"credentials": ({}, _names(used))}, credential=made)

    try:
        project = await call.write(create)
    except Duplicate:
        raise NameTaken from None
    _log.info("project created", project_id=identity, name=project.name, provider=project.provider)
    return _shown(project, used.values())


@Operation(RESOURCE, "GET", _ONE, "getProject", Project)
async def _get(call: Call) -> Project:
    """Show a project."""

    def read(connection: Connection) -> Project:
        project = found(queries.get(connection, call.id), ProjectNotFound, call.id)
        return _shown(project, credential_queries.of_projects(connection, [project.id])[project.id])

    return await call.services.database.read(read)


@Operation(
    RESOURCE,
    "PATCH",
    _ONE,
    "updateProject",
    Project,
    body=ProjectChanges,
    check=_check,
    errors=(NameTaken, CredentialNotFound, CredentialShared),
)
async def _update(call: Call, body: ProjectChanges) -> Project:
    """Change a project; the next request on every replica uses the change."""
    sent = given(body)
    ids = await _ids(call, body.credentials)
    if body.provider:
        credentials.configured(call, body.provider)
    used: dict[str, records.Credential] = {}

    def change(connection: Connection) -> Change[records.Project]:
        nonlocal used
        project, before, locked = found(
            credential_queries.lock_project(connection, call.id, ids), ProjectNotFound, call.id
        )
        used = _chosen(connection, ids, locked, before.values()) if ids else dict(before)
        provider = body.provider or project.provider
        rotated = None
        if body.api_key:
            own = used.get(provider)
            used[provider] = _with_new_key(call, connection, project, provider, own, body.api_key)
            rotated = Change(own, used[provider])
        # A server of the release before makes projects without credentials.
        if provider not in used and (ids or provider != project.provider):
            raise InvalidBody(
                f"'provider': the project has no credential for {provider}; send 'api_key', 'credentials' with one,"
                f" or another 'provider'."
            )
        changed = evolve(project, provider=provider)
        if provider in used and used[provider] != before.get(project.provider):
            changed = keys.with_key(changed, used[provider], call.services.keyring)
        if used != before:
            credential_queries.assign(connection, project.id, used.values())
        plain = ("name", "active", "allow_unknown_objects", "allow_request_labels", "stream_usage")
        values: Any = {name: sent[name] for name in plain if name in sent}
        if "models" in sent:
            values["models"] = stored_patterns(sent["models"])
        copied = ("provider", "api_key", "api_key_last4")
        values |= {name: getattr(changed, name) for name in copied if getattr(changed, name) != getattr(project, name)}
        after = queries.change(connection, project, values, call.now)
        also = {} if _names(used) == _names(before) else {"credentials": (_names(before), _names(used))}
        return Change(project, after, also=also, credential=rotated)

    try:
        project = await call.write(change)
    except Duplicate:
        raise NameTaken from None
    _log.info("project changed", project_id=project.id, fields=", ".join(sent))
    return _shown(project, used.values())


def _with_new_key(
    call: Call,
    connection: Connection,
    project: records.Project,
    provider: str,
    own: records.Credential | None,
    api_key: str,
) -> records.Credential:
    """Give the project's credential at a provider a new API key, or the project a new credential there."""
    if own is None:
        names = (project.name, f"{project.name[:180]} ({provider})")
        free = [name for name in names if not credential_queries.is_name_taken(connection, name)]
        if not free:
            raise NameTaken(credentials.TAKEN)
        own = credentials.made(call, free[0], provider, api_key)
        credential_queries.create(connection, own)
        return own
    if credential_queries.count_users(connection, [own.id])[own.id] > 1:
        raise CredentialShared(
            f"The credential '{own.name}' is used by other projects too. Rotate it for all of them"
            f" ('llm-proxy manage credential rotate', or POST /manage/credentials/{own.id}/rotate), or create another"
            " one for this project."
        )
    credentials.check_key(call, provider, api_key)
    return credential_queries.change(connection, own, credentials.sealed(call, own.id, api_key), call.now)


@Operation(RESOURCE, "POST", _ONE + "/tokens/revoke", "revokeProjectTokens", Revocation)
async def _revoke_tokens(call: Call) -> Revocation:
    """Revoke every active token of a project."""
    identity = call.id

    def revoke(connection: Connection) -> Change[Revocation]:
        found(queries.get(connection, identity), ProjectNotFound, identity)
        revoked = token_queries.revoke_all(connection, identity, call.now)
        return Change(None, Revocation(revoked), id=identity)

    answer = await call.write(revoke)
    _log.info("tokens revoked", project_id=identity, revoked=answer.revoked)
    return answer
