"""What wrong requests are answered, word by word: these words are what people who script the API see."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest
import trio
from attrs import evolve, frozen
from sqlalchemy import Connection

from db.errors import CommitUnknown, Contention, DatabaseError, SchemaMismatch, Unavailable
from db.queries import projects, tokens
from llm_proxy.crypto import new_token_secret
from tests.manage.conftest import NOON, Api, make_api

ID = "6f1b4a52-8a39-4c0e-9d0e-6c1f7d1f3b11"
NEW_PROJECT_FIELDS = "(fields: name, api_key, provider)"
NEW_TOKEN_FIELDS = "(fields: project_id, name, duration_minutes, duration_hours, expires_at, max_requests)"
NAME = "'name' must be text of 1 to 255 characters, without control characters and without space at its ends"
API_KEY = "'api_key' must be 1 to 4096 printable ASCII characters without spaces"
MINUTES = "'duration_minutes' must be a whole number from 1 to 5260320"
MOMENT = "'expires_at' must be a time with its offset from UTC, such as 2030-01-31T12:00:00Z"
UUID = "must be a UUID such as 6f1b4a52-8a39-4c0e-9d0e-6c1f7d1f3b11"
CURSOR = "'cursor' must be the next_cursor of a page of this list"
AHEAD = "'expires_at' must be in the future, and at most ten years ahead"


def body(description: str) -> tuple[int, str, str, str]:
    return 400, "The request body is not acceptable", "invalid_body", description


def query(description: str) -> tuple[int, str, str, str]:
    return 400, "The query is not acceptable", "invalid_query", description


def json(description: str) -> tuple[int, str, str, str]:
    return 400, "The request body is not valid JSON", "invalid_json", description


PROJECT_NOT_FOUND = (404, "There is no such project", "project_not_found", "No project has this id.")
TOKEN_NOT_FOUND = (
    404,
    "There is no such token",
    "token_not_found",
    "No token has this id. A token's id is not its secret.",
)
NOT_FOUND = (
    404,
    "There is nothing here",
    "not_found",
    "The paths of the management API are described at /openapi.json.",
)
NOT_JSON = (
    415,
    "The request body must be JSON",
    "unsupported_media_type",
    "Send it with the header 'Content-Type: application/json'.",
)
TOO_LARGE = (
    413,
    "The request body is too large",
    "request_too_large",
    "Bodies of the management API have at most 1 MB.",
)


def not_allowed(allowed: str) -> tuple[int, str, str, str]:
    return 405, "This method is not allowed here", "method_not_allowed", f"Allowed: {allowed}."


@frozen
class Case:
    request: str
    said: tuple[int, str, str, str]
    body: Any = None
    data: bytes | None = None
    content_type: str = "application/json"


PROJECTS, TOKENS = "POST /manage/projects", "POST /manage/tokens"
PROJECT, TOKEN = f"PATCH /manage/projects/{ID}", f"PATCH /manage/tokens/{ID}"
GOOD_PROJECT: dict[str, Any] = {"name": "p", "api_key": "k"}
GOOD_TOKEN: dict[str, Any] = {"project_id": ID}

CASES = [
    # Bodies that are no JSON object.
    Case(PROJECTS, NOT_JSON),
    Case(PROJECTS, NOT_JSON, data=b'{"name":"p","api_key":"k"}', content_type="text/plain"),
    Case(PROJECTS, NOT_JSON, data=b"name=p", content_type="application/x-www-form-urlencoded"),
    Case(PROJECTS, json("Input data was truncated."), data=b""),
    Case(PROJECTS, json("Input data was truncated."), data=b'{"name":'),
    Case(PROJECTS, json("JSON is malformed: invalid character (byte 0)."), data=b"x"),
    Case(PROJECTS, json("JSON is malformed: trailing characters (byte 4)."), data=b"{} {}"),
    Case(PROJECTS, json("It is not UTF-8."), data=b'{"name":"\xed\xa0\x80"}'),
    Case(PROJECTS, json("It is nested too deeply."), data=b"[" * 100_000),
    Case(PROJECTS, TOO_LARGE, data=b" " * (1024 * 1024 + 1)),
    Case(PROJECTS, body("it must be a JSON object."), data=b"null"),
    Case(PROJECTS, body("it must be a JSON object."), body=[GOOD_PROJECT]),
    # Projects.
    Case(PROJECTS, body("'name' is missing; 'api_key' is missing."), body={}),
    Case(PROJECTS, body(f"{NAME}; {API_KEY}."), body={"name": "", "api_key": ""}),
    Case(PROJECTS, body(f"{NAME}; {API_KEY}."), body={"name": 7, "api_key": None}),
    Case(PROJECTS, body(f"{NAME}; {API_KEY}."), body={"name": " p", "api_key": "k k"}),
    Case(PROJECTS, body(f"{NAME}; {API_KEY}."), body={"name": "a\u0000b", "api_key": "k\n"}),
    Case(PROJECTS, body(f"{NAME}; {API_KEY}."), body={"name": "x" * 256, "api_key": "k" * 4097}),
    Case(PROJECTS, body(f"{NAME}."), body=GOOD_PROJECT | {"name": "a\u2028b"}),
    Case(PROJECTS, body(f"{API_KEY}."), body=GOOD_PROJECT | {"api_key": "clé"}),
    Case(PROJECTS, body("'provider' must be one of openai, anthropic."), body=GOOD_PROJECT | {"provider": "OpenAI"}),
    Case(PROJECTS, body("'provider' must be one of openai, anthropic."), body=GOOD_PROJECT | {"provider": None}),
    Case(
        PROJECTS,
        body(f"'active' is not a field of this request {NEW_PROJECT_FIELDS}."),
        body=GOOD_PROJECT | {"active": 1},
    ),
    Case(
        PROJECTS,
        body(
            f"{NAME}; 'api_key' is missing; 'provider' must be one of openai, anthropic;"
            f" 'apikey' is not a field of this request {NEW_PROJECT_FIELDS};"
            f" 'x{'y' * 39}…' is not a field of this request {NEW_PROJECT_FIELDS}."
        ),
        body={"name": [], "apikey": "k", "provider": 1, "x" + "y" * 50: 0},
    ),
    Case(PROJECT, body("it names no field (fields: name, api_key, provider, active)."), body={}),
    Case(PROJECT, body(f"{NAME}; 'active' must be true or false."), body={"active": "true", "name": None}),
    Case(PROJECT, body("'active' must be true or false."), body={"active": 1}),
    Case(
        PROJECT,
        body("'id' is not a field of this request (fields: name, api_key, provider, active)."),
        body={"id": ID, "name": "x"},
    ),
    Case(PROJECT, PROJECT_NOT_FOUND, body={"active": True}),
    Case(f"GET /manage/projects/{ID}", PROJECT_NOT_FOUND),
    Case(f"GET /manage/projects/{ID.upper()}", PROJECT_NOT_FOUND),
    Case("GET /manage/projects/1", PROJECT_NOT_FOUND),
    Case("GET /manage/projects/%27%20OR%201=1", PROJECT_NOT_FOUND),
    Case(f"POST /manage/projects/{ID}/tokens/revoke", PROJECT_NOT_FOUND),
    # Tokens.
    Case(TOKENS, body("'project_id' is missing."), body={}),
    Case(TOKENS, body(f"'project_id' {UUID}."), body={"project_id": "p1"}),
    Case(TOKENS, body(f"'project_id' {UUID}."), body={"project_id": ID.upper()}),
    Case(TOKENS, PROJECT_NOT_FOUND, body=GOOD_TOKEN),
    Case(TOKENS, body(f"{MINUTES}."), body=GOOD_TOKEN | {"duration_minutes": 0}),
    Case(TOKENS, body(f"{MINUTES}."), body=GOOD_TOKEN | {"duration_minutes": -5}),
    Case(TOKENS, body(f"{MINUTES}."), body=GOOD_TOKEN | {"duration_minutes": 1.5}),
    Case(TOKENS, body(f"{MINUTES}."), body=GOOD_TOKEN | {"duration_minutes": True}),
    Case(TOKENS, body(f"{MINUTES}."), body=GOOD_TOKEN | {"duration_minutes": "60"}),
    Case(TOKENS, body(f"{MINUTES}."), body=GOOD_TOKEN | {"duration_minutes": None}),
    Case(TOKENS, body(f"{MINUTES}."), data=b'{"project_id":"%s","duration_minutes":1%s}' % (ID.encode(), b"0" * 30)),
    Case(
        TOKENS,
        body("'duration_hours' must be a whole number from 1 to 87672."),
        body=GOOD_TOKEN | {"duration_hours": 87_673},
    ),
    Case(
        TOKENS,
        body("only one of 'duration_minutes', 'duration_hours' can be given."),
        body=GOOD_TOKEN | {"duration_minutes": 60, "duration_hours": 1},
    ),
    Case(
        TOKENS,
        body(f"{MOMENT}; only one of 'duration_hours', 'expires_at' can be given."),
        body=GOOD_TOKEN | {"expires_at": None, "duration_hours": 1},
    ),
    Case(TOKENS, body(f"{MOMENT}."), body=GOOD_TOKEN | {"expires_at": "2027-02-01T00:00:00"}),
    Case(TOKENS, body(f"{MOMENT}."), body=GOOD_TOKEN | {"expires_at": "2027-02-30T00:00:00Z"}),
    Case(TOKENS, body(f"{MOMENT}."), body=GOOD_TOKEN | {"expires_at": "tomorrow"}),
    Case(TOKENS, body(f"{MOMENT}."), body=GOOD_TOKEN | {"expires_at": 1_800_000_000}),
    Case(TOKENS, body(f"{MOMENT}."), body=GOOD_TOKEN | {"expires_at": "9999-12-31T23:59:59-23:00"}),
    Case(TOKENS, body(f"{AHEAD}."), body=GOOD_TOKEN | {"expires_at": "2027-01-15T12:00:00.123456Z"}),
    Case(TOKENS, body(f"{AHEAD}."), body=GOOD_TOKEN | {"expires_at": "2037-01-15T12:00:00.123457Z"}),
    Case(
        TOKENS,
        body("'max_requests' must be a whole number from 0 to 9007199254740991 or null."),
        body=GOOD_TOKEN | {"max_requests": -1},
    ),
    Case(
        TOKENS,
        body("'max_requests' must be a whole number from 0 to 9007199254740991 or null."),
        body=GOOD_TOKEN | {"max_requests": 2**53},
    ),
    Case(
        TOKENS,
        body(
            "'name' must be text of up to 255 characters, without control characters and without space at its ends;"
            f" 'token' is not a field of this request {NEW_TOKEN_FIELDS}."
        ),
        body=GOOD_TOKEN | {"name": "a\tb", "token": "sk-mine"},
    ),
    Case(
        TOKEN,
        body("it names no field (fields: name, duration_minutes, duration_hours, expires_at, max_requests, active)."),
        body={},
    ),
    Case(TOKEN, TOKEN_NOT_FOUND, body={"active": False}),
    Case(f"GET /manage/tokens/{ID}", TOKEN_NOT_FOUND),
    Case(f"DELETE /manage/tokens/{ID}", TOKEN_NOT_FOUND),
    Case(f"DELETE /manage/tokens/{new_token_secret()}", TOKEN_NOT_FOUND),
    Case(f"POST /manage/tokens/{ID}/rotate", TOKEN_NOT_FOUND),
    # Queries.
    Case("GET /manage/projects?limit=0", query("'limit' must be a whole number from 1 to 500.")),
    Case("GET /manage/projects?limit=501", query("'limit' must be a whole number from 1 to 500.")),
    Case("GET /manage/projects?limit=ten", query("'limit' must be a whole number from 1 to 500.")),
    Case("GET /manage/projects?limit=", query("'limit' must be a whole number from 1 to 500.")),
    Case("GET /manage/projects?limit=1&limit=2", query("'limit' comes more than once.")),
    Case("GET /manage/projects?cursor=x", query(f"{CURSOR}.")),
    Case("GET /manage/projects?cursor=", query(f"{CURSOR}.")),
    Case("GET /manage/projects?cursor=%C3%A9", query(f"{CURSOR}.")),
    Case("GET /manage/requests?cursor=MTg6Z2FyYmFnZQ", query(f"{CURSOR}.")),
    Case(
        "GET /manage/projects?page=2&limit=-1",
        query(
            "'limit' must be a whole number from 1 to 500;"
            " 'page' is not a parameter of this request (parameters: limit, cursor)."
        ),
    ),
    Case(
        f"GET /manage/projects/{ID}?verbose=1",
        query("'verbose' is not a parameter of this request (parameters: none)."),
    ),
    Case(
        "GET /manage/tokens?active_only=yes&project_id=p1",
        query(f"'project_id' {UUID}; 'active_only' must be true or false."),
    ),
    Case(
        "GET /manage/requests?outcome=fine",
        query(
            "'outcome' must be one of ok, client_closed, upstream_error, upstream_timeout, proxy_error, void, unknown."
        ),
    ),
    # Paths and methods.
    Case("GET /manage", NOT_FOUND),
    Case("GET /manage/", NOT_FOUND),
    Case("GET /manage/project", NOT_FOUND),
    Case("GET /manage/projects/", NOT_FOUND),
    Case(f"GET /manage/projects/{ID}/tokens", NOT_FOUND),
    Case("GET /manage/projects%2F" + ID, PROJECT_NOT_FOUND),
    Case("PUT /manage/projects", not_allowed("GET, POST"), body=GOOD_PROJECT),
    Case("OPTIONS /manage/tokens", not_allowed("GET, POST")),
    Case(f"POST /manage/tokens/{ID}", not_allowed("DELETE, GET, PATCH"), body={}),
    Case(f"GET /manage/tokens/{ID}/rotate", not_allowed("POST")),
    Case("DELETE /manage/requests", not_allowed("GET")),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.request} {case.said[2]}")
async def test_every_wrong_request_is_answered_in_its_words(api: Api, case: Case) -> None:
    method, path = case.request.split(" ")
    headers = {} if case.body is None and case.data is None else {"Content-Type": case.content_type}
    reply = await api(method, path, case.body, data=case.data, headers=headers)
    status, error, code, description = case.said
    assert (reply.status, reply.json) == (status, {"error": error, "code": code, "description": description})
    assert reply.headers["Content-Type"] == "application/json"
    assert reply.headers["Cache-Control"] == "no-store"
    assert len(reply.headers["X-LLM-Proxy-Request-ID"]) == 36


def test_the_table_is_long_enough_to_mean_something() -> None:
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
            (b"authorization", f"Bearer {api.context.management_token}".encode()),
        ],
    }
    with trio.fail_after(10):
        await app(scope, receive, send)
    assert sent[0]["status"] == 413
    assert msgspec.json.decode(sent[1]["body"])["code"] == "request_too_large"


async def test_a_doubled_slash_is_nothing_and_never_a_redirect(api: Api) -> None:
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
        (CommitUnknown("canary"), "The connection was lost during the commit: look what was changed, then try again."),
        (SchemaMismatch("canary"), "Its schema is not the one of this version: run 'llm-proxy migrate up'."),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_a_database_that_fails_is_said_to_be_away(api: Api, error: Exception, description: str) -> None:
    database: Any = Broken(error)
    broken = make_api(evolve(api.context, database=database), [])
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
            "error": "The database is not available at the moment",
            "code": "database_unavailable",
            "description": description,
        }


async def test_what_cannot_be_an_id_is_not_looked_up(api: Api) -> None:
    database: Any = Broken(ZeroDivisionError())
    broken = make_api(evolve(api.context, database=database), [])
    for identity in ("1", ID.upper(), new_token_secret()):
        assert (await broken("GET", f"/manage/projects/{identity}")).json["code"] == "project_not_found"
        assert (await broken("DELETE", f"/manage/tokens/{identity}")).json["code"] == "token_not_found"


async def test_a_failure_inside_says_nothing_of_the_inside(api: Api) -> None:
    database: Any = Broken(ZeroDivisionError("canary"))
    broken = make_api(evolve(api.context, database=database), [])
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


async def test_what_is_refused_changes_nothing(api: Api) -> None:
    project = await api.project()
    token = await api.token(project)

    def state(connection: Connection) -> object:
        return projects.get(connection, project["id"]), tokens.get(connection, token["id"])

    before = await api.context.database.read(state)
    later = api.at(NOON + timedelta(hours=1))
    for path, sent in (
        (f"/manage/projects/{project['id']}", {"active": False, "name": ""}),
        (f"/manage/projects/{project['id']}", {"active": False, "provider": "anthropic"}),
        (f"/manage/tokens/{token['id']}", {"active": False, "max_requests": -1}),
        (f"/manage/tokens/{token['id']}", {"active": False, "nonsense": 1}),
    ):
        assert (await later("PATCH", path, sent)).status == 400
    assert await api.context.database.read(state) == before
