"""Wrong requests as bytes, the server that they go to, and the answer that each of them must get."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio
import yaml
from attrs import Factory, frozen

from benchmarks.processes import Upstream
from tests.databases.scratch import Scratch
from tests.harness import client
from tests.harness.deployment import Deployment, provider_settings
from tests.harness.server import MANAGEMENT_TOKEN, running_server
from tests.scenarios import ledger_checks
from tests.scenarios.bad_input import assert_fit_for_users

#: Bytes of the largest body that the server takes.
LARGEST = 1000
CHAT = "/v1/chat/completions"
JSON = "Content-Type: application/json\r\n"
BODY = '{"model": "gpt-4o"}'
#: An id that nothing has.
UNKNOWN = "6f1b4a52-8a39-4c0e-9d0e-6c1f7d1f3b11"

#: The rules of the provider `strict`.
RULES = {
    "allowed_endpoints": [CHAT],
    "allowed_methods": ["POST"],
    "required_headers": ["x-team"],
    "allowed_origins": ["https://app.example.com"],
    "param_whitelist": {"model": ["gpt-4o*"]},
}


@frozen
class World:
    """A server, and the tokens that requests to it name.

    Attributes:
        token: opens the provider `openai`; `strict` the one of that name.
        revoked, stopped, used, unknown: opens nothing: revoked, of a deactivated project, used up, never made.
        manager: the management token.
    """

    deployment: Deployment
    tokens: Mapping[str, str]


@contextmanager
def open_world(scratch: Scratch, upstream: Upstream, folder: Path) -> Iterator[World]:
    """Start the server. Rejected requests must leave nothing in the ledger and no error in the log."""
    file = folder / "providers.yaml"
    apis = {"openai": {"base_url": upstream.url}, "strict": {"base_url": upstream.url, **RULES}}
    file.write_text(yaml.safe_dump({"apis": apis}))
    settings = {"API_CONFIG_PATH": str(file), "MAX_REQUEST_SIZE": str(LARGEST)}
    with running_server(scratch.env, provider_settings(upstream) | settings) as server:
        deployment = Deployment(server, upstream)
        revoked, stopped = deployment.new_token(), deployment.new_project()
        tokens = {
            "token": deployment.new_secret(),
            "strict": deployment.new_secret(deployment.new_project(provider="strict")["id"]),
            "revoked": revoked["token"],
            "stopped": deployment.new_secret(stopped["id"]),
            "used": deployment.new_secret(max_requests=1),
            "unknown": "sk-" + "a" * 43,
            "manager": MANAGEMENT_TOKEN,
        }
        server.manage("DELETE", f"/tokens/{revoked['id']}")
        server.manage("PATCH", f"/projects/{stopped['id']}", {"active": False})
        assert trio.run(deployment.chat, tokens["used"]).status == 200
        yield World(deployment, tokens)
        assert server.stop() == 0, server.output
        assert_fit_for_users(server.output, *tokens.values())
    # But for the one that has used the token up, and those that were too large only once they were under way.
    assert ledger_checks.outcomes(scratch.target).keys() <= {"ok", "void"}
    assert ledger_checks.outcomes(scratch.target)["ok"] == 1
    ledger_checks.verify(scratch.env)


@frozen
class Bad:
    """A wrong request.

    Attributes:
        says: what is wrong with it.
        head: its head, without the last empty line; braces name one of the world's tokens.
        body: goes with its length where the head has none.
        status: of the answer.
        said: the answer's body, as JSON.
        headers: what else the answer must have; None for a header that must not be there.
    """

    says: str
    head: str
    body: str
    status: int
    said: dict[str, Any]
    headers: Mapping[str, str | None] = Factory(dict)

    def __str__(self) -> str:
        """Name the test of this row."""
        return self.says

    def wire(self, tokens: Mapping[str, str]) -> bytes:
        """The request as it is sent; in Latin-1, so that a row may hold any byte."""
        head = self.head.format(**tokens)
        if self.body and "content-length" not in head.lower() and "transfer-encoding" not in head.lower():
            head += f"Content-Length: {len(self.body)}\r\n"
        return f"{head}\r\n{self.body}".encode("latin-1")

    def check(self, world: World) -> None:
        """Send it, and compare the whole answer."""
        answer = trio.run(self._ask, world)
        got, expected = (answer.status, answer.json()), (self.status, self.said)
        assert got == expected, f"{got} instead of {expected}"
        for name, value in self.headers.items():
            assert answer.header(name) == value, f"{name}: {answer.header(name)} instead of {value}"
        assert_fit_for_users(answer.body.decode(), *world.tokens.values())

    async def _ask(self, world: World) -> client.Response:
        async with client.connect(world.deployment.server.url) as connection:
            await connection.send(self.wire(world.tokens))
            return await connection.response("POST")


def openai(
    says: str,
    head: str,
    status: int,
    code: str,
    message: str,
    body: str = "",
    **more: Any,
) -> Bad:
    """A request that the data plane refuses in OpenAI's shape; `param`, `type` and `headers` where they are special."""
    error = {
        "message": message,
        "type": more.get("type", "invalid_request_error"),
        "param": more.get("param"),
        "code": code,
    }
    retry = {"x-should-retry": None if status == 408 or status >= 500 else "false"}
    return Bad(says, head, body, status, {"error": error}, retry | more.get("headers", {}))


def refused(says: str, head: str, status: int, code: str, message: str, body: str = "") -> Bad:
    """A request that never gets past the server itself; nothing can follow on its connection."""
    headers = {"connection": "close", "x-should-retry": "false"}
    return openai(says, head, status, code, message, body, headers=headers)


def manage(says: str, head: str, status: int, code: str, error: str, description: str, **more: Any) -> Bad:
    """A request that the control plane refuses; `content` is sent as JSON, or as it is where it is text."""
    content = more.get("content", "")
    body = content if isinstance(content, str) else json.dumps(content)
    said = {"error": error, "code": code, "description": description}
    wanted = {"cache-control": "no-store", **more.get("headers", {})}
    return Bad(says, head + ("" if "Content-Type" in head or not body else JSON), body, status, said, wanted)


def start(method: str, target: str, token: str = "token", *fields: str) -> str:
    """A request line, the host, and one of the world's tokens, if any."""
    bearer = f"Authorization: Bearer {{{token}}}\r\n" if token else ""
    return f"{method} {target} HTTP/1.1\r\nHost: a\r\n{bearer}" + "".join(f"{field}\r\n" for field in fields)
