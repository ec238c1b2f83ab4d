"""Projects: who owns a provider's key. The key goes in and never comes out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from db import Connection
from db.errors import Duplicate
from db.queries import projects as queries
from db.queries import tokens as token_queries
from db.records import Project
from llm_proxy.api import pages
from llm_proxy.api.fields import BOOLEAN, ID, MOMENT, Field, credential, integer, one_of, text
from llm_proxy.api.operations import Answer, Body, Call, Operation, Resource
from llm_proxy.errors import InvalidBody, NameTaken, ProjectNotFound
from llm_proxy.identifiers import new_id
from llm_proxy.logging import log
from llm_proxy.secrets import encryption

_COLLECTION: Final = "/manage/projects"
_ONE: Final = "/manage/projects/{project_id}"

_NAME: Final = Field("name", text(1, 255), "Unique among all projects.", required=True)
_API_KEY: Final = credential(4096)

_log = log.logger("manage")


_FIELDS: Final = (
    Field("id", ID, "Its id.", required=True),
    _NAME,
    Field("provider", text(1, 64), "Which provider the key belongs to.", required=True),
    Field("api_key_last4", text(0, 4), "The last characters of the API key.", required=True),
    Field("active", BOOLEAN, "Whether its tokens open anything.", required=True),
    Field("created_at", MOMENT, "When it was created.", required=True),
    Field("updated_at", MOMENT, "When it was last changed.", required=True),
)
_REVOCATION: Final = (Field("revoked", integer(0, 2**31), "How many tokens were active until now.", required=True),)


def show(project: Project) -> dict[str, Any]:
    """Show a project, without its API key."""
    return {
        "id": project.id,
        "name": project.name,
        "provider": project.provider,
        "api_key_last4": project.api_key_last4,
        "active": project.active,
        "created_at": project.created_at,
        "updated_at": project.updated_at,
    }


async def _list(call: Call) -> Answer:
    limit = call.query.get("limit", pages.DEFAULT_LIMIT)
    rows = await call.context.database.read(queries.page, limit + 1, call.query.get("cursor"))
    return Answer(pages.page(rows, limit, show, lambda row: pages.position_cursor(row.created_at, row.id)))


async def _create(call: Call) -> Answer:
    context, body = call.context, call.body
    identity = new_id()
    project = Project(
        id=identity,
        name=body["name"],
        provider=body.get("provider", context.default_provider),
        api_key=context.keyring.seal(body["api_key"], identity),
        api_key_last4=encryption.last4(body["api_key"]),
        active=True,
        created_at=call.now,
        updated_at=call.now,
    )
    try:
        await context.database.write(queries.create, project)
    except Duplicate:
        raise NameTaken from None
    _log.info("project created", project_id=identity, name=project.name, provider=project.provider)
    return Answer(show(project), {"Location": f"{_COLLECTION}/{identity}"})


async def _get(call: Call) -> Answer:
    project = await call.context.database.read(queries.get, call.ids["project_id"])
    if project is None:
        raise ProjectNotFound
    return Answer(show(project))


async def _update(call: Call) -> Answer:
    identity = call.ids["project_id"]
    changes = queries.Changes()
    for name in ("name", "provider", "active"):
        if name in call.body:
            changes[name] = call.body[name]
    if "api_key" in call.body:
        changes["api_key"] = call.context.keyring.seal(call.body["api_key"], identity)
        changes["api_key_last4"] = encryption.last4(call.body["api_key"])

    def change(connection: Connection) -> Project:
        project = queries.get_locked(connection, identity)
        if project is None:
            raise ProjectNotFound
        # A key must never travel to another provider than its own.
        if changes.get("provider", project.provider) != project.provider and "api_key" not in changes:
            raise InvalidBody(f"'provider' can change from {project.provider} only together with 'api_key'.")
        return queries.change(connection, project, changes, call.now)

    try:
        project = await call.context.database.write(change)
    except Duplicate:
        raise NameTaken from None
    _log.info("project changed", project_id=identity, fields=", ".join(call.body))
    return Answer(show(project))


async def _revoke_tokens(call: Call) -> Answer:
    identity = call.ids["project_id"]

    def revoke(connection: Connection) -> int:
        if queries.get(connection, identity) is None:
            raise ProjectNotFound
        return token_queries.revoke_all(connection, identity, call.now)

    revoked = await call.context.database.write(revoke)
    _log.info("tokens revoked", project_id=identity, revoked=revoked)
    return Answer({"revoked": revoked})


def resource(providers: Iterable[str], default_provider: str) -> Resource:
    """Say what can be done with projects, for the configured providers."""
    provider = Field(
        "provider",
        one_of(providers),
        f"Which provider the key belongs to; {default_provider} where it is left out.",
    )
    api_key = Field(
        "api_key", _API_KEY, "The provider's API key. It is stored encrypted and never shown.", required=True
    )
    new = Body("NewProject", (_NAME, api_key, provider))
    changes = Body(
        "ProjectChanges",
        (
            Field("name", _NAME.kind, _NAME.help),
            Field("api_key", _API_KEY, "A new key for the provider; it is used from the next request on."),
            Field("provider", provider.kind, "Needs the `api_key` of the new provider beside it."),
            Field("active", BOOLEAN, "Whether the project's tokens open anything."),
        ),
        some=True,
    )
    return Resource(
        "Projects",
        (
            Operation(
                "GET",
                _COLLECTION,
                "listProjects",
                "List the projects, the newest first.",
                _list,
                "ProjectPage",
                query=pages.BY_CREATION,
            ),
            Operation(
                "POST",
                _COLLECTION,
                "createProject",
                "Create a project.",
                _create,
                "Project",
                status=201,
                body=new,
                problems=(NameTaken,),
            ),
            Operation("GET", _ONE, "getProject", "Show a project.", _get, "Project", missing=ProjectNotFound),
            Operation(
                "PATCH",
                _ONE,
                "updateProject",
                "Change a project; it holds for the next request on every replica.",
                _update,
                "Project",
                body=changes,
                problems=(NameTaken,),
                missing=ProjectNotFound,
            ),
            Operation(
                "POST",
                _ONE + "/tokens/revoke",
                "revokeProjectTokens",
                "Revoke every active token of a project.",
                _revoke_tokens,
                "Revocation",
                missing=ProjectNotFound,
            ),
        ),
        {"Project": _FIELDS, "Revocation": _REVOCATION},
        hints={
            (_ONE, "DELETE"): 'Projects are never deleted, because the ledger refers to them: PATCH {"active": false}.'
        },
    )
