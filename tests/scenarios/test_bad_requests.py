"""Wrong requests to the data plane, and what exactly each of them is answered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.processes import Upstream
from tests.databases.kinds import Kind
from tests.databases.scratch import Databases
from tests.scenarios.bad_input import CANARY
from tests.scenarios.bad_requests import BODY, CHAT, LARGEST, Bad, World, open_world, openai, refused, start

NO_TOKEN = (
    "No API token was sent. Put your proxy token in the Authorization header as 'Bearer <token>', or in x-api-key."
)
NOT_KNOWN = "The API token is unknown. Ask the operator of this proxy for a new one."
STRAY = "The request has a stray line end, a folded line or a null byte in its head."
NOT_JSON = "The request body is not valid JSON."
TOO_LARGE = f"The request body is larger than the {LARGEST} bytes that this proxy accepts."
BEARER = {"www-authenticate": "Bearer"}


def strict(says: str, body: str, code: str, message: str, *fields: str, **more: Any) -> Bad:
    """A body that a provider with rules refuses."""
    head = start("POST", CHAT, "strict", "X-Team: a", *(fields or ("Content-Type: application/json",)))
    return openai(says, head, more.pop("status", 400), code, message, body, **more)


DATA_PLANE = (
    openai("no token", start("POST", CHAT, ""), 401, "token_missing", NO_TOKEN, BODY, headers=BEARER),
    openai(
        "another scheme",
        start("POST", CHAT, "", f"Authorization: Basic {CANARY}"),
        401,
        "token_missing",
        NO_TOKEN,
        BODY,
        headers=BEARER,
    ),
    openai(
        "something that is no token",
        start("POST", CHAT, "", f"X-Api-Key: {CANARY}"),
        401,
        "token_invalid",
        NOT_KNOWN,
        BODY,
        headers=BEARER,
    ),
    openai("an unknown token", start("POST", CHAT, "unknown"), 401, "token_invalid", NOT_KNOWN, BODY, headers=BEARER),
    openai(
        "two tokens",
        start("POST", CHAT, "token", f"Api-Key: {CANARY}"),
        401,
        "token_invalid",
        "The request carries two different API tokens. Send one of them only.",
        BODY,
        headers=BEARER,
    ),
    openai(
        "a revoked token",
        start("POST", CHAT, "revoked"),
        401,
        "token_inactive",
        "The API token was revoked. Ask the operator of this proxy for a new one.",
        BODY,
        headers=BEARER,
    ),
    openai(
        "a deactivated project",
        start("POST", CHAT, "stopped"),
        403,
        "project_inactive",
        "The project that this token belongs to is deactivated.",
        BODY,
    ),
    openai(
        "a token that is used up",
        start("POST", CHAT, "used"),
        429,
        "request_limit_exceeded",
        "The API token has used up its request limit. Ask the operator of this proxy to raise it.",
        BODY,
        type="insufficient_quota",
        headers={"retry-after": None},
    ),
    # What the provider's rules say.
    strict("a body that is no JSON", "{", "invalid_json", NOT_JSON),
    strict("a body that is no object", "[1]", "invalid_json", "The request body is not a JSON object."),
    strict("a body that is no text", '{"model": "\xe9"}', "invalid_json", NOT_JSON),
    strict("a number that JSON does not have", '{"model": NaN}', "invalid_json", NOT_JSON),
    strict(
        "a body that is nested too deeply",
        '{"x": ' + "[" * 900,
        "invalid_json",
        "The request body is nested more than 500 levels deep.",
    ),
    strict(
        "a name twice",
        '{"model": "gpt-4o", "model": "o1"}',
        "invalid_json",
        "The request body is ambiguous: a JSON object has the same name twice.",
    ),
    strict(
        "a model that is not allowed",
        '{"model": "o1"}',
        "parameter_not_allowed",
        'model "o1" is not allowed here (allowed: gpt-4o*)',
        param="model",
    ),
    strict(
        "a list of models",
        '{"model": ["gpt-4o"]}',
        "parameter_not_allowed",
        "model as a list, an object or a file is not allowed here (allowed: gpt-4o*)",
        param="model",
    ),
    strict(
        "a name in another case",
        '{"Model": "o1"}',
        "parameter_not_allowed",
        'parameter "Model" is not allowed; write it as "model"',
        param="model",
    ),
    strict(
        "a compressed body",
        BODY,
        "parameter_not_allowed",
        "A compressed body is not accepted here, because its parameters have to be checked.",
        "Content-Encoding: gzip",
    ),
    strict(
        "a form where none is taken",
        BODY,
        "parameter_not_allowed",
        'Content-Type "multipart/form-data; boundary=x" is not allowed here, because the parameters have to be checked '
        "(allowed: application/json)",
        "Content-Type: multipart/form-data; boundary=x",
    ),
    strict(
        "JSON that is labelled as a form",
        BODY,
        "parameter_not_allowed",
        'Content-Type "application/x-www-form-urlencoded" is not allowed here, because the parameters have to be '
        "checked (allowed: application/json)",
        "Content-Type: application/x-www-form-urlencoded",
    ),
    strict(
        "two media types",
        BODY,
        "invalid_json",
        "The request has more than one Content-Type.",
        "Content-Type: application/json",
        "Content-Type: text/plain",
    ),
    strict(
        "a page that may not call",
        BODY,
        "origin_not_allowed",
        "Requests from this origin are not allowed.",
        "Origin: https://evil.example",
        status=403,
    ),
    openai(
        "a header that is missing",
        start("POST", CHAT, "strict"),
        400,
        "header_required",
        "The header 'x-team' is required here.",
        BODY,
        param="x-team",
    ),
    # Other protocols.
    openai(
        "a WebSocket handshake",
        start("GET", "/v1/responses", "token", "Connection: keep-alive, Upgrade", "Upgrade: websocket"),
        426,
        "upgrade_required",
        "This proxy does not speak WebSocket. Send the request as a plain HTTP request.",
        headers={"upgrade": "HTTP/1.1"},
    ),
    # Sizes.
    openai("a body too long", start("POST", CHAT), 413, "request_too_large", TOO_LARGE, "x" * (LARGEST + 1)),
    openai(
        "a body that grows too long",
        start("POST", CHAT, "token", "Transfer-Encoding: chunked"),
        413,
        "request_too_large",
        TOO_LARGE,
        f"{LARGEST + 1:x}\r\n{'x' * (LARGEST + 1)}\r\n0\r\n\r\n",
    ),
    openai(
        "a body that is announced too long",
        start("POST", CHAT, "token", "Expect: 100-continue", f"Content-Length: {LARGEST + 1}"),
        413,
        "request_too_large",
        TOO_LARGE,
        headers={"connection": "close"},
    ),
)

SERVER = (
    refused(
        "a URL that is not of HTTP",
        start("GET", "ftp://proxy.example/v1/models"),
        400,
        "bad_request",
        "The request target has to be a path that begins with '/', or an http or https URL.",
    ),
    refused("bytes that are no ASCII", start("GET", "/v1/\xe9"), 400, "bad_request", "The request line is malformed."),
    refused("no request line", "hello\r\n", 400, "bad_request", "The request line is malformed."),
    refused(
        "another version",
        "GET / HTTP/3.0\r\nHost: a\r\n",
        505,
        "http_version_not_supported",
        "The HTTP version is not supported. Supported versions: HTTP/1.0, HTTP/1.1.",
    ),
    refused("another method", start("BREW", CHAT), 501, "not_implemented", "The request method is not supported."),
    refused("no host", "GET /v1/models HTTP/1.1\r\n", 400, "bad_request", "The Host header is missing."),
    refused("two hosts", start("GET", CHAT, "", "Host: b"), 400, "bad_request", "The header 'host' was sent twice."),
    refused("no name", "GET / HTTP/1.1\r\nHost: a/b\r\n", 400, "bad_request", "The Host header is malformed."),
    refused("a bare line feed", start("GET", CHAT, "", "X: a\nY: b"), 400, "bad_request", STRAY),
    refused("a folded line", start("GET", CHAT, "", "X: a\r\n b"), 400, "bad_request", STRAY),
    refused("a null byte", start("GET", CHAT, "", "X: \x00"), 400, "bad_request", STRAY),
    refused(
        "two framings",
        start("POST", CHAT, "token", "Content-Length: 5", "Transfer-Encoding: chunked"),
        400,
        "bad_request",
        "The request is malformed: Transfer-Encoding can't be present with Content-Length.",
        "0\r\n\r\n",
    ),
    refused(
        "a length that is none",
        start("POST", CHAT, "token", "Content-Length: -3"),
        400,
        "bad_request",
        "The request is malformed: Invalid character in Content-Length.",
    ),
    refused(
        "another coding",
        start("POST", CHAT, "token", "Transfer-Encoding: gzip"),
        501,
        "not_implemented",
        "The transfer coding is not supported. Supported: 'chunked'.",
    ),
    refused(
        "another expectation",
        start("POST", CHAT, "token", "Expect: 200-maybe"),
        417,
        "expectation_failed",
        "Only 'Expect: 100-continue' is supported.",
        BODY,
    ),
    refused(
        "a header too long",
        start("GET", CHAT, "", "X: " + "a" * 70_000),
        431,
        "headers_too_large",
        "The request line and headers are longer than 65536 bytes.",
    ),
    refused(
        "a path too long",
        start("GET", "/v1/" + "a" * 70_000),
        414,
        "uri_too_long",
        "The request line is longer than 65536 bytes.",
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


@pytest.mark.parametrize("row", [*DATA_PLANE, *SERVER], ids=str)
def test_a_wrong_request_gets_an_explanation(row: Bad, world: World) -> None:
    before = world.deployment.upstream.counts()["requests"]

    row.check(world)

    assert world.deployment.upstream.counts()["requests"] == before
