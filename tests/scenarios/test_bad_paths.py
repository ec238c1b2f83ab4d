"""Requests to paths that are not there, or could mean more than one thing, and what each of them is answered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.processes import Upstream
from tests.databases.kinds import Kind
from tests.databases.scratch import Databases
from tests.scenarios.bad_requests import BODY, CHAT, Bad, World, open_world, openai, start

AMBIGUOUS = (
    "The request path is ambiguous and is refused: send it without dot segments, '//', ';' or encoded separators"
    " or letters."
)
ESCAPED = "This path must not contain percent escapes."
TAKES = "it takes /v1/chat/completions, /v1/completions, /v1/responses, /v1/responses/compact, ..."
MODEL_ESCAPE = (
    "The escapes %2F and %3A are only allowed in the name of a model, where allowed_endpoints has {model}, and only if "
    "the path with '/' in place of %2F is no other endpoint."
)


def path(target: str, **more: Any) -> Bad:
    """A path that could mean more than one thing."""
    return openai(f"the path {target}", start("GET", target), 400, "invalid_path", more.get("message", AMBIGUOUS))


def nowhere(says: str, method: str, target: str, fix: str = TAKES, body: str = "", *fields: str) -> Bad:
    """A path that the provider of the token does not have."""
    request = f"{method} {target.removeprefix('/openai')}"
    message = f'"{request}" is not available with this token, whose project uses the provider "openai": {fix}'
    return openai(says, start(method, target, "token", *fields), 404, "endpoint_not_allowed", message, body)


def unknown(says: str, target: str, shown: str, fix: str, body: str = "", token: str = "token") -> Bad:
    """A path that is nobody's."""
    message = f'The path "{shown}" is unknown; {fix}'
    return openai(says, start("POST", target, token), 404, "endpoint_not_allowed", message, body)


NO_V1 = "the base URL of the client must end in /v1"
BEGIN = "paths to a provider begin with /v1/ or /<provider>/v1/, as in /v1/chat/completions"

PATHS = (
    nowhere("an endpoint that is not allowed", "GET", "/v1/secrets"),
    nowhere("one that begins like another", "POST", CHAT + "X", TAKES, BODY),
    nowhere("one with a slash behind it", "POST", CHAT + "/", TAKES, BODY),
    nowhere("none", "GET", "/v1/"),
    nowhere("a named provider without the version", "POST", "/openai/chat/completions", NO_V1, BODY),
    nowhere(
        "the version twice",
        "POST",
        "/v1" + CHAT,
        "/v1 is there twice; leave it off the base URL of the client",
        BODY,
    ),
    unknown("a base URL without its version", "/chat/completions", "/chat/completions", NO_V1, BODY),
    unknown("the same without a token", "/responses", "/responses", NO_V1, BODY, token=""),
    unknown("a provider that there is not", "/opanai/v1/models", "/opanai/v1/models", BEGIN),
    unknown("a path that is a token", "/{token}/v1", "/.../v1", BEGIN),
    unknown("a path that is a short secret", "/sk-canary1/v1", "/[redacted]/v1", BEGIN),
    unknown("a path that is long", "/a" * 90, "/a" * 50 + "...", BEGIN),
    unknown("the control plane in another case", "/Manage/projects", "/Manage/projects", BEGIN),
    unknown("the root", "/", "/", BEGIN),
    unknown("the version alone", "/v1", "/v1", BEGIN),
    openai(
        "another provider than the project's",
        start("POST", "/strict" + CHAT, "token", "X-Team: a"),
        403,
        "credential_missing",
        "This token's project has no credential for the provider 'strict', only for openai: send requests for that to"
        " /openai/v1/..., or ask the operator of this proxy for a credential",
        BODY,
    ),
    openai(
        "a method that is not allowed",
        start("PUT", CHAT),
        405,
        "method_not_allowed",
        '"PUT /v1/chat/completions" is not allowed here (allowed methods: DELETE, GET, POST)',
        BODY,
        headers={"allow": "DELETE, GET, POST"},
    ),
    path("/v1/../manage"),
    path("/v1/%2e%2e/manage"),
    path("/v1/..;/manage"),
    path("/v1//models"),
    path("//v1/models"),
    path("/v1/models;x"),
    path("/v1/a%2fb", message=MODEL_ESCAPE),
    path("/v1/files/a%3Ab", message=MODEL_ESCAPE),
    path("/v1/models/a%2f"),
    path("/v1/models/a%2f%2Fb"),
    path("/v1/models/a%2F%2e%2e%2Fb"),
    path("/v1/models/a%2F..%2Fb"),
    path("/v1/models/a%252Fb"),
    path("/v1%2Fmodels", message=ESCAPED),
    path("/openai%2Fv1/models", message=ESCAPED),
    path("/v1/a%5Cb"),
    path("/v1/a%25b"),
    path("/v1/a%00b"),
    path("/v1/a\\b"),
    path("/v1/models#x"),
    path("/v1/models%"),
    path("/manage/../v1/models"),
    path("/%6danage/projects", message=ESCAPED),
    path("/manage/%70rojects", message=ESCAPED),
    path("/manage%2Fprojects", message=ESCAPED),
    path("/%6detrics", message=ESCAPED),
    path("/v1/models?a=#", message="The query of the request has a character that must be percent-encoded."),
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


@pytest.mark.parametrize("row", PATHS, ids=str)
def test_a_wrong_path_gets_400_with_an_explanation(row: Bad, world: World) -> None:
    before = world.deployment.upstream.counts()["requests"]

    row.check(world)

    assert world.deployment.upstream.counts()["requests"] == before
