"""Tokens: made with an end in sight, shown once, revoked at once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from db import Connection
from db.queries import projects as project_queries
from db.queries import tokens as queries
from db.records import Token
from llm_proxy.api import pages
from llm_proxy.api.fields import BOOLEAN, ID, MAX_SAFE_INTEGER, MOMENT, Field, integer, text
from llm_proxy.api.operations import Answer, Body, Call, Operation, Resource
from llm_proxy.errors import ProjectDeactivated, ProjectNotFound, TokenNotFound, TokenRevoked
from llm_proxy.identifiers import new_id
from llm_proxy.logging import log
from llm_proxy.secrets import encryption

DEFAULT_LIFE: Final = timedelta(days=30)
#: Ten years, leap days included: a token that outlives its owner does not wither.
LONGEST_LIFE: Final = timedelta(days=3653)

_COLLECTION: Final = "/manage/tokens"
_ONE: Final = "/manage/tokens/{token_id}"

_MOST_MINUTES: Final = LONGEST_LIFE // timedelta(minutes=1)
_MOST_HOURS: Final = LONGEST_LIFE // timedelta(hours=1)

_EXPIRY: Final = (
    Field("duration_minutes", integer(1, _MOST_MINUTES), "Expires so many minutes from now."),
    Field("duration_hours", integer(1, _MOST_HOURS), "Expires so many hours from now."),
    Field("expires_at", MOMENT, "Expires at this time, which is at most ten years ahead."),
)
_MAX_REQUESTS: Final = Field(
    "max_requests",
    integer(1, MAX_SAFE_INTEGER),
    "Maximum number of requests; null: unlimited.",
    nullable=True,
    null="unlimited",
)
_NAME: Final = Field("name", text(0, 255), "For people; not unique.")

_log = log.logger("manage")


def _check_expiry(names: Collection[str], values: Mapping[str, Any], now: datetime) -> Iterable[str]:
    given = [field.name for field in _EXPIRY if field.name in names]
    if len(given) > 1:
        yield f"only one of {', '.join(map(repr, given))} can be given"
    expires_at = values.get("expires_at")
    if expires_at is not None and not now < expires_at <= now + LONGEST_LIFE:
        yield "'expires_at' must be in the future, and at most ten years ahead"


_NEW: Final = Body(
    "NewToken",
    (Field("project_id", ID, "Whose requests it opens.", required=True), _NAME, *_EXPIRY, _MAX_REQUESTS),
    _check_expiry,
)
_CHANGES: Final = Body(
    "TokenChanges",
    (_NAME, *_EXPIRY, _MAX_REQUESTS, Field("active", BOOLEAN, "False revokes it, true takes that back.")),
    _check_expiry,
    some=True,
)


def show(token: Token) -> dict[str, Any]:
    """Show a token; of its secret, only the last characters."""
    return {
        "id": token.id,
        "project_id": token.project_id,
        "name": token.name,
        "last4": token.last4,
        "active": token.active,
        "expires_at": token.expires_at,
        "max_requests": token.max_requests,
        "request_count": token.request_count,
        "created_at": token.created_at,
        "updated_at": token.updated_at,
        "revoked_at": token.revoked_at,
        "last_used_at": token.last_used_at,
    }


def _expiry(body: Mapping[str, Any], now: datetime) -> datetime | None:
    """Work out when a token is to expire, where the body says so."""
    if "duration_minutes" in body:
        return now + timedelta(minutes=body["duration_minutes"])
    if "duration_hours" in body:
        return now + timedelta(hours=body["duration_hours"])
    expires_at: datetime | None = body.get("expires_at")
    return expires_at


def _locked(connection: Connection, token_id: str) -> Token:
    token = queries.get_locked(connection, token_id)
    if token is None:
        raise TokenNotFound
    return token


async def _list(call: Call) -> Answer:
    query = call.query
    limit = query.get("limit", pages.DEFAULT_LIMIT)
    usable_at = call.now if query.get("active_only") else None
    rows = await call.context.database.read(
        queries.page, limit + 1, query.get("cursor"), query.get("project_id"), usable_at
    )
    return Answer(pages.page(rows, limit, show, lambda row: pages.position_cursor(row.created_at, row.id)))


async def _create(call: Call) -> Answer:
    body, now = call.body, call.now
    secret = encryption.new_token_secret()
    token = Token(
        id=new_id(),
        project_id=body["project_id"],
        digest=encryption.digest(secret),
        last4=encryption.last4(secret),
        name=body.get("name", ""),
        active=True,
        expires_at=_expiry(body, now) or now + DEFAULT_LIFE,
        max_requests=body.get("max_requests"),
        request_count=0,
        created_at=now,
        updated_at=now,
        revoked_at=None,
        last_used_at=None,
    )

    def create(connection: Connection) -> None:
        project = project_queries.get(connection, token.project_id)
        if project is None:
            raise ProjectNotFound
        if not project.active:
            raise ProjectDeactivated
        queries.create(connection, token)

    await call.context.database.write(create)
    _log.info("token created", token_id=token.id, project_id=token.project_id, expires_at=token.expires_at)
    return Answer({**show(token), "token": secret}, {"Location": f"{_COLLECTION}/{token.id}"})


async def _get(call: Call) -> Answer:
    token = await call.context.database.read(queries.get, call.ids["token_id"])
    if token is None:
        raise TokenNotFound
    return Answer(show(token))


async def _update(call: Call) -> Answer:
    body = call.body
    changes = queries.Changes()
    if "name" in body:
        changes["name"] = body["name"]
    if "active" in body:
        changes["active"] = body["active"]
    if "max_requests" in body:
        changes["max_requests"] = body["max_requests"]
    if (expires_at := _expiry(body, call.now)) is not None:
        changes["expires_at"] = expires_at

    def change(connection: Connection) -> Token:
        return queries.change(connection, _locked(connection, call.ids["token_id"]), changes, call.now)

    token = await call.context.database.write(change)
    _log.info("token changed", token_id=token.id, project_id=token.project_id, fields=", ".join(body))
    return Answer(show(token))


async def _revoke(call: Call) -> Answer:
    def revoke(connection: Connection) -> Token:
        token = _locked(connection, call.ids["token_id"])
        return queries.change(connection, token, {"active": False}, call.now) if token.active else token

    token = await call.context.database.write(revoke)
    _log.info("token revoked", token_id=token.id, project_id=token.project_id)
    return Answer(None)


async def _rotate(call: Call) -> Answer:
    secret = encryption.new_token_secret()

    def rotate(connection: Connection) -> Token:
        token = _locked(connection, call.ids["token_id"])
        if not token.active:
            raise TokenRevoked
        return queries.rotate(connection, token, encryption.digest(secret), encryption.last4(secret), call.now)

    token = await call.context.database.write(rotate)
    _log.info("token rotated", token_id=token.id, project_id=token.project_id)
    return Answer({**show(token), "token": secret})


_FIELDS: Final = (
    Field("id", ID, "Its id, which is no secret.", required=True),
    Field("project_id", ID, "Whose requests it opens.", required=True),
    Field("name", _NAME.kind, _NAME.help, required=True),
    Field("last4", text(4, 4), "The last characters of its secret.", required=True),
    Field("active", BOOLEAN, "False once it is revoked.", required=True),
    Field("expires_at", MOMENT, "When it expires; null: never.", required=True, nullable=True),
    Field("max_requests", _MAX_REQUESTS.kind, _MAX_REQUESTS.help, required=True, nullable=True),
    Field("request_count", integer(0, MAX_SAFE_INTEGER), "Requests that it has opened.", required=True),
    Field("created_at", MOMENT, "When it was created.", required=True),
    Field("updated_at", MOMENT, "When it was last changed here.", required=True),
    Field("revoked_at", MOMENT, "When it was revoked.", required=True, nullable=True),
    Field("last_used_at", MOMENT, "When it last opened a request.", required=True, nullable=True),
)
_SECRET: Final = Field("token", text(46, 46), "The secret: shown here, and never again.", required=True)

RESOURCE: Final = Resource(
    "Tokens",
    (
        Operation(
            "GET",
            _COLLECTION,
            "listTokens",
            "List tokens, the newest first.",
            _list,
            "TokenPage",
            query=(
                *pages.BY_CREATION,
                Field("project_id", ID, "Only those of this project."),
                Field("active_only", BOOLEAN, "Leave out those that are revoked, expired or used up."),
            ),
        ),
        Operation(
            "POST",
            _COLLECTION,
            "createToken",
            f"Create a token. It expires after {DEFAULT_LIFE.days} days unless the body says otherwise.",
            _create,
            "TokenWithSecret",
            status=201,
            body=_NEW,
            problems=(ProjectNotFound, ProjectDeactivated),
        ),
        Operation(
            "GET",
            _ONE,
            "getToken",
            "Show a token.",
            _get,
            "Token",
            missing=TokenNotFound,
        ),
        Operation(
            "PATCH",
            _ONE,
            "updateToken",
            "Change a token; it holds for the next request on every replica.",
            _update,
            "Token",
            body=_CHANGES,
            missing=TokenNotFound,
        ),
        Operation(
            "DELETE",
            _ONE,
            "revokeToken",
            "Revoke a token. Its row stays, for the ledger.",
            _revoke,
            None,
            status=204,
            missing=TokenNotFound,
        ),
        Operation(
            "POST",
            _ONE + "/rotate",
            "rotateToken",
            "Give a token a new secret; the old one opens nothing from now on. Limits, expiry and count stay.",
            _rotate,
            "TokenWithSecret",
            problems=(TokenRevoked,),
            missing=TokenNotFound,
        ),
    ),
    {"Token": _FIELDS, "TokenWithSecret": (*_FIELDS, _SECRET)},
)
