"""Credentials: a provider's API key, for any number of projects. The key goes in and never comes out."""

from __future__ import annotations

from typing import Annotated, Any, Final

from attrs import asdict, frozen
from msgspec import UNSET, Meta, Struct, UnsetType

from db import Connection, records
from db.errors import Duplicate
from db.queries import credentials as queries
from db.queries import projects as project_queries
from llm_proxy.api.operations import Call, Change, Operation, Resource, found
from llm_proxy.api.pages import ByCreation, page, page_of, position_cursor
from llm_proxy.api.schema import MAX_SAFE_INTEGER, Body, Changes, Id, Key, Timestamp, doc, given, shown, text
from llm_proxy.errors import CredentialNotFound, InvalidBody, NameTaken
from llm_proxy.gateway.auth import documents
from llm_proxy.gateway.providers.provider import Provider
from llm_proxy.identifiers import new_id
from llm_proxy.logging import log
from llm_proxy.secrets import encryption, keys

_COLLECTION: Final = "/manage/credentials"
_ONE: Final = "/manage/credentials/{credential_id}"

_Name = Annotated[str, text(1, 255), doc("Unique among all credentials.")]

TAKEN: Final = "Another credential has this name, and names of credentials are unique. Choose another one."

_log = log.logger("manage")

RESOURCE: Final = Resource(
    "Credentials",
    "credential",
    CredentialNotFound,
    queries.find,
    hints={
        (_ONE, "DELETE"): 'Credentials are never deleted, because projects refer to them: PATCH {"active": false}.',
    },
)


class Credential(Struct):
    """A credential, without its API key."""

    id: Annotated[Id, doc("Its id.")]
    name: _Name
    provider: Annotated[str, text(1, 64), doc("The provider of the API key.")]
    api_key_last4: Annotated[str, text(0, 4), doc("The last characters of the API key.")]
    active: Annotated[bool, doc("Whether requests with its API key are accepted.")]
    projects: Annotated[int, Meta(ge=0, le=MAX_SAFE_INTEGER), doc("Number of projects that use it.")]
    created_at: Annotated[Timestamp, doc("When it was created.")]
    updated_at: Annotated[Timestamp, doc("When it was last changed.")]


class NewCredential(Body, kw_only=True):
    """A credential to create."""

    name: _Name
    provider: Annotated[str, text(1, 64), doc("The provider of the API key: one of those that are configured.")]
    api_key: Annotated[Key, doc("The provider's API key. It is stored encrypted and never shown.")]


class CredentialChanges(Changes, kw_only=True):
    """Changes of a credential."""

    name: _Name | UnsetType = UNSET
    active: (
        Annotated[bool, doc("False refuses all requests that need it, on every server from the next request on.")]
        | UnsetType
    ) = UNSET


class NewKey(Body, kw_only=True):
    """A new API key."""

    api_key: Annotated[Key, doc("The new API key, used from the next request on.")]


class ListCredentials(ByCreation, kw_only=True):
    """The credentials to list."""

    provider: Annotated[str, text(1, 64), doc("Only credentials of this provider.")] | UnsetType = UNSET


@frozen
class _Used(records.Credential):
    """A credential, and how many projects use it."""

    projects: int


def configured(call: Call, name: str) -> Provider:
    """The provider of this name; raises `InvalidBody` if there is none now: a reload may add or remove some."""
    providers = call.services.providers.by_name
    if name not in providers:
        raise InvalidBody(f"'provider' must be one of {', '.join(providers)}, the configured ones.")
    return providers[name]


def check_key(call: Call, provider: str, api_key: str) -> None:
    """Raise `InvalidBody` if the provider is not configured, or its `auth` needs a correct document instead."""
    if mistakes := documents.check(configured(call, provider).auth, api_key):
        raise InvalidBody(f"'api_key': {'; '.join(mistakes)}.")


def made(call: Call, name: str, provider: str, api_key: str) -> records.Credential:
    """Make a new credential."""
    check_key(call, provider, api_key)
    identity = new_id()
    return records.Credential(
        id=identity,
        name=name,
        provider=provider,
        **sealed(call, identity, api_key),
        active=True,
        created_at=call.now,
        updated_at=call.now,
    )


def sealed(call: Call, credential_id: str, api_key: str) -> Any:
    """The values of a credential that change with its API key."""
    return {
        "api_key": call.services.keyring.seal(api_key, credential_id),
        "api_key_last4": encryption.last4(api_key),
    }


def _used(connection: Connection, *found: records.Credential) -> list[_Used]:
    counts = queries.count_users(connection, [one.id for one in found])
    return [_Used(**asdict(one), projects=counts[one.id]) for one in found]


def _locked(connection: Connection, credential_id: str) -> _Used:
    (credential,) = _used(
        connection,
        found(queries.lock(connection, [credential_id]).get(credential_id), CredentialNotFound, credential_id),
    )
    return credential


@Operation(RESOURCE, "GET", _COLLECTION, "listCredentials", page_of(Credential), query=ListCredentials)
async def _list(call: Call, query: ListCredentials) -> object:
    """List the credentials, the newest first."""

    def read(connection: Connection) -> list[_Used]:
        rows = queries.page(connection, query.limit + 1, query.cursor or None, query.provider or None)
        return _used(connection, *rows)

    rows = await call.services.database.read(read)
    return page(rows, query.limit, lambda row: shown(Credential, row), position_cursor)


@Operation(
    RESOURCE, "POST", _COLLECTION, "createCredential", Credential, status=201, body=NewCredential, errors=(NameTaken,)
)
async def _create(call: Call, new: NewCredential) -> Credential:
    """Create a credential."""
    credential = made(call, new.name, new.provider, new.api_key)

    def create(connection: Connection) -> Change[_Used]:
        queries.create(connection, credential)
        return Change(None, _Used(**asdict(credential), projects=0))

    try:
        answer = await call.write(create)
    except Duplicate:
        raise NameTaken(TAKEN) from None
    _log.info("credential created", credential_id=answer.id, name=answer.name, provider=answer.provider)
    return shown(Credential, answer)


@Operation(RESOURCE, "GET", _ONE, "getCredential", Credential)
async def _get(call: Call) -> Credential:
    """Show a credential."""

    def read(connection: Connection) -> list[_Used]:
        return _used(connection, found(queries.get(connection, call.id), CredentialNotFound, call.id))

    (credential,) = await call.services.database.read(read)
    return shown(Credential, credential)


@Operation(RESOURCE, "PATCH", _ONE, "updateCredential", Credential, body=CredentialChanges, errors=(NameTaken,))
async def _update(call: Call, body: CredentialChanges) -> Credential:
    """Change a credential; the next request on every replica uses the change."""
    sent: Any = given(body)

    def change(connection: Connection) -> Change[_Used]:
        credential = _locked(connection, call.id)
        return Change(credential, queries.change(connection, credential, sent, call.now))

    try:
        answer = await call.write(change)
    except Duplicate:
        raise NameTaken(TAKEN) from None
    _log.info("credential changed", credential_id=answer.id, fields=", ".join(sent))
    return shown(Credential, answer)


@Operation(RESOURCE, "POST", _ONE + "/rotate", "rotateCredential", Credential, body=NewKey)
async def _rotate(call: Call, body: NewKey) -> Credential:
    """Give a credential a new API key, which all its projects use from the next request on."""

    def rotate(connection: Connection) -> Change[_Used]:
        before = _locked(connection, call.id)
        check_key(call, before.provider, body.api_key)
        credential = queries.change(connection, before, sealed(call, before.id, body.api_key), call.now)
        users, ring = queries.lock_users_by_default(connection, credential.id), call.services.keyring
        project_queries.set_keys(connection, [keys.with_key(one, credential, ring) for one in users], call.now)
        return Change(before, credential)

    answer = await call.write(rotate)
    _log.info("credential rotated", credential_id=answer.id, projects=answer.projects)
    return shown(Credential, answer)
