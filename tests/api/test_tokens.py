from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from attrs import evolve
from sqlalchemy import Connection, update

from db.queries import tokens
from db.records import Token
from db.schema import tokens as table
from llm_proxy.tokens import digest
from tests.api.conftest import NOON, Api


async def stored(api: Api, identity: str) -> Token:
    token = await api.services.database.read(tokens.get, identity)
    assert token is not None
    return token


def without_secret(token: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in token.items() if name != "token"}


async def test_creating_a_token_shows_its_secret_once(any_api: Api) -> None:
    project = await any_api.project()
    reply = await any_api(
        "POST", "/manage/tokens", {"project_id": project["id"], "name": "CI", "duration_hours": 2, "max_requests": 100}
    )
    assert reply.status == 201
    token = reply.json
    identity, secret = token["id"], token["token"]
    assert reply.headers["Location"] == f"/manage/tokens/{identity}"
    assert token == {
        "id": identity,
        "project_id": project["id"],
        "name": "CI",
        "last4": secret[-4:],
        "active": True,
        "expires_at": "2027-01-15T14:00:00.123456Z",
        "max_requests": 100,
        "labels": {},
        "models": None,
        "request_count": 0,
        "created_at": "2027-01-15T12:00:00.123456Z",
        "updated_at": "2027-01-15T12:00:00.123456Z",
        "revoked_at": None,
        "last_used_at": None,
        "token": secret,
    }
    assert (await any_api("GET", f"/manage/tokens/{identity}")).json == without_secret(token)
    assert (await any_api("GET", "/manage/tokens")).json == {"data": [without_secret(token)], "next_cursor": None}
    assert (await stored(any_api, identity)).digest == digest(secret)


@pytest.mark.parametrize(
    ("given", "expires_at"),
    [
        ({}, NOON + timedelta(days=30)),
        ({"duration_minutes": 1}, NOON + timedelta(minutes=1)),
        ({"duration_minutes": 5_260_320}, NOON + timedelta(days=3653)),
        ({"duration_hours": 87_672}, NOON + timedelta(days=3653)),
        ({"expires_at": "2027-01-15T12:00:00.123457Z"}, NOON + timedelta(microseconds=1)),
        ({"expires_at": "2027-02-01T00:30:00+01:00"}, datetime.fromisoformat("2027-01-31T23:30:00Z")),
    ],
)
async def test_a_token_expires_when_the_body_says(api: Api, given: dict[str, Any], expires_at: datetime) -> None:
    token = await api.token(await api.project(), **given)
    assert datetime.fromisoformat(token["expires_at"]) == expires_at
    assert (await stored(api, token["id"])).expires_at == expires_at


@pytest.mark.parametrize(("given", "limit"), [({}, None), ({"max_requests": None}, None)])
async def test_a_token_without_max_requests_is_unlimited(api: Api, given: dict[str, Any], limit: int | None) -> None:
    token = await api.token(await api.project(), **given)
    assert token["max_requests"] is limit
    assert (await stored(api, token["id"])).max_requests is None


async def test_a_token_needs_an_active_project(api: Api) -> None:
    project = await api.project()
    reply = await api("POST", "/manage/tokens", {"project_id": "6f1b4a52-8a39-4c0e-9d0e-6c1f7d1f3b11"})
    assert (reply.status, reply.json["code"]) == (404, "project_not_found")
    await api("PATCH", f"/manage/projects/{project['id']}", {"active": False})
    reply = await api("POST", "/manage/tokens", {"project_id": project["id"]})
    assert (reply.status, reply.json["code"]) == (409, "project_inactive")
    assert (await api("GET", "/manage/tokens")).json["data"] == []


async def test_patching_a_token_changes_only_what_is_sent(any_api: Api) -> None:
    token = await any_api.token(await any_api.project(), max_requests=5)
    path = f"/manage/tokens/{token['id']}"
    later = any_api.at(NOON + timedelta(hours=1))
    reply = await later("PATCH", path, {"name": "new", "max_requests": 7, "duration_minutes": 30})
    assert reply.status == 200
    expected = without_secret(token) | {
        "name": "new",
        "max_requests": 7,
        "expires_at": "2027-01-15T13:30:00.123456Z",
        "updated_at": "2027-01-15T13:00:00.123456Z",
    }
    assert reply.json == expected
    assert (await any_api("GET", path)).json == expected
    assert (await later("PATCH", path, {"max_requests": 0})).status == 400, "0 does not lift the limit"
    assert (await any_api("GET", path)).json == expected
    assert (await later("PATCH", path, {"max_requests": None})).json == expected | {"max_requests": None}


async def test_a_revoked_token_stays_revoked_until_it_is_activated(any_api: Api) -> None:
    token = await any_api.token(await any_api.project())
    path = f"/manage/tokens/{token['id']}"
    for hours in (1, 2):
        reply = await any_api.at(NOON + timedelta(hours=hours))("DELETE", path)
        assert (reply.status, reply.data) == (204, b"")
    revoked = without_secret(token) | {
        "active": False,
        "revoked_at": "2027-01-15T13:00:00.123456Z",
        "updated_at": "2027-01-15T13:00:00.123456Z",
    }
    assert (await any_api("GET", path)).json == revoked
    assert (await any_api("PATCH", path, {"active": True})).json == without_secret(token)
    assert (await any_api("PATCH", path, {"active": False})).json["revoked_at"] == "2027-01-15T12:00:00.123456Z"


async def test_rotating_a_token_replaces_only_the_secret(any_api: Api) -> None:
    token = await any_api.token(await any_api.project(), name="x", max_requests=5, duration_hours=1)
    before = await stored(any_api, token["id"])
    reply = await any_api.at(NOON + timedelta(minutes=5))("POST", f"/manage/tokens/{token['id']}/rotate")
    assert reply.status == 200
    secret = reply.json["token"]
    assert secret != token["token"]
    changed = {"token": secret, "last4": secret[-4:], "updated_at": "2027-01-15T12:05:00.123456Z"}
    assert reply.json == token | changed
    after = await stored(any_api, token["id"])
    assert after == evolve(before, digest=digest(secret), last4=secret[-4:], updated_at=NOON + timedelta(minutes=5))


async def test_rotating_a_revoked_token_fails(api: Api) -> None:
    token = await api.token(await api.project())
    await api("DELETE", f"/manage/tokens/{token['id']}")
    before = await stored(api, token["id"])
    reply = await api("POST", f"/manage/tokens/{token['id']}/rotate", {})
    assert (reply.status, reply.json["code"]) == (409, "token_revoked")
    assert await stored(api, token["id"]) == before


async def test_tokens_are_filtered_by_project_and_usability(any_api: Api) -> None:
    one, other = await any_api.project(name="a"), await any_api.project(name="b")
    usable = await any_api.token(one, max_requests=3)
    foreign = await any_api.token(other)
    revoked = await any_api.token(one)
    await any_api("DELETE", f"/manage/tokens/{revoked['id']}")
    expired = await any_api.token(one, duration_minutes=1)
    used_up = await any_api.token(one, max_requests=3)

    def use_up(connection: Connection) -> None:
        connection.execute(update(table).where(table.c.id == used_up["id"]).values(request_count=3))

    await any_api.services.database.write(use_up)
    later = any_api.at(NOON + timedelta(minutes=1))

    async def listed(query: str) -> set[str]:
        return {token["id"] for token in (await later("GET", f"/manage/tokens{query}")).json["data"]}

    mine = {token["id"] for token in (usable, revoked, expired, used_up)}
    assert await listed("") == mine | {foreign["id"]}
    assert await listed(f"?project_id={one['id']}") == mine
    assert await listed(f"?project_id={one['id']}&active_only=true") == {usable["id"]}
    assert await listed("?active_only=True") == {usable["id"], foreign["id"]}
    assert await listed("?active_only=false") == mine | {foreign["id"]}
    assert await listed("?project_id=6f1b4a52-8a39-4c0e-9d0e-6c1f7d1f3b11") == set()


async def test_a_filter_applies_to_every_page(api: Api) -> None:
    one, other = await api.project(name="a"), await api.project(name="b")
    mine = [await api.token(one) for _ in range(3)]
    for _ in range(3):
        await api.token(other)
    found = []
    path: str | None = f"/manage/tokens?limit=2&project_id={one['id']}"
    for _ in range(10):
        if path is None:
            break
        reply = (await api("GET", path)).json
        found += [token["id"] for token in reply["data"]]
        cursor = reply["next_cursor"]
        path = None if cursor is None else f"/manage/tokens?limit=2&project_id={one['id']}&cursor={cursor}"
    assert sorted(found) == sorted(token["id"] for token in mine)


async def test_the_models_of_a_token_are_set_and_taken_back(any_api: Api) -> None:
    token = await any_api.token(await any_api.project(), models=["gpt-5.4*", "o4-mini"])
    assert token["models"] == ["gpt-5.4*", "o4-mini"]
    assert (await stored(any_api, token["id"])).models == {"patterns": ["gpt-5.4*", "o4-mini"]}
    place = f"/manage/tokens/{token['id']}"
    assert (await any_api("PATCH", place, {"models": ["o4*"]})).json["models"] == ["o4*"]
    assert (await any_api("PATCH", place, {"name": "n"})).json["models"] == ["o4*"]
    assert (await any_api("PATCH", place, {"models": None})).json["models"] is None
    assert (await stored(any_api, token["id"])).models is None
