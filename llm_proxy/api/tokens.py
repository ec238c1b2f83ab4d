"""Tokens: they expire, can be revoked at once, and their secret is shown once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, TypeVar

from msgspec import UNSET, Meta, Struct, UnsetType, field

from db import Connection, records
from db.queries import projects as project_queries
from db.queries import tokens as queries
from llm_proxy.api.operations import Call, Change, Operation, Resource, found
from llm_proxy.api.pages import ByCreation, page, page_of, position_cursor
from llm_proxy.api.schema import (
    MAX_SAFE_INTEGER,
    Body,
    Changes,
    Id,
    Labels,
    Patterns,
    Reference,
    Timestamp,
    doc,
    given,
    patterns_of,
    shown,
    stored_patterns,
    text,
)
from llm_proxy.errors import ProjectDeactivated, ProjectNotFound, TokenNotFound, TokenRevoked
from llm_proxy.identifiers import new_id
from llm_proxy.logging import log
from llm_proxy.secrets.encryption import last4
from llm_proxy.tokens import digest, new_secret

T = TypeVar("T", bound=Struct)

DEFAULT_LIFETIME: Final = timedelta(days=30)
#: Ten years with their leap days.
MAX_LIFETIME: Final = timedelta(days=3653)

_COLLECTION: Final = "/manage/tokens"
_ONE: Final = "/manage/tokens/{token_id}"
_MAX_MINUTES: Final = MAX_LIFETIME // timedelta(minutes=1)
_MAX_HOURS: Final = MAX_LIFETIME // timedelta(hours=1)
_EXPIRY: Final = ("duration_minutes", "duration_hours", "expires_at")

_Name = Annotated[str, text(0, 255), doc("For people; not unique.")]
_Minutes = Annotated[int, Meta(ge=1, le=_MAX_MINUTES), doc("Expires after this many minutes.")]
_Hours = Annotated[int, Meta(ge=1, le=_MAX_HOURS), doc("Expires after this many hours.")]
_ExpiresAt = Annotated[Timestamp, doc("Expires at this time, at most ten years in the future.")]
_MaxRequests = Annotated[
    Annotated[int, Meta(ge=1, le=MAX_SAFE_INTEGER)] | None,
    doc("Maximum number of requests; null: unlimited.", null="unlimited"),
]

_Labels = Annotated[Labels, doc("Labels of its requests, such as `user` and `team`; they override labels in headers.")]
_Models = Annotated[
    Patterns | None, doc("Patterns of the models that its requests may name; null: all models.", null="all models")
]

_log = log.logger("manage")

RESOURCE: Final = Resource("Tokens", "token", TokenNotFound, queries.find)


class Token(Struct):
    """A token; of its secret, only the last characters."""

    id: Annotated[Id, doc("Its id, which is not secret.")]
    project_id: Annotated[Id, doc("The project of its requests.")]
    name: _Name
    last4: Annotated[str, text(4, 4), doc("The last characters of its secret.")]
    active: Annotated[bool, doc("False once it is revoked.")]
    expires_at: Annotated[Timestamp | None, doc("When it expires. Null (never) is not made by this API.")]
    max_requests: _MaxRequests
    labels: _Labels
    models: _Models
    request_count: Annotated[int, Meta(ge=0, le=MAX_SAFE_INTEGER), doc("Number of requests admitted with it.")]
    created_at: Annotated[Timestamp, doc("When it was created.")]
    updated_at: Annotated[Timestamp, doc("When it was last changed by this API.")]
    revoked_at: Annotated[Timestamp | None, doc("When it was revoked.")]
    last_used_at: Annotated[Timestamp | None, doc("When it was last used for a request.")]


class TokenWithSecret(Token):
    """A token with its secret."""

    token: Annotated[str, text(46, 46), doc("The secret: shown here, and never again.")]


class NewToken(Body, kw_only=True):
    """A token to create."""

    project_id: Annotated[Reference, doc("The project of its requests: its id or name.")]
    name: _Name = ""
    duration_minutes: _Minutes | UnsetType = UNSET
    duration_hours: _Hours | UnsetType = UNSET
    expires_at: _ExpiresAt | UnsetType = UNSET
    max_requests: _MaxRequests = None
    labels: _Labels = field(default_factory=dict)
    models: _Models = None


class TokenChanges(Changes, kw_only=True):
    """Changes of a token."""

    name: _Name | UnsetType = UNSET
    duration_minutes: _Minutes | UnsetType = UNSET
    duration_hours: _Hours | UnsetType = UNSET
    expires_at: _ExpiresAt | UnsetType = UNSET
    max_requests: _MaxRequests | UnsetType = UNSET
    labels: _Labels | UnsetType = UNSET
    models: _Models | UnsetType = UNSET
    active: Annotated[bool, doc("False revokes it, true undoes that.")] | UnsetType = UNSET


def _check_expiry(given: Collection[str], values: Mapping[str, Any], now: datetime) -> Iterable[str]:
    ways = [name for name in _EXPIRY if name in given]
    if len(ways) > 1:
        yield f"only one of {', '.join(map(repr, ways))} can be given"
    expires_at = values.get("expires_at")
    if expires_at is not None and not now < expires_at <= now + MAX_LIFETIME:
        yield "'expires_at' must be in the future, and at most ten years ahead"


def _expiry(body: NewToken | TokenChanges, now: datetime) -> datetime | None:
    """When the token is to expire; None if the body does not say."""
    if body.duration_minutes:
        return now + timedelta(minutes=body.duration_minutes)
    if body.duration_hours:
        return now + timedelta(hours=body.duration_hours)
    return body.expires_at or None


class ListTokens(ByCreation, kw_only=True):
    """The tokens to list."""

    project_id: Annotated[Reference, doc("Only tokens of this project: its id or name.")] | UnsetType = UNSET
    active_only: Annotated[bool, doc("Leave out tokens that are revoked, expired or used up.")] | UnsetType = UNSET


def _shown(struct: type[T], record: records.Token, **secret: str) -> T:
    return shown(struct, record, labels=record.labels or {}, models=patterns_of(record.models), **secret)


def _locked(connection: Connection, token_id: str) -> records.Token:
    return found(queries.get_locked(connection, token_id), TokenNotFound, token_id)


@Operation(RESOURCE, "GET", _COLLECTION, "listTokens", page_of(Token), query=ListTokens)
async def _list(call: Call, query: ListTokens) -> object:
    """List tokens, the newest first."""
    usable_at = call.now if query.active_only else None
    project_id = await call.resolve(query.project_id, project_queries.find, ProjectNotFound)
    rows = await call.services.database.read(
        queries.page, query.limit + 1, query.cursor or None, project_id or None, usable_at
    )
    return page(rows, query.limit, lambda row: _shown(Token, row), position_cursor)


@Operation(
    RESOURCE,
    "POST",
    _COLLECTION,
    "createToken",
    TokenWithSecret,
    status=201,
    body=NewToken,
    check=_check_expiry,
    errors=(ProjectNotFound, ProjectDeactivated),
)
async def _create(call: Call, new: NewToken) -> TokenWithSecret:
    """Create a token. It expires after 30 days unless the body says otherwise."""
    now, secret = call.now, new_secret()
    project_id = await call.resolve(new.project_id, project_queries.find, ProjectNotFound)
    token = records.Token(
        id=new_id(),
        project_id=project_id,
        digest=digest(secret),
        last4=last4(secret),
        name=new.name,
        active=True,
        expires_at=_expiry(new, now) or now + DEFAULT_LIFETIME,
        max_requests=new.max_requests,
        request_count=0,
        created_at=now,
        updated_at=now,
        revoked_at=None,
        last_used_at=None,
        labels=new.labels or None,
        models=stored_patterns(new.models),
    )

    def create(connection: Connection) -> Change[records.Token]:
        project = found(project_queries.get(connection, token.project_id), ProjectNotFound, token.project_id)
        if not project.active:
            raise ProjectDeactivated
        queries.create(connection, token)
        return Change(None, token)

    await call.write(create)
    _log.info("token created", token_id=token.id, project_id=token.project_id, expires_at=token.expires_at)
    return _shown(TokenWithSecret, token, token=secret)


@Operation(RESOURCE, "GET", _ONE, "getToken", Token)
async def _get(call: Call) -> Token:
    """Show a token."""
    return _shown(Token, found(await call.services.database.read(queries.get, call.id), TokenNotFound, call.id))


@Operation(RESOURCE, "PATCH", _ONE, "updateToken", Token, body=TokenChanges, check=_check_expiry)
async def _update(call: Call, body: TokenChanges) -> Token:
    """Change a token; the next request on every replica uses the change."""
    sent = given(body)
    changes: Any = {name: value for name, value in sent.items() if name not in _EXPIRY}
    if (expires_at := _expiry(body, call.now)) is not None:
        changes["expires_at"] = expires_at
    if "labels" in changes:
        changes["labels"] = changes["labels"] or None
    if "models" in changes:
        changes["models"] = stored_patterns(changes["models"])

    def change(connection: Connection) -> Change[records.Token]:
        token = _locked(connection, call.id)
        return Change(token, queries.change(connection, token, changes, call.now))

    token = await call.write(change)
    _log.info("token changed", token_id=token.id, project_id=token.project_id, fields=", ".join(sent))
    return _shown(Token, token)


@Operation(RESOURCE, "DELETE", _ONE, "revokeToken", None, status=204)
async def _revoke(call: Call) -> None:
    """Revoke a token. Its row stays, for the ledger."""

    def revoke(connection: Connection) -> Change[records.Token]:
        token = _locked(connection, call.id)
        return Change(token, queries.change(connection, token, {"active": False}, call.now) if token.active else token)

    token = await call.write(revoke)
    _log.info("token revoked", token_id=token.id, project_id=token.project_id)


@Operation(RESOURCE, "POST", _ONE + "/rotate", "rotateToken", TokenWithSecret, errors=(TokenRevoked,))
async def _rotate(call: Call) -> TokenWithSecret:
    """Give a token a new secret; the old one is refused from now on. Limits, expiry and count stay."""
    secret = new_secret()

    def rotate(connection: Connection) -> Change[records.Token]:
        token = _locked(connection, call.id)
        if not token.active:
            raise TokenRevoked
        return Change(token, queries.rotate(connection, token, digest(secret), last4(secret), call.now))

    token = await call.write(rotate)
    _log.info("token rotated", token_id=token.id, project_id=token.project_id)
    return _shown(TokenWithSecret, token, token=secret)
