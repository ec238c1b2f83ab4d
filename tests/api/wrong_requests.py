"""Wrong requests to the control plane, and what each is answered."""

from __future__ import annotations

from typing import Any

from attrs import frozen

ID = "6f1b4a52-8a39-4c0e-9d0e-6c1f7d1f3b11"
_FIELDS = "(fields: name, api_key, credentials, provider, allow_unknown_objects, allow_request_labels, stream_usage,"
NEW_PROJECT_FIELDS = f"{_FIELDS} models)"
PROJECT_FIELDS = f"{_FIELDS} models, active)"
NEW_TOKEN_FIELDS = (
    "(fields: project_id, name, duration_minutes, duration_hours, expires_at, max_requests, labels, models)"
)
NAME = "'name' must be text of 1 to 255 characters, without control characters and without space at its ends"
NAMES = "openai, anthropic, gemini, openrouter, groq, mistral, deepseek, xai, together, cohere"
API_KEY = "'api_key' must be 1 to 4096 printable ASCII characters without spaces"
MINUTES = "'duration_minutes' must be a whole number from 1 to 5260320"
TIMESTAMP = "'expires_at' must be a time with its offset from UTC, such as 2030-01-31T12:00:00Z"
WORDS = "must be text of 1 to 64 characters, without control characters and without space at its ends"
UUID = "must be a UUID such as 6f1b4a52-8a39-4c0e-9d0e-6c1f7d1f3b11"
CURSOR = "'cursor' must be the next_cursor of a page of this list"
LIMIT = "'max_requests' must be a whole number from 1 to 9007199254740991 or null (unlimited)"
MODELS = "'models' must be a list of 1 to 50 patterns of models, such as [\"gpt-5.4*\"] or null (all models)"
AHEAD = "'expires_at' must be in the future, and at most ten years ahead"


def body(description: str) -> tuple[int, str, str, str]:
    return 400, "The request body is not acceptable", "invalid_body", description


def query(description: str) -> tuple[int, str, str, str]:
    return 400, "The query is not acceptable", "invalid_query", description


def json(description: str) -> tuple[int, str, str, str]:
    return 400, "The request body is not valid JSON", "invalid_json", description


def no_such(kind: str, reference: str = ID, more: str = "") -> tuple[int, str, str, str]:
    description = f"No {kind} has this id or name: '{reference}'.{more}"
    return 404, f"There is no such {kind}", f"{kind}_not_found", description


def no_token(reference: str = ID) -> tuple[int, str, str, str]:
    return no_such("token", reference, " A token's secret is neither.")


NOT_FOUND = (
    404,
    "Not found",
    "not_found",
    (
        "This path does not exist. Providers are reached under /v1/ or under /<name of the provider>/v1/; the paths of"
        " the management API are described at /openapi.json."
    ),
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
    "Bodies of the management API have at most 1 MiB.",
)


#: In the form of a token, where an id is wanted.
SECRET = f"sk-{'a' * 43}"


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
CREDENTIALS = "POST /manage/credentials"
PROJECT, TOKEN = f"PATCH /manage/projects/{ID}", f"PATCH /manage/tokens/{ID}"
GOOD_PROJECT: dict[str, Any] = {"name": "p", "api_key": "k"}
GOOD_TOKEN: dict[str, Any] = {"project_id": ID}
LIMITS = "POST /manage/limits"
GOOD_LIMIT: dict[str, Any] = {"metric": "cost", "amount": 5}

CASES = [
    # Bodies that are no JSON object.
    Case(PROJECTS, NOT_JSON),
    Case(PROJECTS, NOT_JSON, data=b'{"name":"p","api_key":"k"}', content_type="text/plain"),
    Case(PROJECTS, NOT_JSON, data=b"name=p", content_type="application/x-www-form-urlencoded"),
    Case(PROJECTS, json("It is empty."), data=b""),
    Case(PROJECTS, json("Input data was truncated."), data=b'{"name":'),
    Case(PROJECTS, json("JSON is malformed: invalid character (byte 0)."), data=b"x"),
    Case(PROJECTS, json("JSON is malformed: trailing characters (byte 4)."), data=b"{} {}"),
    Case(PROJECTS, json("It is not UTF-8."), data=b'{"name":"\xed\xa0\x80"}'),
    Case(PROJECTS, json("It is nested too deeply."), data=b"[" * 100_000),
    Case(PROJECTS, TOO_LARGE, data=b" " * (1024 * 1024 + 1)),
    Case(PROJECTS, body("it must be a JSON object."), data=b"null"),
    Case(PROJECTS, body("it must be a JSON object."), body=[GOOD_PROJECT]),
    # Allow-lists of models.
    *(
        Case(operation, body(f"{MODELS}."), body=good | {"models": wrong})
        for operation, good in ((PROJECTS, GOOD_PROJECT), (TOKENS, GOOD_TOKEN), (PROJECT, {}), (TOKEN, {}))
        for wrong in ([], [""], [" a"], [7], "gpt-5*", ["x"] * 51, ["x" * 256])
    ),
    # Projects.
    Case(PROJECTS, body("'name' is missing; 'api_key' is missing (or 'credentials')."), body={}),
    Case(PROJECTS, body(f"{NAME}; {API_KEY}."), body={"name": "", "api_key": ""}),
    Case(PROJECTS, body(f"{NAME}; {API_KEY}."), body={"name": 7, "api_key": None}),
    Case(PROJECTS, body(f"{NAME}; {API_KEY}."), body={"name": " p", "api_key": "k k"}),
    Case(PROJECTS, body(f"{NAME}; {API_KEY}."), body={"name": "a\u0000b", "api_key": "k\n"}),
    Case(PROJECTS, body(f"{NAME}; {API_KEY}."), body={"name": "x" * 256, "api_key": "k" * 4097}),
    Case(PROJECTS, body(f"{NAME}."), body=GOOD_PROJECT | {"name": "a\u2028b"}),
    Case(PROJECTS, body(f"{API_KEY}."), body=GOOD_PROJECT | {"api_key": "clé"}),
    Case(
        PROJECTS,
        body(f"'provider' must be one of {NAMES}, the configured ones."),
        body=GOOD_PROJECT | {"provider": "OpenAI"},
    ),
    Case(PROJECTS, body(f"'provider' {WORDS}."), body=GOOD_PROJECT | {"provider": None}),
    Case(
        PROJECTS,
        body("only one of 'api_key', 'credentials' can be given."),
        body=GOOD_PROJECT | {"credentials": ["shared"]},
    ),
    Case(
        PROJECTS, body("'credentials' must be a list of 1 to 100 names or ids."), body={"name": "p", "credentials": []}
    ),
    Case(
        PROJECTS,
        body("'credentials' must be a list of 1 to 100 names or ids."),
        body={"name": "p", "credentials": ["\u0000"]},
    ),
    Case(
        PROJECTS,
        (*no_such("credential")[:3], "No credential has the id or name 'shared'."),
        body={"name": "p", "credentials": ["shared"]},
    ),
    Case(CREDENTIALS, body("'name' is missing; 'provider' is missing; 'api_key' is missing."), body={}),
    Case(
        CREDENTIALS,
        body(f"'provider' must be one of {NAMES}, the configured ones."),
        body={"name": "c", "provider": "OpenAI", "api_key": "k"},
    ),
    Case(f"PATCH /manage/credentials/{ID}", no_such("credential"), body={"active": False}),
    Case(f"POST /manage/credentials/{ID}/rotate", no_such("credential"), body={"api_key": "k"}),
    Case("GET /manage/credentials/none", no_such("credential", "none")),
    Case(
        PROJECTS,
        body(f"'active' is not a field of this request {NEW_PROJECT_FIELDS}."),
        body=GOOD_PROJECT | {"active": 1},
    ),
    Case(
        PROJECTS,
        body(
            f"{NAME}; 'provider' {WORDS};"
            f" 'apikey' is not a field of this request {NEW_PROJECT_FIELDS};"
            f" 'x{'y' * 39}…' is not a field of this request {NEW_PROJECT_FIELDS};"
            " 'api_key' is missing (or 'credentials')."
        ),
        body={"name": [], "apikey": "k", "provider": 1, "x" + "y" * 50: 0},
    ),
    Case(
        PROJECT,
        body(f"it names no field {PROJECT_FIELDS}."),
        body={},
    ),
    Case(PROJECT, body(f"{NAME}; 'active' must be true or false."), body={"active": "true", "name": None}),
    Case(PROJECT, body("'active' must be true or false."), body={"active": 1}),
    Case(
        PROJECT,
        body(f"'id' is not a field of this request {PROJECT_FIELDS}."),
        body={"id": ID, "name": "x"},
    ),
    Case(PROJECT, no_such("project"), body={"active": True}),
    Case(f"GET /manage/projects/{ID}", no_such("project")),
    Case("GET /manage/projects/1", no_such("project", "1")),
    Case("GET /manage/projects/%27%20OR%201=1", no_such("project", "' OR 1=1")),
    Case(f"POST /manage/projects/{ID}/tokens/revoke", no_such("project")),
    # Tokens.
    Case(TOKENS, body("'project_id' is missing."), body={}),
    Case(TOKENS, no_such("project", "p1"), body={"project_id": "p1"}),
    Case(TOKENS, body("'project_id' must be an id, a name, or the last four characters."), body={"project_id": ""}),
    Case(TOKENS, no_such("project"), body=GOOD_TOKEN),
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
        body(f"{TIMESTAMP}; only one of 'duration_hours', 'expires_at' can be given."),
        body=GOOD_TOKEN | {"expires_at": None, "duration_hours": 1},
    ),
    Case(TOKENS, body(f"{TIMESTAMP}."), body=GOOD_TOKEN | {"expires_at": "2027-02-01T00:00:00"}),
    Case(TOKENS, body(f"{TIMESTAMP}."), body=GOOD_TOKEN | {"expires_at": "2027-02-30T00:00:00Z"}),
    Case(TOKENS, body(f"{TIMESTAMP}."), body=GOOD_TOKEN | {"expires_at": "tomorrow"}),
    Case(TOKENS, body(f"{TIMESTAMP}."), body=GOOD_TOKEN | {"expires_at": 1_800_000_000}),
    Case(TOKENS, body(f"{TIMESTAMP}."), body=GOOD_TOKEN | {"expires_at": "9999-12-31T23:59:59-23:00"}),
    Case(TOKENS, body(f"{AHEAD}."), body=GOOD_TOKEN | {"expires_at": "2027-01-15T12:00:00.123456Z"}),
    Case(TOKENS, body(f"{AHEAD}."), body=GOOD_TOKEN | {"expires_at": "2037-01-15T12:00:00.123457Z"}),
    Case(
        TOKENS,
        body(f"{LIMIT}."),
        body=GOOD_TOKEN | {"max_requests": 0},
    ),
    Case(
        TOKENS,
        body(f"{LIMIT}."),
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
        body(
            "it names no field"
            " (fields: name, duration_minutes, duration_hours, expires_at, max_requests, labels, models, active)."
        ),
        body={},
    ),
    Case(TOKEN, no_token(), body={"active": False}),
    Case(f"GET /manage/tokens/{ID}", no_token()),
    Case(f"DELETE /manage/tokens/{ID}", no_token()),
    Case(f"DELETE /manage/tokens/{SECRET}", no_token("[redacted]")),
    Case(f"POST /manage/tokens/{ID}/rotate", no_token()),
    # Limits.
    Case(LIMITS, body("'metric' is missing; 'amount' is missing."), body={}),
    Case(LIMITS, body("'metric' cost needs a 'window': total, minute, hour, day, week, month."), body=GOOD_LIMIT),
    Case(
        LIMITS,
        body("'amount' must be a whole number, or for cost USD such as \"50.00\"."),
        body=GOOD_LIMIT | {"window": "day", "amount": "0.0000000001"},
    ),
    Case(LIMITS, no_such("project"), body=GOOD_LIMIT | {"window": "day", "project_id": ID}),
    Case(LIMITS, no_token(), body=GOOD_LIMIT | {"window": "day", "token_id": ID}),
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
        "GET /manage/tokens?active_only=yes&project_id=",
        query("'project_id' must be an id, a name, or the last four characters; 'active_only' must be true or false."),
    ),
    Case(
        "GET /manage/requests?outcome=fine",
        query(
            "'outcome' must be one of ok, rejected, client_closed, upstream_error, upstream_timeout, proxy_error, "
            "void, unknown."
        ),
    ),
    # Paths and methods.
    Case("GET /manage", NOT_FOUND),
    Case("GET /manage/", NOT_FOUND),
    Case("GET /manage/project", NOT_FOUND),
    Case("GET /manage/projects/", NOT_FOUND),
    Case(f"GET /manage/projects/{ID}/tokens", NOT_FOUND),
    Case("GET /manage/projects%2F" + ID, no_such("project")),
    Case("PUT /manage/projects", not_allowed("GET, POST"), body=GOOD_PROJECT),
    Case("OPTIONS /manage/tokens", not_allowed("GET, POST")),
    Case(f"POST /manage/tokens/{ID}", not_allowed("DELETE, GET, PATCH"), body={}),
    Case(f"GET /manage/tokens/{ID}/rotate", not_allowed("POST")),
    Case(f"GET /manage/requests/{ID}/resolve", not_allowed("POST")),
    Case("DELETE /manage/requests", not_allowed("GET")),
]
