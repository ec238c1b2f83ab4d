"""Projects: each owns the API key of a provider. The key goes in and never comes out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Final

from attrs import evolve
from msgspec import UNSET, Meta, Struct, UnsetType

from db import Connection, records
from db.errors import Duplicate
from db.queries import projects as queries
from db.queries import tokens as token_queries
from llm_proxy.api.operations import Call, Change, Operation, Resource, found
from llm_proxy.api.pages import ByCreation, page, page_of, position_cursor
from llm_proxy.api.schema import Body, Changes, Id, Timestamp, doc, given, one_of, printable, shown, text, with_types
from llm_proxy.errors import InvalidBody, NameTaken, ProjectNotFound
from llm_proxy.identifiers import new_id
from llm_proxy.logging import log
from llm_proxy.secrets import encryption

_COLLECTION: Final = "/manage/projects"
_ONE: Final = "/manage/projects/{project_id}"

_Name = Annotated[str, text(1, 255), doc("Unique among all projects.")]
_Key = Annotated[str, printable(4096)]

_log = log.logger("manage")

RESOURCE: Final = Resource(
    "Projects",
    "project",
    hints={(_ONE, "DELETE"): 'Projects are never deleted, because the ledger refers to them: PATCH {"active": false}.'},
)


class Project(Struct):
    """A project, without its API key."""

    id: Annotated[Id, doc("Its id.")]
    name: _Name
    provider: Annotated[str, text(1, 64), doc("The provider of the API key.")]
    api_key_last4: Annotated[str, text(0, 4), doc("The last characters of the API key.")]
    active: Annotated[bool, doc("Whether its tokens are accepted.")]
    created_at: Annotated[Timestamp, doc("When it was created.")]
    updated_at: Annotated[Timestamp, doc("When it was last changed.")]


class Revocation(Struct):
    """How many tokens were revoked."""

    revoked: Annotated[int, Meta(ge=0, le=2**31), doc("Number of tokens that were active until now.")]


class NewProject(Body, kw_only=True):
    """A project to create; the type of `provider` depends on the configured providers."""

    name: _Name
    api_key: Annotated[_Key, doc("The provider's API key. It is stored encrypted and never shown.")]
    provider: str | UnsetType = UNSET


class ProjectChanges(Changes, kw_only=True):
    """Changes of a project."""

    name: _Name | UnsetType = UNSET
    api_key: Annotated[_Key, doc("A new key, used from the next request on.")] | UnsetType = UNSET
    provider: str | UnsetType = UNSET
    active: Annotated[bool, doc("Whether the project's tokens are accepted.")] | UnsetType = UNSET


def resource(providers: Iterable[str], default_provider: str) -> Resource:
    """Make the resource for the configured providers."""
    choice = one_of(providers)
    described = doc(f"The provider of the API key; {default_provider} if omitted.")
    bodies: dict[Any, type[Body]] = {
        NewProject: with_types(NewProject, provider=Annotated[str, choice, described]),
        ProjectChanges: with_types(
            ProjectChanges, provider=Annotated[str, choice, doc("Needs the `api_key` of the new provider beside it.")]
        ),
    }
    resource = Resource(RESOURCE.name, RESOURCE.kind, RESOURCE.hints)
    for operation in RESOURCE.operations:
        resource.add(evolve(operation, body=bodies.get(operation.body)))(operation.handle)
    return resource


@RESOURCE.add(Operation("GET", _COLLECTION, "listProjects", page_of(Project), query=ByCreation))
async def _list(call: Call, query: ByCreation) -> object:
    """List the projects, the newest first."""
    rows = await call.services.database.read(queries.page, query.limit + 1, query.cursor or None)
    return page(rows, query.limit, lambda row: shown(Project, row), position_cursor)


@RESOURCE.add(
    Operation("POST", _COLLECTION, "createProject", Project, status=201, body=NewProject, errors=(NameTaken,))
)
async def _create(call: Call, new: NewProject) -> Project:
    """Create a project."""
    services, identity = call.services, new_id()
    project = records.Project(
        id=identity,
        name=new.name,
        provider=new.provider or services.providers.default.name,
        api_key=services.keyring.seal(new.api_key, identity),
        api_key_last4=encryption.last4(new.api_key),
        active=True,
        created_at=call.now,
        updated_at=call.now,
    )

    def create(connection: Connection) -> Change[records.Project]:
        queries.create(connection, project)
        return Change(None, project)

    try:
        await call.write(create)
    except Duplicate:
        raise NameTaken from None
    _log.info("project created", project_id=identity, name=project.name, provider=project.provider)
    return shown(Project, project)


@RESOURCE.add(Operation("GET", _ONE, "getProject", Project, not_found=ProjectNotFound))
async def _get(call: Call) -> Project:
    """Show a project."""
    return shown(Project, found(await call.services.database.read(queries.get, call.id), ProjectNotFound))


@RESOURCE.add(
    Operation(
        "PATCH", _ONE, "updateProject", Project, body=ProjectChanges, errors=(NameTaken,), not_found=ProjectNotFound
    )
)
async def _update(call: Call, body: ProjectChanges) -> Project:
    """Change a project; the next request on every replica uses the change."""
    identity = call.id
    sent = given(body)
    changes: Any = dict(sent)
    if body.api_key:
        changes["api_key"] = call.services.keyring.seal(body.api_key, identity)
        changes["api_key_last4"] = encryption.last4(body.api_key)

    def change(connection: Connection) -> Change[records.Project]:
        project = found(queries.get_locked(connection, identity), ProjectNotFound)
        # A key must never be sent to another provider than its own.
        if changes.get("provider", project.provider) != project.provider and "api_key" not in changes:
            raise InvalidBody(f"'provider' can change from {project.provider} only together with 'api_key'.")
        return Change(project, queries.change(connection, project, changes, call.now))

    try:
        project = await call.write(change)
    except Duplicate:
        raise NameTaken from None
    _log.info("project changed", project_id=identity, fields=", ".join(sent))
    return shown(Project, project)


@RESOURCE.add(Operation("POST", _ONE + "/tokens/revoke", "revokeProjectTokens", Revocation, not_found=ProjectNotFound))
async def _revoke_tokens(call: Call) -> Revocation:
    """Revoke every active token of a project."""
    identity = call.id

    def revoke(connection: Connection) -> Change[Revocation]:
        found(queries.get(connection, identity), ProjectNotFound)
        revoked = token_queries.revoke_all(connection, identity, call.now)
        return Change(None, Revocation(revoked), id=identity)

    answer = await call.write(revoke)
    _log.info("tokens revoked", project_id=identity, revoked=answer.revoked)
    return answer
