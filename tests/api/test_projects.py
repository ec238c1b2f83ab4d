from __future__ import annotations

from datetime import timedelta

import pytest

from db.queries import projects
from db.records import Project
from tests.api.conftest import NOON, Api

API_KEY = "sk-canary-api-key-0123456789"


async def stored(api: Api, identity: str) -> Project:
    project = await api.services.database.read(projects.get, identity)
    assert project is not None
    return project


async def test_a_created_project_is_shown_and_listed(any_api: Api) -> None:
    reply = await any_api("POST", "/manage/projects", {"name": "Grüße 🚀", "api_key": API_KEY, "provider": "anthropic"})
    assert reply.status == 201
    project = reply.json
    identity = project["id"]
    assert reply.headers["Location"] == f"/manage/projects/{identity}"
    assert project == {
        "id": identity,
        "name": "Grüße 🚀",
        "provider": "anthropic",
        "api_key_last4": "6789",
        "credentials": [
            {
                "id": project["credentials"][0]["id"],
                "name": "Grüße 🚀",
                "provider": "anthropic",
                "api_key_last4": "6789",
                "active": True,
            }
        ],
        "allow_unknown_objects": False,
        "allow_request_labels": False,
        "stream_usage": None,
        "models": None,
        "active": True,
        "created_at": "2027-01-15T12:00:00.123456Z",
        "updated_at": "2027-01-15T12:00:00.123456Z",
    }
    assert (await any_api("GET", f"/manage/projects/{identity}")).json == project
    assert (await any_api("GET", "/manage/projects")).json == {"data": [project], "next_cursor": None}


async def test_an_api_key_is_stored_encrypted_for_its_project(api: Api) -> None:
    project = await api.project(api_key=API_KEY)
    sealed = (await stored(api, project["id"])).api_key
    assert sealed.startswith("enc:v2:")
    assert API_KEY not in sealed
    assert api.services.keyring.open(sealed, project["id"]) == API_KEY


async def test_a_project_without_provider_gets_the_default_one(api: Api) -> None:
    assert (await api.project(name="a"))["provider"] == "openai"
    assert (await api.project(name="b", provider="anthropic"))["provider"] == "anthropic"


async def test_a_second_project_with_the_same_name_fails(any_api: Api) -> None:
    await any_api.project(name="taken")
    other = await any_api.project(name="Taken")
    for reply in (
        await any_api("POST", "/manage/projects", {"name": "taken", "api_key": "k"}),
        await any_api("PATCH", f"/manage/projects/{other['id']}", {"name": "taken"}),
    ):
        assert reply.status == 409
        assert "has this name" in reply.json["description"]
        assert reply.json == {
            "error": "The name is taken",
            "code": "name_taken",
            "description": reply.json["description"],
        }
    assert (await any_api("GET", f"/manage/projects/{other['id']}")).json["name"] == "Taken"


async def test_patching_a_project_changes_only_what_is_sent(any_api: Api) -> None:
    project = await any_api.project(name="before")
    path = f"/manage/projects/{project['id']}"
    later = any_api.at(NOON + timedelta(hours=1))
    reply = await later("PATCH", path, {"name": "after", "active": False})
    assert reply.status == 200
    expected = project | {"name": "after", "active": False, "updated_at": "2027-01-15T13:00:00.123456Z"}
    assert reply.json == expected
    assert (await any_api("GET", path)).json == expected
    assert (await later("PATCH", path, {"active": True})).json == expected | {"active": True}


async def test_a_new_api_key_replaces_the_old_one(api: Api) -> None:
    project = await api.project(api_key="sk-the-old-one")
    reply = await api("PATCH", f"/manage/projects/{project['id']}", {"api_key": API_KEY})
    assert reply.json["api_key_last4"] == "6789"
    assert api.services.keyring.open((await stored(api, project["id"])).api_key, project["id"]) == API_KEY


async def test_changing_the_provider_needs_a_new_api_key(api: Api) -> None:
    project = await api.project(provider="openai")
    path = f"/manage/projects/{project['id']}"
    reply = await api("PATCH", path, {"provider": "anthropic"})
    assert reply.status == 400
    assert reply.json["code"] == "invalid_body"
    assert reply.json["description"] == (
        "'provider': the project has no credential for anthropic; send 'api_key', 'credentials' with one, or"
        " another 'provider'."
    )
    assert (await api("GET", path)).json == project
    assert (await api("PATCH", path, {"provider": "openai"})).status == 200
    reply = await api("PATCH", path, {"provider": "anthropic", "api_key": API_KEY})
    assert (reply.json["provider"], reply.json["api_key_last4"]) == ("anthropic", "6789")


async def test_deleting_a_project_fails_with_a_hint(api: Api) -> None:
    project = await api.project()
    reply = await api("DELETE", f"/manage/projects/{project['id']}")
    assert reply.status == 405
    assert reply.headers["Allow"] == "GET, PATCH"
    assert reply.json == {
        "error": "This method is not allowed here",
        "code": "method_not_allowed",
        "description": 'Projects are never deleted, because the ledger refers to them: PATCH {"active": false}.'
        " Allowed: GET, PATCH.",
    }
    assert (await api("GET", f"/manage/projects/{project['id']}")).json == project


async def test_revoking_the_tokens_of_a_project_revokes_only_its_active_ones(any_api: Api) -> None:
    project, other = await any_api.project(name="a"), await any_api.project(name="b")
    mine = [await any_api.token(project) for _ in range(3)]
    foreign = await any_api.token(other)
    assert (await any_api("DELETE", f"/manage/tokens/{mine[0]['id']}")).status == 204
    path = f"/manage/projects/{project['id']}/tokens/revoke"
    assert (await any_api("POST", path)).json == {"revoked": 2}
    assert (await any_api("POST", path, {})).json == {"revoked": 0}
    for token in mine:
        assert (await any_api("GET", f"/manage/tokens/{token['id']}")).json["active"] is False
    assert (await any_api("GET", f"/manage/tokens/{foreign['id']}")).json["active"] is True


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 500])
async def test_the_pages_of_a_list_contain_every_project_once(api: Api, limit: int) -> None:
    made = [await api.at(NOON + timedelta(microseconds=n // 2)).project(name=f"p{n}") for n in range(7)]
    found: list[str] = []
    path: str | None = f"/manage/projects?limit={limit}"
    for _ in range(10):
        if path is None:
            break
        reply = (await api("GET", path)).json
        assert len(reply["data"]) <= limit
        found += [project["id"] for project in reply["data"]]
        cursor = reply["next_cursor"]
        path = None if cursor is None else f"/manage/projects?limit={limit}&cursor={cursor}"
    in_order = sorted(made, key=lambda project: (project["created_at"], project["id"]), reverse=True)
    assert found == [project["id"] for project in in_order]


async def test_a_page_has_fifty_entries_by_default(api: Api) -> None:
    for n in range(51):
        await api.project(name=f"p{n}")
    reply = (await api("GET", "/manage/projects")).json
    assert len(reply["data"]) == 50
    assert reply["next_cursor"] is not None


async def test_the_models_of_a_project_are_set_and_taken_back(any_api: Api) -> None:
    project = await any_api.project(models=["gpt-5.4*"])
    assert project["models"] == ["gpt-5.4*"]
    place = f"/manage/projects/{project['id']}"
    assert (await any_api("PATCH", place, {"models": ["o4*"]})).json["models"] == ["o4*"]
    assert (await any_api("PATCH", place, {"active": True})).json["models"] == ["o4*"]
    assert (await any_api("GET", "/manage/projects")).json["data"][0]["models"] == ["o4*"]
    assert (await any_api("PATCH", place, {"models": None})).json["models"] is None
