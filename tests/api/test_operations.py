"""What wrong requests are answered, word by word: these words are what people who script the API see."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest
import trio
from attrs import evolve
from sqlalchemy import Connection

from db.errors import CommitUnknown, Contention, DatabaseError, SchemaMismatch, Unavailable
from db.queries import projects, tokens
from tests.api.conftest import MANAGEMENT_TOKEN, NOON, Api, make_api
from tests.api.wrong_requests import CASES, GOOD_PROJECT, GOOD_TOKEN, ID, Case


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.request} {case.said[2]}")
async def test_a_wrong_request_gets_its_error(api: Api, case: Case) -> None:
    method, path = case.request.split(" ")
    headers = {} if case.body is None and case.data is None else {"Content-Type": case.content_type}
    reply = await api(method, path, case.body, data=case.data, headers=headers)
    status, error, code, description = case.said
    assert (reply.status, reply.json) == (status, {"error": error, "code": code, "description": description})
    assert reply.headers["Content-Type"] == "application/json"
    assert reply.headers["Cache-Control"] == "no-store"
    assert len(reply.headers["X-LLM-Proxy-Request-ID"]) == 36


def test_the_table_of_wrong_requests_is_long_enough() -> None:
    assert len(CASES) >= 80
    assert len({case.said[2] for case in CASES}) >= 9


async def test_a_chunked_body_is_limited_too(api: Api) -> None:
    app: Any = api.app
    sent: list[dict[str, Any]] = []
    chunks = [b" " * 65_536] * 17

    async def receive() -> dict[str, Any]:
        if not chunks:
            await trio.sleep_forever()
        return {"type": "http.request", "body": chunks.pop(), "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/manage/projects",
        "raw_path": b"/manage/projects",
        "query_string": b"",
        "root_path": "",
        "client": ("192.0.2.1", 1),
        "server": ("proxy.test", 80),
        "extensions": {},
        "headers": [
            (b"host", b"proxy.test"),
            (b"content-type", b"application/json"),
            (b"authorization", f"Bearer {MANAGEMENT_TOKEN}".encode()),
        ],
    }
    with trio.fail_after(10):
        await app(scope, receive, send)
    assert sent[0]["status"] == 413
    assert msgspec.json.decode(sent[1]["body"])["code"] == "request_too_large"


async def test_a_double_slash_is_not_found_and_not_redirected(api: Api) -> None:
    for path in ("/manage//projects", "//evil.example/manage/projects"):
        reply = await api("GET", f"http://proxy.test{path}")
        assert (reply.status, reply.json["code"]) == (404, "not_found")
        assert "Location" not in reply.headers


class Broken:
    """A database whose every transaction fails in one way."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def read(self, *_: object) -> None:
        raise self.error

    write = read


NOTHING_CHANGED = "Nothing was changed. Try again soon."


@pytest.mark.parametrize(
    ("error", "description"),
    [
        (Unavailable("canary.example:5432 is gone"), NOTHING_CHANGED),
        (Contention("canary.example:5432 is busy"), NOTHING_CHANGED),
        (DatabaseError("canary"), NOTHING_CHANGED),
        (CommitUnknown("canary"), "The connection was lost during the commit: check what was changed, then try again."),
        (SchemaMismatch("canary"), "Its schema is not the one of this version: run 'llm-proxy migrate up'."),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_a_database_error_is_answered_with_503(api: Api, error: Exception, description: str) -> None:
    database: Any = Broken(error)
    broken = make_api(evolve(api.services, database=database))
    for method, path, sent in (
        ("GET", "/manage/projects", None),
        ("POST", "/manage/projects", GOOD_PROJECT),
        ("PATCH", f"/manage/projects/{ID}", {"active": True}),
        ("GET", "/manage/tokens", None),
        ("POST", "/manage/tokens", GOOD_TOKEN),
        ("DELETE", f"/manage/tokens/{ID}", None),
        ("POST", f"/manage/tokens/{ID}/rotate", None),
        ("GET", "/manage/requests", None),
    ):
        reply = await broken(method, path, sent)
        assert reply.status == 503
        assert reply.headers["Retry-After"] == "1"
        assert reply.json == {
            "error": "The database is unavailable",
            "code": "database_unavailable",
            "description": description,
        }


async def test_an_internal_error_reveals_no_details(api: Api) -> None:
    database: Any = Broken(ZeroDivisionError("canary"))
    broken = make_api(evolve(api.services, database=database))
    reply = await broken("GET", "/manage/projects")
    assert (reply.status, reply.json) == (
        500,
        {
            "error": "The server failed to handle the request",
            "code": "internal_error",
            "description": "The server's log says why, under this request's id.",
        },
    )
    assert len(reply.headers["X-LLM-Proxy-Request-ID"]) == 36


async def test_a_refused_change_changes_nothing(api: Api) -> None:
    project = await api.project()
    token = await api.token(project)

    def state(connection: Connection) -> object:
        return projects.get(connection, project["id"]), tokens.get(connection, token["id"])

    before = await api.services.database.read(state)
    later = api.at(NOON + timedelta(hours=1))
    for path, sent in (
        (f"/manage/projects/{project['id']}", {"active": False, "name": ""}),
        (f"/manage/projects/{project['id']}", {"active": False, "provider": "anthropic"}),
        (f"/manage/tokens/{token['id']}", {"active": False, "max_requests": -1}),
        (f"/manage/tokens/{token['id']}", {"active": False, "nonsense": 1}),
    ):
        assert (await later("PATCH", path, sent)).status == 400
    assert await api.services.database.read(state) == before
