"""Wrong calls of the control plane, and what exactly each of them is answered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.processes import Upstream
from tests.databases.kinds import Kind
from tests.databases.scratch import Databases
from tests.scenarios.bad_input import CANARY
from tests.scenarios.bad_requests import UNKNOWN, Bad, World, manage, open_world, start

NOT_FOUND = (404, "not_found", "Not found")
ELSEWHERE = (
    "This path does not exist. Providers are reached under /v1/ or under /<name of the provider>/v1/; the paths of the "
    "management API are described at /openapi.json."
)
NOT_ALLOWED = (405, "method_not_allowed", "This method is not allowed here")
UNACCEPTABLE = (400, "invalid_body", "The request body is not acceptable")
QUERY = (400, "invalid_query", "The query is not acceptable")
LOCKED = (401, "unauthorized", "The management API needs the management token")
HOW = "Send the server's MANAGEMENT_TOKEN in the Authorization header as 'Bearer <token>'."
REALM = {"www-authenticate": 'Bearer realm="llm-proxy management"'}
PROJECTS, TOKENS = "/manage/projects", "/manage/tokens"
NAME = "'name' must be text of 1 to 255 characters, without control characters and without space at its ends"
API_KEY = "'api_key' must be 1 to 4096 printable ASCII characters without spaces"


def new(says: str, content: Any, description: str) -> Bad:
    """A project or token that cannot be made."""
    collection = TOKENS if isinstance(content, dict) and "project_id" in content else PROJECTS
    return manage(says, start("POST", collection, "manager"), *UNACCEPTABLE, description, content=content)


CONTROL_PLANE = (
    manage("nobody's request", start("GET", PROJECTS, ""), *LOCKED, HOW, headers=REALM),
    manage(
        "a wrong management token",
        start("GET", PROJECTS, "", f"Authorization: Bearer {CANARY}"),
        *LOCKED,
        "The management token is wrong.",
        headers=REALM,
    ),
    manage(
        "a token for the data plane", start("GET", PROJECTS), *LOCKED, "The management token is wrong.", headers=REALM
    ),
    manage("no path of the API", start("GET", "/manage/nothing", "manager"), *NOT_FOUND, ELSEWHERE),
    *(
        manage(
            f"the path {path}/", start("GET", f"{path}/", "manager"), *NOT_FOUND, ELSEWHERE, headers={"location": None}
        )
        for path in (PROJECTS, "/manage", "/metrics", "/health", "/openapi.json")
    ),
    manage(
        "a method of another path",
        start("DELETE", TOKENS, "manager"),
        *NOT_ALLOWED,
        "Allowed: GET, POST.",
        headers={"allow": "GET, POST"},
    ),
    manage(
        "a project that is to be deleted",
        start("DELETE", f"{PROJECTS}/{UNKNOWN}", "manager"),
        *NOT_ALLOWED,
        'Projects are never deleted, because the ledger refers to them: PATCH {"active": false}. Allowed: GET, PATCH.',
    ),
    manage(
        "a body that is not called JSON",
        start("POST", PROJECTS, "manager", "Content-Type: text/plain"),
        415,
        "unsupported_media_type",
        "The request body must be JSON",
        "Send it with the header 'Content-Type: application/json'.",
        content="{}",
    ),
    manage(
        "a body that is no JSON",
        start("POST", PROJECTS, "manager"),
        400,
        "invalid_json",
        "The request body is not valid JSON",
        "JSON is malformed: trailing characters (byte 4).",
        content="{} and more",
    ),
    manage(
        "a body too long",
        start("POST", PROJECTS, "manager"),
        413,
        "request_too_large",
        "The request body is too large",
        "Bodies of the management API have at most 1 MiB.",
        content="x" * (1024 * 1024 + 1),
    ),
    new("no object", [], "it must be a JSON object."),
    new("nothing", {}, "'name' is missing; 'api_key' is missing (or 'credentials')."),
    new(
        "another field",
        {"name": "a", "api_key": CANARY, "colour": 1},
        "'colour' is not a field of this request"
        " (fields: name, api_key, credentials, provider, allow_unknown_objects, allow_request_labels,"
        " stream_usage, models).",
    ),
    new("values of other kinds", {"name": 1, "api_key": 2}, f"{NAME}; {API_KEY}."),
    new("a key with a space", {"name": "a", "api_key": f"{CANARY} {CANARY}"}, f"{API_KEY}."),
    new("a name with a line end", {"name": "a\n", "api_key": CANARY}, f"{NAME}."),
    new(
        "a provider that is misspelt",
        {"name": "a", "api_key": CANARY, "provider": "opanai"},
        "'provider' must be one of openai, strict, the configured ones.",
    ),
    new("an id that is none", {"project_id": ""}, "'project_id' must be an id, a name, or the last four characters."),
    new(
        "two ends",
        {"project_id": UNKNOWN, "duration_minutes": 1, "duration_hours": 1},
        "only one of 'duration_minutes', 'duration_hours' can be given.",
    ),
    new(
        "an end in the past",
        {"project_id": UNKNOWN, "expires_at": "2020-01-01T00:00:00Z"},
        "'expires_at' must be in the future, and at most ten years ahead.",
    ),
    new(
        "an end without its zone",
        {"project_id": UNKNOWN, "expires_at": "2030-01-01T00:00:00"},
        "'expires_at' must be a time with its offset from UTC, such as 2030-01-31T12:00:00Z.",
    ),
    new(
        "a negative limit",
        {"project_id": UNKNOWN, "max_requests": -1},
        "'max_requests' must be a whole number from 1 to 9007199254740991 or null (unlimited).",
    ),
    manage(
        "a project that there is not",
        start("POST", TOKENS, "manager"),
        404,
        "project_not_found",
        "There is no such project",
        f"No project has this id or name: '{UNKNOWN}'.",
        content={"project_id": UNKNOWN},
    ),
    manage(
        "a secret in place of an id",
        start("GET", TOKENS + "/{token}", "manager"),
        404,
        "token_not_found",
        "There is no such token",
        "No token has this id or name: '[redacted]'. A token's secret is neither.",
    ),
    manage(
        "a page of nothing",
        start("GET", TOKENS + "?limit=0", "manager"),
        *QUERY,
        "'limit' must be a whole number from 1 to 500.",
    ),
    manage(
        "a parameter twice",
        start("GET", TOKENS + "?limit=1&limit=2", "manager"),
        *QUERY,
        "'limit' comes more than once.",
    ),
    manage(
        "a cursor that is made up",
        start("GET", TOKENS + "?cursor=x", "manager"),
        *QUERY,
        "'cursor' must be the next_cursor of a page of this list.",
    ),
    manage(
        "an outcome that there is not",
        start("GET", "/manage/requests?outcome=good", "manager"),
        *QUERY,
        "'outcome' must be one of ok, rejected, client_closed, upstream_error, upstream_timeout, proxy_error, void, "
        "unknown.",
    ),
    manage(
        "a method that does not look",
        start("POST", "/health", ""),
        *NOT_ALLOWED,
        "Allowed: GET, HEAD, OPTIONS.",
        headers={"allow": "GET, HEAD, OPTIONS"},
    ),
)


@pytest.fixture(scope="module")
def world(
    databases: Databases, session_upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """The server of these tests, on SQLite."""
    with (
        databases.migrated(Kind.SQLITE) as scratch,
        open_world(scratch, session_upstream, tmp_path_factory.mktemp("world")) as world,
    ):
        yield world


@pytest.mark.parametrize("row", CONTROL_PLANE, ids=str)
def test_a_wrong_management_call_gets_an_explanation(row: Bad, world: World) -> None:
    row.check(world)
