"""Everything that the proxy refuses, how to meet it with an SDK, and the exception that the SDK has for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import anthropic
import openai
import trio
from attrs import field, frozen

from tests.harness.deployment import Deployment
from tests.scenarios.gateway import ORIGIN, TEAM
from tests.scenarios.sdk import ASK, CLAUDE, GPT, claude, gpt

LARGEST = 100_000

Fields = dict[str, Any]


@frozen
class Sdk:
    """One of the two SDKs.

    Attributes:
        provider: the name of its plain provider, and the beginning of the names of the others.
        make: opens a client, as `gpt` and `claude` do.
        errors: the module with its exceptions.
        endpoint: the path that its strict provider allows, below the client's base URL.
        ask, raw: makes a small request with a client; further arguments replace its own. `raw` gives the response.
        omitted: what takes a header away that the SDK would send.
    """

    provider: str
    make: Any
    errors: Any
    endpoint: str
    ask: Callable[..., Any]
    raw: Callable[..., Any]
    omitted: Any

    def code(self, error: Any) -> Any:
        """The code that the SDK found in the body of a refusal."""
        return error.code if self.provider == "openai" else error.error_code

    def in_body(self, error: Any) -> Any:
        """The code in `error.body`, which OpenAI's SDK has unwrapped."""
        return error.body["code"] if self.provider == "openai" else error.body["error"]["code"]


def ask_gpt(client: Any, **more: Any) -> Any:
    return client.chat.completions.create(**{"model": GPT, "messages": ASK, **more})


def ask_claude(client: Any, **more: Any) -> Any:
    return client.messages.create(**{"model": CLAUDE, "max_tokens": 20, "messages": ASK, **more})


def raw_gpt(client: Any, **more: Any) -> Any:
    return client.chat.completions.with_raw_response.create(**{"model": GPT, "messages": ASK, **more})


def raw_claude(client: Any, **more: Any) -> Any:
    return client.messages.with_raw_response.create(**{"model": CLAUDE, "max_tokens": 20, "messages": ASK, **more})


OPENAI = Sdk("openai", gpt, openai, "/chat/completions", ask_gpt, raw_gpt, openai.Omit())
ANTHROPIC = Sdk("anthropic", claude, anthropic, "/v1/messages", ask_claude, raw_claude, anthropic.Omit())


@frozen
class Case:
    """A refusal and how to get it.

    Attributes:
        code, status: what the contract says.
        error: the exception of both SDKs, or of each.
        kind: which of the providers, such as `-strict`.
        token: the fields of the new token.
        spoil: does something about the token after it was made; returns what to send instead of it, if anything.
        call: makes the request; the usual one where None.
        headers: added to every request.
    """

    code: str
    status: int
    error: str | tuple[str, str]
    kind: str = ""
    token: Fields = field(factory=dict)
    spoil: Callable[[Deployment, Fields], str | None] = lambda _deployment, _token: None
    call: Callable[[Sdk, Any], Any] | None = None
    headers: dict[str, str] = field(factory=dict)

    def exception(self, sdk: Sdk) -> type[Exception]:
        """The exception that this SDK has for it."""
        name = self.error if isinstance(self.error, str) else self.error[sdk is ANTHROPIC]
        found: type[Exception] = getattr(sdk.errors, name, None) or getattr(sdk.errors._exceptions, name)
        return found


def revoked(deployment: Deployment, token: Fields) -> None:
    deployment.server.manage("DELETE", f"/tokens/{token['id']}")


def withered(deployment: Deployment, token: Fields) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=1)
    deployment.server.manage("PATCH", f"/tokens/{token['id']}", {"expires_at": soon.isoformat()})
    time.sleep(1.01)


def deactivated(deployment: Deployment, token: Fields) -> None:
    deployment.server.manage("PATCH", f"/projects/{token['project_id']}", {"active": False})


def used_up(deployment: Deployment, token: Fields) -> None:
    for _ in range(token["max_requests"]):
        trio.run(deployment.server.request, "GET", "/v1/models", [("x-api-key", token["token"])])


def without_token(sdk: Sdk, client: Any) -> Any:
    headers = {"Authorization": sdk.omitted, "X-Api-Key": sdk.omitted}
    return sdk.ask(client, extra_headers=headers)


def below(sdk: Sdk, path: str) -> str:
    return path if sdk is OPENAI else f"/v1{path}"


STRICT = {"Origin": ORIGIN, TEAM: "blue"}
CASES = [
    Case("token_missing", 401, "AuthenticationError", call=without_token),
    Case("token_invalid", 401, "AuthenticationError", spoil=lambda _d, _t: "sk-" + "x" * 43),
    Case("token_invalid", 401, "AuthenticationError", spoil=lambda _d, _t: "not-even-in-form"),
    Case("token_inactive", 401, "AuthenticationError", spoil=revoked),
    Case("token_expired", 401, "AuthenticationError", spoil=withered),
    Case("project_inactive", 403, "PermissionDeniedError", spoil=deactivated),
    Case("origin_not_allowed", 403, "PermissionDeniedError", "-strict", headers={**STRICT, "Origin": "https://evil"}),
    Case("endpoint_not_allowed", 404, "NotFoundError", "-strict", call=lambda _sdk, client: client.models.list()),
    Case(
        "method_not_allowed",
        405,
        "APIStatusError",
        "-strict",
        headers=STRICT,
        call=lambda sdk, client: client.get(sdk.endpoint, cast_to=object),
    ),
    Case("header_required", 400, "BadRequestError", "-strict", headers={"Origin": ORIGIN}),
    Case(
        "parameter_not_allowed",
        400,
        "BadRequestError",
        "-strict",
        headers=STRICT,
        call=lambda sdk, client: sdk.ask(client, model="the-most-expensive-one"),
    ),
    Case(
        "invalid_json",
        400,
        "BadRequestError",
        "-strict",
        headers=STRICT,
        call=lambda sdk, client: client.post(sdk.endpoint, content=b'{"model": ', cast_to=object),
    ),
    Case(
        "invalid_path",
        400,
        "BadRequestError",
        call=lambda sdk, client: client.get(below(sdk, "/models/%2e%2e/files"), cast_to=object),
    ),
    Case(
        "request_too_large",
        413,
        ("APIStatusError", "RequestTooLargeError"),
        call=lambda sdk, client: sdk.ask(client, messages=[{"role": "user", "content": "x" * LARGEST}]),
    ),
    Case("request_limit_exceeded", 429, "RateLimitError", token={"max_requests": 1}, spoil=used_up),
    Case("upstream_unreachable", 502, "InternalServerError", "-absent"),
    Case("upstream_unreachable", 502, "InternalServerError", headers={"x-upstream-fault": "reset-early"}),
    Case(
        "upstream_timeout",
        504,
        ("InternalServerError", "GatewayTimeoutError"),
        "-silent",
        headers={"x-scripted-delay": "60"},
    ),
]
