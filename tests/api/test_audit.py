"""Every change and every refused call is in the audit log, and no secret is."""

from __future__ import annotations

import csv
import io
from datetime import timedelta
from typing import Any

import pytest
import trio
from attrs import frozen
from msgspec import structs

from db import Connection
from db.queries import audit
from db.records import AuditEntry
from llm_proxy.api import audit as audit_api
from llm_proxy.api import projects, refusals, requests, tokens
from llm_proxy.api.auth import ACTOR
from llm_proxy.identifiers import request_id
from llm_proxy.logging.redaction import REDACTED
from tests.api.conftest import NOON, Api

API_KEY, OTHER_KEY = "sk-canary-first-key-0123", "sk-canary-other-key-4567"
NOBODY = "6f1b4a52-8a39-4c0e-9d0e-6c1f7d1f3b11"


@frozen
class Scene:
    """A project and a token of it, and the requests by which they are changed."""

    project: dict[str, Any]
    token: dict[str, Any]

    @property
    def paths(self) -> dict[str, str]:
        return {"project_id": self.project["id"], "token_id": self.token["id"]}


async def a_scene(api: Api) -> Scene:
    project = await api.project(api_key=API_KEY)
    return Scene(project, await api.token(project, name="first"))


async def entries(api: Api, query: str = "") -> list[dict[str, Any]]:
    """All entries, the newest first."""
    reply = await api("GET", f"/manage/audit?limit=500&{query}")
    assert reply.status == 200, reply
    found: list[dict[str, Any]] = reply.json["data"]
    return found


async def newest(api: Api) -> dict[str, Any]:
    return (await entries(api))[0]


#: By operation: the body, the kind of resource, and what changes before and after. None: not looked at.
ACCEPTED: dict[str, tuple[object, str, dict[str, Any] | None, dict[str, Any] | None]] = {
    "createProject": ({"name": "new", "api_key": OTHER_KEY}, "project", None, None),
    "updateProject": (
        {"api_key": OTHER_KEY, "active": False},
        "project",
        {"active": True, "api_key": REDACTED, "api_key_last4": "0123"},
        {"active": False, "api_key": REDACTED, "api_key_last4": "4567"},
    ),
    "revokeProjectTokens": (None, "project", None, {"revoked": 1}),
    "createToken": ({"project_id": "{project_id}", "name": "second"}, "token", None, None),
    "updateToken": ({"name": "renamed"}, "token", {"name": "first"}, {"name": "renamed"}),
    "revokeToken": (
        None,
        "token",
        {"active": True, "revoked_at": None},
        {"active": False, "revoked_at": "2027-01-15T12:00:00.123456Z"},
    ),
    "rotateToken": (None, "token", {"digest": REDACTED}, {"digest": REDACTED}),
}
#: By operation: what makes it fail, and the status and code.
REFUSED: dict[str, tuple[object, int, str]] = {
    "createProject": ({"name": "p", "api_key": OTHER_KEY}, 409, "name_taken"),
    "updateProject": ({"active": OTHER_KEY}, 400, "invalid_body"),
    "revokeProjectTokens": (None, 404, "project_not_found"),
    "createToken": ({"project_id": NOBODY}, 404, "project_not_found"),
    "updateToken": ({}, 400, "invalid_body"),
    "revokeToken": (None, 404, "token_not_found"),
    "rotateToken": (None, 404, "token_not_found"),
}
CHANGES = {
    operation.name: operation
    for resource in (projects.RESOURCE, tokens.RESOURCE, requests.RESOURCE, audit_api.RESOURCE)
    for operation in resource.operations
    if operation.method != "GET"
}


def test_every_operation_that_changes_something_is_tested_here() -> None:
    assert set(ACCEPTED) == set(REFUSED) == set(CHANGES)


def filled(body: Any, paths: dict[str, str]) -> Any:
    return body and {name: value.format(**paths) if isinstance(value, str) else value for name, value in body.items()}


@pytest.mark.parametrize("name", ACCEPTED)
async def test_a_change_leaves_one_entry(api: Api, name: str) -> None:
    scene, operation = await a_scene(api), CHANGES[name]
    body, kind, before, after = ACCEPTED[name]
    count = len(await entries(api))

    reply = await api(operation.method, operation.path.format(**scene.paths), filled(body, scene.paths))

    assert reply.status == operation.status
    entry = await newest(api)
    assert len(await entries(api)) == count + 1
    assert entry["id"] == reply.headers["X-LLM-Proxy-Request-ID"]
    identity = scene.paths[f"{kind}_id"] if "{" in operation.path else reply.json["id"]
    assert (entry["operation"], entry["resource"], entry["resource_id"]) == (name, kind, identity)
    assert (entry["actor"], entry["address"]) == (ACTOR, "192.0.2.1")
    assert (entry["outcome"], entry["status"], entry["error"]) == ("accepted", operation.status, "")
    assert entry["occurred_at"] == "2027-01-15T12:00:00.123456Z"
    if before is not None:
        assert {field: entry["before"][field] for field in before} == before
        assert set(entry["before"]) == set(entry["after"])
    if after is not None:
        assert {field: entry["after"][field] for field in after} == after


@pytest.mark.parametrize("name", REFUSED)
async def test_a_refused_call_leaves_one_entry(api: Api, name: str) -> None:
    await a_scene(api)
    operation, (body, status, code) = CHANGES[name], REFUSED[name]
    count = len(await entries(api))
    path = operation.path.format(project_id=NOBODY, token_id=NOBODY)

    reply = await api(operation.method, path, body)

    assert (reply.status, reply.json["code"]) == (status, code)
    entry = await newest(api)
    assert len(await entries(api)) == count + 1
    assert (entry["operation"], entry["outcome"], entry["status"], entry["error"]) == (name, "refused", status, code)
    assert entry["resource_id"] == (NOBODY if "{" in operation.path else "")
    assert (entry["actor"], entry["before"], entry["after"]) == (ACTOR, None, None)


@pytest.mark.parametrize(
    ("method", "path", "status", "operation"),
    [
        ("GET", "/manage/projects?limit=0", 400, "listProjects"),
        ("GET", f"/manage/tokens/{NOBODY}", 404, "getToken"),
        ("DELETE", f"/manage/projects/{NOBODY}", 405, ""),
        ("GET", "/manage/nothing", 404, ""),
        ("POST", "/manage/projects", 415, "createProject"),
    ],
)
async def test_a_refused_call_of_any_kind_leaves_an_entry(
    api: Api, method: str, path: str, status: int, operation: str
) -> None:
    reply = await api(method, path, data=b"x" if status == 415 else None, headers={"Content-Type": "text/plain"})
    assert reply.status == status
    (entry,) = await entries(api)
    assert (entry["operation"], entry["status"], entry["outcome"]) == (operation, status, "refused")


async def test_reading_leaves_no_entry(api: Api) -> None:
    for path in ("projects", "tokens", "requests", "audit"):
        assert (await api("GET", f"/manage/{path}")).status == 200
    assert await entries(api) == []


async def test_a_change_without_its_entry_is_impossible(any_api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    project = await any_api.project()
    path, real, count = f"/manage/projects/{project['id']}", audit.create, len(await entries(any_api))

    def fail_before(_connection: Connection, _entry: AuditEntry) -> None:
        raise RuntimeError("no entry")

    def fail_after(connection: Connection, entry: AuditEntry) -> None:
        real(connection, entry)
        raise RuntimeError("killed before the commit")

    for fault in (fail_before, fail_after):
        with monkeypatch.context() as patched:
            patched.setattr(audit, "create", fault)
            assert (await any_api("PATCH", path, {"name": "changed"})).status == 500
        assert (await any_api("GET", path)).json == project
        assert len(await entries(any_api)) == count

    assert (await any_api("PATCH", path, {"name": "changed"})).status == 200
    assert (await newest(any_api))["after"] == {"name": "changed"}


async def test_entries_are_filtered(any_api: Api) -> None:
    scene = await a_scene(any_api)
    await any_api("DELETE", f"/manage/tokens/{scene.token['id']}")
    await any_api("GET", "/manage/projects", token="wrong")

    async def found(query: str) -> list[str]:
        return [entry["operation"] for entry in await entries(any_api, query)]

    assert await found("") == ["listProjects", "revokeToken", "createToken", "createProject"]
    assert await found(f"resource_id={scene.token['id']}") == ["revokeToken", "createToken"]
    assert await found("resource=project") == ["listProjects", "createProject"]
    assert await found("operation=createToken") == ["createToken"]
    assert await found("outcome=refused") == ["listProjects"]
    assert await found("actor=management%20token") == ["revokeToken", "createToken", "createProject"]
    assert await found("from=2027-01-15T12:00:01Z") == []
    assert len(await found("to=2027-01-15T12:00:01Z")) == 4
    assert (await any_api("GET", "/manage/audit?outcome=lost")).status == 400


async def test_a_list_as_csv_has_all_entries_and_no_formula(api: Api) -> None:
    scene = await a_scene(api)
    for number in range(600):
        await api("PATCH", f"/manage/tokens/{scene.token['id']}", {"name": f"=cmd|{number}"})
    reply = await api("GET", "/manage/tokens", headers={"Accept": "text/csv"})
    (token,) = csv.DictReader(io.StringIO(reply.data.decode()))
    assert token["name"] == "'=cmd|599"
    reply = await api("GET", "/manage/audit", headers={"Accept": "text/csv"})
    assert reply.headers["Content-Type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(reply.data.decode())))
    assert len(rows) == 602
    assert rows[0]["after"] == '{"name": "=cmd|599"}'
    assert [row["id"] for row in rows] == sorted((row["id"] for row in rows), reverse=True)


async def test_no_secret_is_in_the_log_of_changes(api: Api) -> None:
    scene = await a_scene(api)
    rotated = (await api("POST", f"/manage/tokens/{scene.token['id']}/rotate")).json
    await api("PATCH", f"/manage/projects/{scene.project['id']}", {"api_key": OTHER_KEY})
    await api("PATCH", f"/manage/tokens/{API_KEY}", {"name": OTHER_KEY, "active": API_KEY})
    await api("GET", f"/manage/requests/{scene.token['token']}")
    await api("GET", "/manage/projects", token=API_KEY)
    shown = (await api("GET", "/manage/audit")).data + (
        await api("GET", "/manage/audit", headers={"Accept": "text/csv"})
    ).data
    for secret in (API_KEY, OTHER_KEY, scene.token["token"], rotated["token"], "canary-management-token", "enc:v2"):
        assert secret.encode() not in shown


async def test_unauthenticated_calls_are_written_one_by_one_only_at_first(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "LIMIT", 3)
    monkeypatch.setattr(refusals, "INTERVAL", 3.0)
    for _ in range(20):
        assert (await api("POST", "/manage/projects", {}, token="wrong")).status == 401
    assert len(await entries(api)) == 3
    assert {(entry["actor"], entry["error"]) for entry in await entries(api)} == {("", "unauthorized")}
    # Those of the operator are not affected.
    await api("GET", "/manage/nothing")
    assert (await newest(api))["actor"] == ACTOR
    with trio.fail_after(10):
        while len(await entries(api)) < 5:  # noqa: ASYNC110 - the entry comes from a task of the server
            await trio.sleep(0.05)
    summary = await newest(api)
    assert (summary["after"], summary["operation"], summary["address"]) == ({"calls": 17}, "", "")


async def test_old_entries_are_pruned(any_api: Api) -> None:
    database = any_api.services.database
    await any_api.project()
    (entry,) = await entries(any_api)
    made = structs.replace(
        AuditEntry(**{**entry, "occurred_at": NOON}), id=request_id(), occurred_at=NOON - timedelta(days=3000)
    )
    old = [structs.replace(made, id=f"0000000{number}-0000-7000-8000-000000000000") for number in range(5)]
    for one in old:
        await database.write(audit.create, one)
    assert await database.write(audit.prune, NOON - timedelta(days=1000), 3) == 3
    assert await database.write(audit.prune, NOON - timedelta(days=1000), 3) == 2
    assert await database.write(audit.prune, NOON - timedelta(days=1000), 3) == 0
    assert [one["id"] for one in await entries(any_api)] == [entry["id"]]
