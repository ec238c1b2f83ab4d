"""The audit log: one entry for every change and every refused call, in the transaction of the change."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import structlog
import trio
import trio.testing
from attrs import Factory, evolve, field, frozen
from sqlalchemy import Connection, select, text

from db.database import Database
from db.errors import DatabaseError, Unavailable
from db.queries import audit, credentials, projects, tokens
from db.records import AuditEntry
from db.schema import limits, requests, usage_hourly
from llm_proxy.api import audit as audit_api
from llm_proxy.api.operations import Change
from llm_proxy.identifiers import new_id
from tests.api.conftest import MANAGEMENT_TOKEN, NOON, Api, make_api
from tests.api.test_requests import SWEPT, settled
from tests.db.queries.factories import an_audit_entry

NOWHERE = "6f1b4a52-8a39-4c0e-9d0e-6c1f7d1f3b11"
NOON_TEXT = "2027-01-15T12:00:00.123456Z"
ADDRESS = "198.51.100.7"
KEY, OTHER_KEY = "sk-canary-api-key-1234", "sk-canary-other-key-1234"
HIDDEN = "[redacted]"
#: A token's secret, in the place of an id.
PASTED = f"sk-{'a' * 43}"

NEW_PROJECT = {
    "id": ANY,
    "name": "new",
    "provider": "openai",
    "api_key": HIDDEN,
    "api_key_last4": "1234",
    "active": True,
    "created_at": NOON_TEXT,
    "allow_unknown_objects": False,
    "allow_request_labels": False,
    "stream_usage": None,
    "models": None,
    "credentials": {"openai": "new"},
}
NEW_CREDENTIAL = {
    "id": ANY,
    "name": "shared",
    "provider": "openai",
    "api_key": HIDDEN,
    "api_key_last4": "1234",
    "active": True,
    "projects": 0,
    "created_at": NOON_TEXT,
}
OWN_CREDENTIAL = {name: value for name, value in (NEW_CREDENTIAL | {"name": "new"}).items() if name != "projects"}
NEW_TOKEN = {
    "id": ANY,
    "project_id": "{project}",
    "digest": HIDDEN,
    "last4": ANY,
    "name": "",
    "active": True,
    "expires_at": "2027-02-14T12:00:00.123456Z",
    "max_requests": None,
    "labels": None,
    "request_count": 0,
    "created_at": NOON_TEXT,
    "revoked_at": None,
    "last_used_at": None,
    "limited": False,
    "models": None,
}
NEW_LIMIT = {
    "id": ANY,
    "scope": "project",
    "subject": "{project}",
    "metric": "cost",
    "period": "month",
    "amount": 50 * 10**9,
    "models": None,
    "policy": "settled",
    "wait_ms": 0,
    "warn_at": 80,
    "allow_unpriced": False,
    "created_at": NOON_TEXT,
}
OLD_LIMIT = NEW_LIMIT | {
    "id": "{limit}",
    "scope": "proxy",
    "subject": "",
    "metric": "requests",
    "period": "day",
    "amount": 100,
    "warn_at": None,
}


@frozen
class Case:
    """A call and its entry. Names in braces are ids of what `World` has."""

    operation: str
    resource: str
    request: str
    status: int
    error: str = ""
    body: Any = None
    resource_id: Any = ""
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None
    #: How the entry of a credential that the call has changed too differs from the first.
    credential: Mapping[str, Any] | None = None
    token: str | None = None
    options: Mapping[str, Any] = Factory(dict)

    @property
    def outcome(self) -> str:
        return "refused" if self.error else "accepted"


def made(operation: str, request: str, status: int = 200, **more: Any) -> Case:
    kind = next(kind for kind in ("project", "credential", "token", "limit") if kind.title() in operation)
    return Case(operation, kind, request, status, **more)


PROJECT, TOKEN = "/manage/projects/{project}", "/manage/tokens/{token}"
LIMIT, GONE_LIMIT = "/manage/limits/{limit}", f"/manage/limits/{NOWHERE}"
CREDENTIAL, GONE_CREDENTIAL = "/manage/credentials/{credential}", f"/manage/credentials/{NOWHERE}"
GONE_PROJECT, GONE_TOKEN = f"/manage/projects/{NOWHERE}", f"/manage/tokens/{NOWHERE}"
OFF = {"active": False}

CHANGES = [
    made(
        "createProject",
        "POST /manage/projects",
        201,
        body={"name": "new", "api_key": KEY},
        resource_id=ANY,
        after=NEW_PROJECT,
        credential={"resource_id": ANY, "after": OWN_CREDENTIAL},
    ),
    made(
        "updateProject",
        f"PATCH {PROJECT}",
        body={"name": "renamed", "active": True},
        resource_id="{project}",
        before={"name": "p"},
        after={"name": "renamed"},
    ),
    # The keys have the same last characters.
    made(
        "updateProject",
        f"PATCH {PROJECT}",
        body={"api_key": OTHER_KEY},
        resource_id="{project}",
        before={"api_key": HIDDEN},
        after={"api_key": HIDDEN},
        credential={"resource_id": "{credential}"},
    ),
    made(
        "updateProject",
        f"PATCH {PROJECT}",
        body={"api_key": OTHER_KEY[:-1], "provider": "anthropic"},
        resource_id="{project}",
        before={"api_key": HIDDEN, "api_key_last4": "1234", "provider": "openai", "credentials": {"openai": "p"}},
        after={
            "api_key": HIDDEN,
            "api_key_last4": "-123",
            "provider": "anthropic",
            "credentials": {"anthropic": "p (anthropic)", "openai": "p"},
        },
        credential={
            "resource_id": ANY,
            "before": None,
            "after": OWN_CREDENTIAL | {"name": "p (anthropic)", "provider": "anthropic", "api_key_last4": "-123"},
        },
    ),
    made("updateProject", f"PATCH {PROJECT}", body={"name": "p"}, resource_id="{project}"),
    made("revokeProjectTokens", f"POST {PROJECT}/tokens/revoke", resource_id="{project}", after={"revoked": 1}),
    made(
        "createCredential",
        "POST /manage/credentials",
        201,
        body={"name": "shared", "provider": "openai", "api_key": KEY},
        resource_id=ANY,
        after=NEW_CREDENTIAL,
    ),
    made(
        "updateCredential",
        f"PATCH {CREDENTIAL}",
        body=OFF,
        resource_id="{credential}",
        before={"active": True},
        after={"active": False},
    ),
    made(
        "rotateCredential",
        f"POST {CREDENTIAL}/rotate",
        body={"api_key": OTHER_KEY},
        resource_id="{credential}",
        before={"api_key": HIDDEN},
        after={"api_key": HIDDEN},
    ),
    made(
        "updateProject",
        f"PATCH {PROJECT}",
        body={"credentials": ["inactive"]},
        resource_id="{project}",
        before={"api_key": HIDDEN, "credentials": {"openai": "p"}},
        after={"api_key": HIDDEN, "credentials": {"openai": "inactive"}},
    ),
    Case("reloadServer", "server", "POST /manage/reload", 200),
    Case(
        "resolveRequest",
        "request",
        "POST /manage/requests/{request}/resolve",
        200,
        body={"cost": "0.12"},
        resource_id="{request}",
        before={"cost_nanousd": None, "cost_basis": None},
        after={"cost_nanousd": 120_000_000, "cost_basis": "provider"},
    ),
    made(
        "createLimit",
        "POST /manage/limits",
        201,
        body={"project_id": "p", "metric": "cost", "window": "month", "amount": "50.00", "warn_at": 80},
        resource_id=ANY,
        after=NEW_LIMIT,
    ),
    made(
        "updateLimit",
        f"PATCH {LIMIT}",
        body={"amount": 5},
        resource_id="{limit}",
        before={"amount": 100},
        after={"amount": 5},
    ),
    made("deleteLimit", f"DELETE {LIMIT}", 204, resource_id="{limit}", before=OLD_LIMIT),
    made("createToken", "POST /manage/tokens", 201, body={"project_id": "{project}"}, resource_id=ANY, after=NEW_TOKEN),
    made(
        "updateToken",
        f"PATCH {TOKEN}",
        body={"max_requests": 5, "active": False},
        resource_id="{token}",
        before={"active": True, "max_requests": None, "revoked_at": None},
        after={"active": False, "max_requests": 5, "revoked_at": NOON_TEXT},
    ),
    made(
        "revokeToken",
        f"DELETE {TOKEN}",
        204,
        resource_id="{token}",
        before={"active": True, "revoked_at": None},
        after={"active": False, "revoked_at": NOON_TEXT},
    ),
    made("revokeToken", "DELETE /manage/tokens/{revoked}", 204, resource_id="{revoked}"),
    made(
        "rotateToken",
        f"POST {TOKEN}/rotate",
        resource_id="{token}",
        before={"digest": HIDDEN, "last4": ANY},
        after={"digest": HIDDEN, "last4": ANY},
    ),
]
TOO_LONG = {"data": b" " * (1024 * 1024 + 1)}
NO_JSON = {"data": b"name=p", "headers": {"Content-Type": "text/plain"}}
REFUSALS = [
    made("createProject", "POST /manage/projects", 409, error="name_taken", body={"name": "p", "api_key": KEY}),
    made("createProject", "POST /manage/projects", 400, error="invalid_body", body={"name": "q", "api_key": ""}),
    made("createProject", "POST /manage/projects", 400, error="invalid_json", options={"data": b"{"}),
    made("createProject", "POST /manage/projects", 413, error="request_too_large", options=TOO_LONG),
    made("createProject", "POST /manage/projects", 415, error="unsupported_media_type", options=NO_JSON),
    made("listProjects", "GET /manage/projects?limit=0", 400, error="invalid_query"),
    made("getProject", f"GET {GONE_PROJECT}", 404, error="project_not_found", resource_id=NOWHERE),
    made("getProject", f"GET /manage/projects/{PASTED}", 404, error="project_not_found", resource_id=HIDDEN),
    made("listCredentials", "GET /manage/credentials?limit=0", 400, error="invalid_query"),
    made("getCredential", f"GET {GONE_CREDENTIAL}", 404, error="credential_not_found", resource_id=NOWHERE),
    made(
        "createCredential",
        "POST /manage/credentials",
        409,
        error="name_taken",
        body={"name": "p", "provider": "openai", "api_key": KEY},
    ),
    made(
        "updateCredential",
        f"PATCH {GONE_CREDENTIAL}",
        404,
        error="credential_not_found",
        body=OFF,
        resource_id=NOWHERE,
    ),
    made(
        "rotateCredential",
        f"POST {GONE_CREDENTIAL}/rotate",
        404,
        error="credential_not_found",
        body={"api_key": KEY},
        resource_id=NOWHERE,
    ),
    made("createToken", "POST /manage/tokens", 409, error="ambiguous_name", body={"project_id": "1234"}),
    Case("reloadServer", "server", "POST /manage/reload", 401, "unauthorized", token="wrong"),
    made("updateProject", f"PATCH {GONE_PROJECT}", 404, error="project_not_found", body=OFF, resource_id=NOWHERE),
    made(
        "updateProject",
        f"PATCH {PROJECT}",
        400,
        error="invalid_body",
        body={"provider": "anthropic"},
        resource_id="{project}",
    ),
    made(
        "revokeProjectTokens",
        f"POST {GONE_PROJECT}/tokens/revoke",
        404,
        error="project_not_found",
        resource_id=NOWHERE,
    ),
    made("createToken", "POST /manage/tokens", 404, error="project_not_found", body={"project_id": NOWHERE}),
    made("createToken", "POST /manage/tokens", 409, error="project_inactive", body={"project_id": "{inactive}"}),
    made("listTokens", "GET /manage/tokens?limit=x", 400, error="invalid_query"),
    made("getToken", f"GET {GONE_TOKEN}", 404, error="token_not_found", resource_id=NOWHERE),
    made("updateToken", f"PATCH {TOKEN}", 400, error="invalid_body", body={}, resource_id="{token}"),
    made("revokeToken", f"DELETE {GONE_TOKEN}", 404, error="token_not_found", resource_id=NOWHERE),
    made("rotateToken", "POST /manage/tokens/{revoked}/rotate", 409, error="token_revoked", resource_id="{revoked}"),
    Case("listRefusals", "refusal", "GET /manage/refusals?code=fine", 400, "invalid_query"),
    made("createLimit", "POST /manage/limits", 400, error="invalid_body", body={"metric": "cost", "amount": "1"}),
    made("listLimits", "GET /manage/limits?limit=0", 400, error="invalid_query"),
    made("getLimit", f"GET {GONE_LIMIT}", 404, error="limit_not_found", resource_id=NOWHERE),
    made("updateLimit", f"PATCH {LIMIT}", 400, error="invalid_body", body={"wait": "5s"}, resource_id="{limit}"),
    made("deleteLimit", f"DELETE {GONE_LIMIT}", 404, error="limit_not_found", resource_id=NOWHERE),
    Case("listRequests", "request", "GET /manage/requests?outcome=fine", 400, "invalid_query"),
    Case("getUsage", "usage", "GET /manage/usage?group_by=colour", 400, "invalid_query"),
    Case("listUnbooked", "usage", "GET /manage/usage/unbooked?cursor=x", 400, "invalid_query"),
    Case(
        "resolveRequest",
        "request",
        f"POST /manage/requests/{NOWHERE}/resolve",
        404,
        "request_not_found",
        body={"void": True},
        resource_id=NOWHERE,
    ),
    Case("getRequest", "request", "GET /manage/requests/req_1", 404, "request_not_found", resource_id="req_1"),
    # An id may be any text here, and somebody has pasted a token.
    Case("getRequest", "request", f"GET /manage/requests/{PASTED}", 404, "request_not_found", resource_id=HIDDEN),
    Case("listAudit", "audit", "GET /manage/audit?from=yesterday", 400, "invalid_query"),
    # No operations.
    Case("", "project", f"DELETE {PROJECT}", 405, "method_not_allowed"),
    Case("", "", "GET /manage/keys", 404, "not_found"),
    # Without authentication.
    Case("revokeToken", "token", f"DELETE {TOKEN}", 401, "unauthorized", token="wrong", resource_id="{token}"),
    Case("", "", "GET /manage/keys", 401, "unauthorized", token="wrong"),
]


@frozen
class World:
    """A project with one active token, a revoked token, and a project that is inactive."""

    api: Api
    ids: Mapping[str, str]

    def fill(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: self.fill(inner) for name, inner in value.items()}
        if isinstance(value, str):
            for name, identity in self.ids.items():
                value = value.replace(f"{{{name}}}", identity)
        return value


@pytest.fixture
async def world(api: Api) -> World:
    project = await api.project(name="p", api_key=KEY)
    inactive = await api.project(name="inactive")
    assert (await api("PATCH", f"/manage/projects/{inactive['id']}", OFF)).status == 200
    made = {"token": await api.token(project), "revoked": await api.token(project)}
    assert (await api("DELETE", f"/manage/tokens/{made['revoked']['id']}")).status == 204
    reply = await api("POST", "/manage/limits", {"metric": "requests", "window": "day", "amount": 100})
    assert reply.status == 201, reply
    made["limit"] = reply.json
    (row,) = await settled(api, SWEPT)
    made["request"] = {"id": row.id}
    found = {"project": project, "inactive": inactive, "credential": project["credentials"][0]} | made
    return World(api, {name: one["id"] for name, one in found.items()})


async def entries(api: Api, query: str = "") -> list[dict[str, Any]]:
    reply = await api("GET", f"/manage/audit?limit=500{query}")
    assert reply.status == 200, reply
    return list(reply.json["data"])


@pytest.mark.parametrize("case", CHANGES + REFUSALS, ids=lambda case: f"{case.request[:50]} {case.status} {case.error}")
async def test_a_call_leaves_its_entries_and_no_others(world: World, case: Case) -> None:
    api = world.api
    earlier = await entries(api)
    method, path = world.fill(case.request).split(" ")
    options = dict(case.options) if case.token is None else {"token": case.token, **case.options}
    reply = await api(method, path, world.fill(case.body), address=ADDRESS, **options)
    assert reply.status == case.status, reply

    *second, entry = [one for one in await entries(api) if one not in earlier]
    assert await entries(api) == [*second, entry, *earlier]
    assert entry == {
        "id": reply.headers["X-LLM-Proxy-Request-ID"],
        "occurred_at": NOON_TEXT,
        "actor": "management token" if case.token is None else "",
        "address": ADDRESS,
        "operation": case.operation,
        "resource": case.resource,
        "resource_id": world.fill(case.resource_id),
        "outcome": case.outcome,
        "status": case.status,
        "error": case.error,
        "before": world.fill(case.before),
        "after": world.fill(case.after),
    }
    wanted = [] if case.credential is None else [{**entry, "id": ANY, "resource": "credential", **case.credential}]
    assert second == [world.fill(one) for one in wanted]
    if case.resource_id is ANY:
        assert entry["resource_id"] == reply.json["id"] == entry["after"]["id"]


def test_every_kind_of_resource_can_be_listed() -> None:
    assert {case.resource for case in REFUSALS} - {""} == set(audit_api.KINDS)


async def test_the_table_has_every_operation(api: Api) -> None:
    paths = (await api("GET", "/openapi.json")).json["paths"]
    operations = {
        (operation["operationId"], method)
        for path, methods in paths.items()
        if path.startswith("/manage")
        for method, operation in methods.items()
    }
    assert {case.operation for case in CHANGES} == {name for name, method in operations if method != "get"}
    assert {case.operation for case in REFUSALS} - {""} == {name for name, _ in operations}
    assert {400, 401, 404, 405, 409, 413, 415} <= {case.status for case in REFUSALS}


async def test_an_accepted_read_leaves_no_entry(world: World) -> None:
    earlier = await entries(world.api)
    for path in ("/manage/projects", PROJECT, "/manage/tokens", TOKEN, "/manage/requests", "/manage/audit"):
        assert (await world.api("GET", world.fill(path))).status == 200
    assert await entries(world.api) == earlier


async def test_an_entry_cannot_be_changed_or_deleted(world: World) -> None:
    (entry, *_) = await entries(world.api)
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert (await world.api(method, "/manage/audit", {})).status == 405
        assert (await world.api(method, f"/manage/audit/{entry['id']}", {})).status == 404
    assert entry in await entries(world.api)


# A change and its entry are one transaction.


def state(connection: Connection) -> list[Any]:
    """Everything that the API can change."""
    return [
        projects.page(connection, 100, None),
        credentials.page(connection, 100, None, None),
        *(connection.execute(select(table).order_by(table.c[0])).all() for table in (limits, requests, usage_hourly)),
        tokens.page(connection, 100, None, None, None),
    ]


async def changing_calls(api: Api) -> tuple[list[tuple[str, str, Any]], Api]:
    """A call of each operation that changes something, all acceptable."""
    project = await api.project()
    token = await api.token(project)
    limit = {"metric": "requests", "window": "day", "amount": 100}
    made = await api("POST", "/manage/limits", limit)
    (row,) = await settled(api, SWEPT)
    return [
        ("POST", "/manage/limits", limit),
        ("PATCH", f"/manage/limits/{made.json['id']}", {"amount": 200}),
        ("DELETE", f"/manage/limits/{made.json['id']}", None),
        ("POST", f"/manage/requests/{row.id}/resolve", {"cost": "0.12"}),
        ("POST", "/manage/projects", {"name": "new", "api_key": KEY}),
        ("PATCH", f"/manage/projects/{project['id']}", {"name": "renamed"}),
        ("POST", "/manage/credentials", {"name": "shared", "provider": "openai", "api_key": KEY}),
        ("PATCH", f"/manage/credentials/{project['credentials'][0]['id']}", OFF),
        ("POST", f"/manage/credentials/{project['credentials'][0]['id']}/rotate", {"api_key": OTHER_KEY}),
        ("POST", "/manage/tokens", {"project_id": project["id"]}),
        ("PATCH", f"/manage/tokens/{token['id']}", {"name": "renamed"}),
        ("POST", f"/manage/tokens/{token['id']}/rotate", None),
        ("POST", f"/manage/projects/{project['id']}/tokens/revoke", None),
        ("DELETE", f"/manage/tokens/{token['id']}", None),
    ], api


async def test_the_calls_are_of_every_operation_that_changes_the_database(api: Api) -> None:
    paths = (await api("GET", "/openapi.json")).json["paths"]
    operations = {
        (method.upper(), re.sub(r"{\w+}", "ID", path))
        for path, methods in paths.items()
        if path.startswith("/manage/") and path != "/manage/reload"
        for method in methods
        if method != "get"
    }
    calls, _ = await changing_calls(api)
    assert {(method, re.sub(r"[0-9a-f-]{36}", "ID", path)) for method, path, _ in calls} == operations


async def test_without_its_entry_there_is_no_change(any_api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database refuses the entry after it has taken the change."""
    calls, api = await changing_calls(any_api)
    before = await api.services.database.read(state)

    def fail(connection: Connection, entry: AuditEntry) -> None:
        connection.execute(text("INSERT INTO audit (id) VALUES (NULL)"))

    monkeypatch.setattr(audit, "create", fail)
    for method, path, body in calls:
        assert (await api(method, path, body)).status == 503, path
    assert await api.services.database.read(state) == before


async def test_without_the_change_there_is_no_entry_of_one(any_api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit of a transaction that has both does not come about."""
    calls, api = await changing_calls(any_api)
    before = await api.services.database.read(state), await entries(api)

    class Cut(Exception):
        """The end of the process between the last statement and the commit."""

    create = audit.create

    def cut(connection: Connection, entry: AuditEntry) -> None:
        create(connection, entry)
        raise Cut

    monkeypatch.setattr(audit, "create", cut)
    for method, path, body in calls:
        assert (await api(method, path, body)).status == 500, path
    monkeypatch.undo()
    assert (await api.services.database.read(state), await entries(api)) == before


async def test_a_change_that_is_tried_again_has_its_entries_once(any_api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that loses against another one runs again as a whole."""
    await any_api.project(name="first")
    create, failures = audit.create, [1]

    def deadlock(connection: Connection, entry: AuditEntry) -> None:
        create(connection, entry)
        if failures:
            failures.pop()
            raise_conflict(any_api.services.database)

    monkeypatch.setattr(audit, "create", deadlock)
    await any_api.project(name="second")
    assert [entry["after"]["name"] for entry in await entries(any_api)] == ["second", "second", "first", "first"]
    assert failures == []


def raise_conflict(database: Database) -> None:
    from db.database import _Retry  # noqa: PLC0415 - what the database layer raises inside
    from db.dialects.failure import FailureKind  # noqa: PLC0415 - as above

    raise _Retry(DatabaseError("lost against another transaction"), FailureKind.CONTENTION)


# Reloading.


def with_file(api: Api, path: Path, database: Any = None) -> tuple[Api, Path]:
    """The same server with a provider file, which it has not read yet."""
    file = path / "providers.yaml"
    settings = evolve(api.services.settings, api_config_path=file)
    return make_api(evolve(api.services, settings=settings, database=database or api.services.database)), file


async def test_a_reload_without_its_entry_changes_nothing(api: Api, tmp_path: Path) -> None:
    reading, file = with_file(api, tmp_path, NoWrites(api.services.database))
    file.write_text("apis: {openai: {base_url: https://other.example}}")
    before = reading.services.providers
    assert (await reading("POST", "/manage/reload")).status == 503
    assert reading.services.providers is before
    assert await entries(api) == []


async def test_the_entry_of_a_reload_shows_where_api_keys_go_and_no_secrets(api: Api, tmp_path: Path) -> None:
    reading, file = with_file(api, tmp_path)

    async def reloaded(text: str) -> tuple[Any, Any]:
        file.write_text(text)
        assert (await reading("POST", "/manage/reload")).status == 200
        (entry, *_) = await entries(api)
        return entry["before"], entry["after"]

    await reloaded("apis: {openai: {base_url: https://one.example}}")
    one, two = ({"base_url": f"https://{name}.example", "auth": "bearer"} for name in ("one", "two"))

    moved = await reloaded("apis: {openai: {base_url: https://two.example}}")
    assert moved == ({"apis": {"openai": one}}, {"apis": {"openai": two | {"changed": ["base_url"]}}})
    moved = await reloaded("apis: {openai: {base_url: https://two.example, headers: {x-key: canary}}}")
    assert moved == ({"apis": {"openai": two}}, {"apis": {"openai": two | {"changed": ["headers"]}}})
    first = "openai: {base_url: https://two.example, headers: {x-key: canary}}"
    second = "second: {base_url: https://one.example, allowed_endpoints: [/v1/chat/completions]}"
    before, after = await reloaded(f"apis: {{{first}, {second}}}")
    assert before == {"apis": {}, "providers": ["openai"]}
    assert after == {"apis": {"second": one}, "providers": ["openai", "second"]}


# Who and where.


async def test_the_interface_of_a_link_local_address_is_left_out(api: Api) -> None:
    await api("GET", "/manage/projects", token=None, address=f"fe80::1%{'ö' * 100}")
    assert [entry["address"] for entry in await entries(api)] == ["fe80::1"]


@pytest.mark.parametrize("token", [MANAGEMENT_TOKEN, "wrong"])
async def test_an_id_that_grows_when_it_is_redacted_is_cut(any_api: Api, token: str) -> None:
    """Else PostgreSQL and MySQL refuse the entry, and the call is missing in the audit log."""
    await any_api("DELETE", f"/manage/tokens/{'plain:abcd%20' * 22}x", token=token)
    assert [entry["resource_id"] for entry in await entries(any_api)] == [("plain:[redacted] " * 22)[:255]]


# Refused calls without authentication.


async def test_a_flood_of_wrong_tokens_is_bounded(api: Api, mock_clock: trio.testing.MockClock) -> None:
    for _ in range(audit_api.LIMIT + 500):
        assert (await api("DELETE", f"/manage/tokens/{NOWHERE}", token="wrong", address=ADDRESS)).status == 401
    assert len(await entries(api)) == audit_api.LIMIT
    # Authenticated calls are written meanwhile.
    assert (await api("GET", f"/manage/tokens/{NOWHERE}")).status == 404
    assert len(await entries(api)) == audit_api.LIMIT + 1

    with structlog.testing.capture_logs() as logged:
        mock_clock.jump(audit_api.INTERVAL)
        with trio.fail_after(audit_api.INTERVAL):
            while len(found := await entries(api)) < audit_api.LIMIT + 2:
                mock_clock.jump(1)
    sum_ = found[0]
    assert len(found) == audit_api.LIMIT + 2
    assert (sum_["after"], sum_["error"], sum_["status"]) == ({"calls": 500}, "unauthorized", 401)
    assert {sum_[name] for name in ("actor", "address", "operation", "resource", "resource_id")} == {""}
    assert [line["calls"] for line in logged if "calls" in line] == [500]

    for _ in range(audit_api.LIMIT + 1):
        await api("GET", "/manage/projects", token=None)
    assert len(await entries(api)) == 2 * audit_api.LIMIT + 2, "the next interval has room again"


async def test_the_number_of_refused_calls_is_written_when_the_process_ends(api: Api) -> None:
    async with trio.open_nursery() as nursery:
        ending = make_api(evolve(api.services, nursery=nursery))
        for _ in range(audit_api.LIMIT + 7):
            await ending("GET", "/manage/projects", token=None)
        nursery.cancel_scope.cancel()
    assert (await entries(api))[0]["after"] == {"calls": 7}


class NoWrites:
    """A database that is read only."""

    def __init__(self, database: Database) -> None:
        self.read = database.read

    async def write(self, *_: object) -> None:
        raise Unavailable("the file system is full")


async def test_a_refusal_that_cannot_be_written_is_answered_and_logged(api: Api) -> None:
    full: Any = NoWrites(api.services.database)
    with structlog.testing.capture_logs() as logged:
        reply = await make_api(evolve(api.services, database=full))("GET", f"/manage/tokens/{NOWHERE}")
    assert reply.status == 404
    (line,) = [line for line in logged if line["event"] == "a refused call is missing in the audit log"]
    assert (line["operation"], line["status"], line["log_level"]) == ("getToken", 404, "error")


async def test_the_call_of_a_client_that_disconnects_is_written(api: Api) -> None:
    """The client is gone when its refusal is about to be written."""
    database = api.services.database
    with trio.CancelScope() as connection:

        class Leaving:
            read = database.read

            async def write(self, *arguments: Any) -> Any:
                connection.cancel()
                return await database.write(*arguments)

        leaving: Any = Leaving()
        await make_api(evolve(api.services, database=leaving))("GET", f"/manage/tokens/{NOWHERE}")
    assert connection.cancelled_caught
    assert [entry["operation"] for entry in await entries(api)] == ["getToken"]


# Lists.


async def written(api: Api, *rows: dict[str, Any]) -> list[AuditEntry]:
    made = [an_audit_entry(**row) for row in rows]
    for entry in made:
        await api.services.database.write(audit.create, entry)
    return made


async def test_entries_are_listed_by_page_and_filter(any_api: Api) -> None:
    api = any_api

    def hour(number: int) -> datetime:
        return NOON + timedelta(hours=number)

    rows = await written(
        api,
        {"occurred_at": hour(0)},
        {"occurred_at": hour(1), "resource_id": "größe"},
        {"occurred_at": hour(2), "resource": "project", "operation": "updateProject"},
        {"occurred_at": hour(3), "outcome": "refused", "status": 401, "error": "unauthorized", "actor": ""},
        {"occurred_at": hour(4), "resource_id": "T-1"},
    )

    async def listed(query: str) -> list[int]:
        found: list[int] = []
        cursor = ""
        while True:
            page = (await api("GET", f"/manage/audit?limit=2{query}{cursor}")).json
            found += [[row.id for row in rows].index(shown["id"]) for shown in page["data"]]
            if page["next_cursor"] is None:
                return found
            cursor = f"&cursor={page['next_cursor']}"

    assert await listed("") == [4, 3, 2, 1, 0]
    assert await listed("&resource_id=t-1") == [3, 2, 0]
    assert await listed("&resource_id=gr%C3%B6%C3%9Fe") == [1]
    assert await listed("&resource=project") == [2]
    assert await listed("&operation=updateToken") == [4, 3, 1, 0]
    assert await listed("&outcome=refused") == [3]
    assert await listed("&actor=management%20token") == [4, 2, 1, 0]
    assert await listed("&actor=m%C3%BCller") == []
    assert await listed("&from=2027-01-15T13:00:00.123456Z") == [4, 3, 2, 1]
    assert await listed("&from=2027-01-15") == [4, 3, 2, 1, 0]
    assert await listed("&to=2027-01-15") == []
    assert await listed("&to=2027-01-15T13:00:00.123456Z") == [0]
    assert await listed("&from=2027-01-15T14:00:00%2B01:00&to=2027-01-15T16:00:00Z&outcome=accepted") == [2, 1]


async def test_a_csv_has_all_entries_and_no_formulas(api: Api) -> None:
    number = 2 * 500 + 3
    await written(api, *({"status": 200 + row % 7} for row in range(number)))
    names = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", 'a "quoted", name\r\nand a line', "größe"]
    await written(api, *({"resource_id": name, "after": {"name": name}} for name in names))

    reply = await api("GET", "/manage/audit?limit=2&outcome=accepted", headers={"Accept": "text/csv"})
    assert (reply.status, reply.headers["Content-Type"]) == (200, "text/csv; charset=utf-8; header=present")
    assert reply.headers["Cache-Control"] == "no-store"
    rows = list(csv.DictReader(io.StringIO(reply.data.decode(), newline="")))
    assert len(rows) == number + len(names)
    assert list(rows[0]) == list(AuditEntry.__struct_fields__)
    shown = [row["resource_id"] for row in reversed(rows[: len(names)])]
    assert shown == ["'=1+1", "'+1", "'-1", "'@SUM(A1)", "'\tx", *names[5:]]
    assert rows[0]["after"] == '{"name": "größe"}'
    assert (rows[0]["before"], rows[0]["status"], rows[0]["occurred_at"]) == ("", "200", NOON_TEXT)
    for row in rows:
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row.values())


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("text/html", "application/json"),
        ("application/json, text/csv", "application/json"),
        ("text/csv;q=0.5, application/json", "application/json"),
        ("text/csv", "text/csv; charset=utf-8; header=present"),
        ("text/csv, */*;q=0.1", "text/csv; charset=utf-8; header=present"),
    ],
)
async def test_every_list_is_csv_only_for_a_client_that_prefers_it(api: Api, accept: str, content_type: str) -> None:
    for path in ("/manage/projects", "/manage/tokens", "/manage/requests", "/manage/audit"):
        reply = await api("GET", path, headers={"Accept": accept})
        assert (reply.status, reply.headers["Content-Type"]) == (200, content_type)
        assert reply.data.startswith(b'"id",' if "csv" in content_type else b'{"data":[')


async def test_a_csv_begins_at_the_cursor_and_its_mistakes_are_json(api: Api) -> None:
    rows = await written(api, {}, {}, {})
    cursor = (await api("GET", "/manage/audit?limit=1")).json["next_cursor"]
    reply = await api("GET", f"/manage/audit?cursor={cursor}", headers={"Accept": "text/csv"})
    assert [row["id"] for row in csv.DictReader(io.StringIO(reply.data.decode()))] == [rows[1].id, rows[0].id]
    reply = await api("GET", "/manage/audit?from=x", headers={"Accept": "text/csv"})
    assert (reply.status, reply.json["code"]) == (400, "invalid_query")


async def test_no_secret_is_in_the_audit_log(world: World) -> None:
    """Canaries in every place where a client can put a secret."""
    api, project, token = world.api, world.fill(PROJECT), world.fill(TOKEN)
    secrets = [KEY, OTHER_KEY, "canary-wrong-token"]
    made = [
        await api("POST", "/manage/tokens", {"project_id": world.ids["project"]}),
        await api("POST", f"{token}/rotate"),
    ]
    secrets += [reply.json["token"] for reply in made]
    await api("PATCH", project, {"api_key": OTHER_KEY})
    await api("POST", "/manage/projects", {"name": "p", "api_key": OTHER_KEY})
    await api("POST", "/manage/projects", {"name": "q", "api_key": f"{OTHER_KEY} "})
    await api("GET", "/manage/projects", token="canary-wrong-token")
    for path in ("projects", "tokens", "requests", "keys"):
        for secret in secrets:
            await api("GET", f"/manage/{path}/{secret}?key={secret}")

    def everything(connection: Connection) -> str:
        return repr(connection.execute(text("SELECT * FROM audit")).all())

    table = (await api("GET", "/manage/audit", headers={"Accept": "text/csv"})).data.decode()
    shown = await entries(api)
    assert len(shown) > 25
    digests = [repr(found.digest) for found in (await api.services.database.read(state))[-1]]
    sealed = [found.api_key for found in (await api.services.database.read(state))[0]]
    for place in (table, str(shown), await api.services.database.read(everything)):
        for secret in (*(one for one in secrets if one.startswith("sk-")), "enc:v2", *digests, *sealed):
            assert secret not in place
            assert secret[3:] not in place


async def test_a_field_that_a_record_keeps_secret_is_hidden_on_both_sides() -> None:
    @frozen
    class Thing:
        id: str
        updated_at: int
        name: str = ""
        key: str = field(default="", repr=False)

    change = Change(Thing(new_id(), 1, "a", "one"), Thing("2", 2, "b", "two"), also={"links": (["x"], ["y"])})
    before, after = change.differences()
    assert before is not None
    assert before | {"id": "2"} == {"id": "2", "name": "a", "key": HIDDEN, "links": ["x"]}
    assert after == {"id": "2", "name": "b", "key": HIDDEN, "links": ["y"]}
    assert change.id == "2"
