from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import pytest
import trio
from attrs import evolve
from sqlalchemy import Connection, delete

from db.queries import credentials, projects
from db.schema import credentials as table
from db.schema import project_credentials
from llm_proxy.gateway.routing import Routing
from llm_proxy.secrets import keys
from tests.api.conftest import Api

UNKNOWN = "6f1b4a52-8a39-4c0e-9d0e-6c1f7d1f3b11"
KEY, OTHER_KEY = "sk-canary-first-key-1111", "sk-canary-other-key-2222"


async def a_credential(api: Api, name: str = "shared", provider: str = "openai", api_key: str = KEY) -> dict[str, Any]:
    reply = await api("POST", "/manage/credentials", {"name": name, "provider": provider, "api_key": api_key})
    assert reply.status == 201, reply
    return dict(reply.json)


async def new_project(api: Api, *references: str, **fields: Any) -> dict[str, Any]:
    reply = await api("POST", "/manage/projects", {"name": secrets.token_hex(8), "credentials": references} | fields)
    assert reply.status == 201, reply
    return dict(reply.json)


async def check_copies(api: Api) -> list[str]:
    """Check that each project has a copy of its default credential's key; return the keys."""
    ring, found = api.services.keyring, []
    for one in await api.services.database.read(credentials.default_keys, "", 1000):
        assert one.credential is not None
        found.append(ring.open(one.project.api_key, one.project.id))
        assert found[-1] == ring.open(one.credential.api_key, one.credential.id)
        assert one.project.api_key_last4 == one.credential.api_key_last4
    return found


async def test_a_credential_is_shown_without_its_key(any_api: Api) -> None:
    made = await a_credential(any_api)
    assert made == {
        "id": made["id"],
        "name": "shared",
        "provider": "openai",
        "api_key_last4": "1111",
        "active": True,
        "projects": 0,
        "created_at": "2027-01-15T12:00:00.123456Z",
        "updated_at": "2027-01-15T12:00:00.123456Z",
    }
    await new_project(any_api, "shared")
    expected = made | {"projects": 1}
    for reference in (made["id"], "shared", "1111"):
        assert (await any_api("GET", f"/manage/credentials/{reference}")).json == expected
    listed = await any_api("GET", "/manage/credentials?provider=openai")
    assert listed.json == {"data": [expected], "next_cursor": None}
    assert (await any_api("GET", "/manage/credentials?provider=anthropic")).json["data"] == []


async def test_a_project_with_an_api_key_gets_a_credential_of_its_name(any_api: Api) -> None:
    project = await any_api.project(name="short form", api_key=KEY)
    (used,) = project["credentials"]
    assert (await any_api("GET", f"/manage/credentials/{used['id']}")).json["name"] == "short form"
    assert await check_copies(any_api) == [KEY]
    taken = await any_api("POST", "/manage/credentials", {"name": "short form", "provider": "openai", "api_key": KEY})
    assert (taken.status, taken.json["code"]) == (409, "name_taken")


async def test_one_rotation_serves_all_projects_of_a_credential(any_api: Api) -> None:
    made = await a_credential(any_api)
    other = await a_credential(any_api, "claude", "anthropic", OTHER_KEY)
    for _ in range(20):
        await new_project(any_api, "shared", "claude", provider="openai")
    await new_project(any_api, "claude")
    assert sorted(await check_copies(any_api)) == [KEY] * 20 + [OTHER_KEY]
    reply = await any_api("POST", f"/manage/credentials/{made['id']}/rotate", {"api_key": "sk-rotated-key-3333"})
    assert (reply.status, reply.json["projects"], reply.json["api_key_last4"]) == (200, 20, "3333")
    assert sorted(await check_copies(any_api)) == [OTHER_KEY] + ["sk-rotated-key-3333"] * 20
    assert (await any_api("GET", f"/manage/credentials/{other['id']}")).json["projects"] == 21


async def test_the_credentials_of_a_project_are_replaced(any_api: Api) -> None:
    await a_credential(any_api)
    await a_credential(any_api, "claude", "anthropic", OTHER_KEY)
    project = await new_project(any_api, "shared")
    path = f"/manage/projects/{project['id']}"
    changed = (await any_api("PATCH", path, {"credentials": ["claude", "shared"]})).json
    assert [one["name"] for one in changed["credentials"]] == ["claude", "shared"]
    assert changed["provider"] == "openai"
    changed = (await any_api("PATCH", path, {"provider": "anthropic"})).json
    assert (changed["provider"], changed["api_key_last4"]) == ("anthropic", "2222")
    assert await check_copies(any_api) == [OTHER_KEY]
    refused = await any_api("PATCH", path, {"credentials": ["shared"]})
    assert "'provider': the project has no credential for anthropic" in refused.json["description"]
    assert (await any_api("PATCH", path, {"credentials": ["shared"], "provider": "openai"})).status == 200
    assert await check_copies(any_api) == [KEY]


async def test_what_a_project_cannot_use_is_refused(any_api: Api) -> None:
    await a_credential(any_api)
    await a_credential(any_api, "second")
    await a_credential(any_api, "idle", "anthropic")
    await any_api("PATCH", "/manage/credentials/idle", {"active": False})
    for references, words in (
        (["shared", "second"], "'shared' and 'second' are both for openai"),
        (["idle"], "'idle' is deactivated"),
    ):
        reply = await any_api("POST", "/manage/projects", {"name": "p", "credentials": references})
        assert (reply.status, reply.json["code"]) == (400, "invalid_body")
        assert words in reply.json["description"]
    for reference in ("unknown", UNKNOWN):
        reply = await any_api("POST", "/manage/projects", {"name": "p", "credentials": ["shared", reference]})
        assert (reply.status, reply.json["code"]) == (404, "credential_not_found")
        assert reply.json["description"] == (
            f"No credential has the id or name '{reference}' (active ones: second, shared)."
        )
    reply = await any_api("POST", "/manage/projects", {"name": "p", "credentials": ["shared"], "provider": "anthropic"})
    assert reply.json["description"] == "'provider' must be one of openai, the providers of 'credentials'."


async def test_a_project_may_keep_a_credential_that_is_deactivated(api: Api) -> None:
    await a_credential(api)
    await a_credential(api, "idle", "anthropic")
    path = f"/manage/projects/{(await new_project(api, 'idle'))['id']}"
    await api("PATCH", "/manage/credentials/idle", {"active": False})
    changed = await api("PATCH", path, {"credentials": ["idle", "shared"]})
    assert [(one["name"], one["active"]) for one in changed.json["credentials"]] == [("idle", False), ("shared", True)]


async def test_more_credentials_than_a_few_are_not_named_in_an_error(api: Api) -> None:
    for number in range(11):
        await a_credential(api, f"key {number}")
    reply = await api("POST", "/manage/projects", {"name": "p", "credentials": ["unknown"]})
    assert reply.json["description"] == "No credential has the id or name 'unknown'."


async def test_a_key_of_a_provider_that_is_not_configured_any_more_is_refused(api: Api) -> None:
    await a_credential(api, "claude", "anthropic")
    providers = api.services.providers
    without = {name: one for name, one in providers.by_name.items() if name != "anthropic"}
    routing = api.services.relay.routing
    api.services.relay.routing = Routing(evolve(providers, by_name=without), routing.upstreams)
    reply = await api("POST", "/manage/credentials/claude/rotate", {"api_key": OTHER_KEY})
    assert (reply.status, reply.json["code"]) == (400, "invalid_body")
    assert reply.json["description"] == (f"'provider' must be one of {', '.join(without)}, the configured ones.")


async def test_a_project_that_an_old_server_made_is_changed_before_it_has_a_credential(any_api: Api) -> None:
    project = await any_api.project(name="old", api_key=KEY)
    path = f"/manage/projects/{project['id']}"

    def forget(connection: Connection) -> None:
        connection.execute(delete(project_credentials))
        connection.execute(delete(table))

    await any_api.services.database.write(forget)
    for change in ({"active": False}, {"name": "new name"}, {"provider": "openai"}):
        reply = await any_api("PATCH", path, change)
        assert (reply.status, reply.json | change) == (200, reply.json)
    assert (await any_api("PATCH", path, {"provider": "anthropic"})).status == 400
    assert (await any_api("PATCH", path, {"api_key": OTHER_KEY})).json["credentials"][0]["name"] == "new name"
    assert await check_copies(any_api) == [OTHER_KEY]


async def test_a_new_key_of_a_project_does_not_change_a_shared_credential(any_api: Api) -> None:
    await a_credential(any_api)
    one, _ = await new_project(any_api, "shared"), await new_project(any_api, "shared")
    reply = await any_api("PATCH", f"/manage/projects/{one['id']}", {"api_key": OTHER_KEY})
    assert (reply.status, reply.json["code"]) == (409, "credential_shared")
    assert await check_copies(any_api) == [KEY, KEY]


async def test_a_name_or_the_last_characters_stand_for_an_id(any_api: Api) -> None:
    project = await any_api.project(name="team a", api_key=KEY)
    other = await any_api.project(name="1111", api_key=OTHER_KEY)
    assert (await any_api("GET", "/manage/projects/team%20a")).json == project
    # A name comes before the last four characters.
    assert (await any_api("GET", "/manage/projects/1111")).json == other
    token = await any_api.token({"id": "team a"}, name="ci")
    for reference in (token["id"], "ci", token["last4"]):
        assert (await any_api("GET", f"/manage/tokens/{reference}")).json["id"] == token["id"]
    assert [one["id"] for one in (await any_api("GET", "/manage/tokens?project_id=team%20a")).json["data"]] == [
        token["id"]
    ]
    second = await any_api.token({"id": "1111"}, name="ci")
    reply = await any_api("DELETE", "/manage/tokens/ci")
    assert (reply.status, reply.json["code"]) == (409, "ambiguous_name")
    assert token["id"] in reply.json["description"]
    assert second["id"] in reply.json["description"]
    assert (await any_api("GET", "/manage/requests?project_id=nobody")).json["code"] == "project_not_found"


async def test_changes_at_the_same_time_leave_each_project_the_key_of_its_credential(any_api: Api) -> None:
    await a_credential(any_api)
    await a_credential(any_api, "second", api_key=OTHER_KEY)
    made = [await new_project(any_api, "shared" if number % 2 else "second") for number in range(6)]

    async def repeat(call: Callable[[int], Any]) -> None:
        for number in range(8):
            reply = await call(number)
            assert reply.status in (200, 503), reply

    async with trio.open_nursery() as nursery:
        for name in ("shared", "second"):
            path = f"/manage/credentials/{name}/rotate"
            nursery.start_soon(
                repeat, lambda number, path=path: any_api("POST", path, {"api_key": f"sk-new-{number:06}"})
            )
        for one in made[:3]:
            path = f"/manage/projects/{one['id']}"
            nursery.start_soon(
                repeat,
                lambda number, path=path: any_api("PATCH", path, {"credentials": [("shared", "second")[number % 2]]}),
            )
    assert len(await check_copies(any_api)) == 6


async def test_a_key_that_an_old_server_sets_is_the_credentials_after_a_start(api: Api) -> None:
    project = await api.project(api_key=KEY)
    ring, identity = api.services.keyring, project["id"]

    def set_key(connection: Any) -> None:
        locked = projects.get_locked(connection, identity)
        assert locked is not None
        sealed = ring.seal(OTHER_KEY, identity)
        projects.change(connection, locked, {"api_key": sealed, "api_key_last4": "2222"}, locked.updated_at)

    await api.services.database.write(set_key)
    with pytest.raises(AssertionError):
        await check_copies(api)
    assert await trio.to_thread.run_sync(keys.adopt, api.services.database, ring) == 1
    assert await check_copies(api) == [OTHER_KEY]
