"""The log's line of a request: whose it was, where it came from, what became of it, and how to find its row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner, Result

from benchmarks.processes import Upstream
from llm_proxy.cli import program
from tests.databases.kinds import Kind
from tests.databases.scratch import Databases
from tests.docs.blocks import block
from tests.docs.prompt import done
from tests.harness.deployment import Deployment, chat_body
from tests.harness.server import MANAGEMENT_TOKEN, ROOT
from tests.scenarios.aftermath import settled, wait_for
from tests.scenarios.gateway import ORIGIN, TEAM, open_gateway

CHAT = "/v1/chat/completions"
CLIENT = "203.0.113.7"
JSON = ("Content-Type", "application/json")


@pytest.fixture(scope="module")
def gateway(
    databases: Databases, session_upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    with (
        databases.migrated(Kind.SQLITE) as scratch,
        open_gateway(
            scratch,
            session_upstream,
            tmp_path_factory.mktemp("gateway"),
            {"TRUSTED_PROXIES": "127.0.0.0/8", "RECORD_REFUSALS": "true"},
            strict=True,
        ) as deployment,
    ):
        yield deployment


def line(gateway: Deployment, request_id: str | None) -> dict[str, Any]:
    """The line of a request, without what differs from run to run."""

    def look() -> dict[str, Any] | None:
        found = [event for event in gateway.server.events if event.get("request_id") == request_id]
        return found[0] if found else None

    event = wait_for(look, 5, lambda: f"there is no line of {request_id}")
    for name in ("timestamp", "request_id", "duration_us"):
        assert event.pop(name)
    event.pop("request_bytes", None)
    return event


async def refused(
    gateway: Deployment, secret: str, target: str = CHAT, body: bytes = b"", *headers: tuple[str, str]
) -> dict[str, Any]:
    """What the log says of a request that is refused."""
    fields = [("X-Forwarded-For", CLIENT), *headers]
    if secret:
        fields.append(("Authorization", f"Bearer {secret}"))
    response = await gateway.server.request("POST", target, fields, body)
    return line(gateway, response.header("x-llm-proxy-request-id"))


def common(status: int, code: str, path: str = CHAT) -> dict[str, Any]:
    return {
        "level": "info",
        "event": "request",
        "method": "POST",
        "path": path,
        "outcome": "refused",
        "status": status,
        "code": code,
        "client": CLIENT,
    }


def owner(token: dict[str, Any], provider: str = "openai") -> dict[str, Any]:
    return {"token_id": token["id"], "project_id": token["project_id"], "provider": provider}


async def test_log_of_a_rejection_without_token_has_client_and_path(gateway: Deployment) -> None:
    assert await refused(gateway, "") == common(401, "token_missing")
    assert await refused(gateway, "sk-" + "a" * 43) == common(401, "token_invalid")
    named = "/anthropic/v1/messages"
    assert await refused(gateway, "", named) == common(401, "token_missing", named) | {"provider": "anthropic"}


async def test_log_of_a_rejected_token_has_token_and_project(gateway: Deployment) -> None:
    manage = gateway.server.manage
    revoked = gateway.new_token()
    manage("DELETE", f"/tokens/{revoked['id']}")
    assert await refused(gateway, revoked["token"]) == common(401, "token_inactive") | owner(revoked)

    expired = gateway.new_token(expires_at=(datetime.now(UTC) + timedelta(seconds=1)).isoformat())
    wait_for(
        lambda: datetime.fromisoformat(expired["expires_at"]) < datetime.now(UTC) or None, 5, lambda: "no time passes"
    )
    assert await refused(gateway, expired["token"]) == common(401, "token_expired") | owner(expired)

    used_up = gateway.new_token(max_requests=1)
    assert (await gateway.chat(used_up["token"])).status == 200
    assert await refused(gateway, used_up["token"]) == common(429, "request_limit_exceeded") | owner(used_up)

    elsewhere = gateway.new_token()
    path = "/v1/secrets"
    assert await refused(gateway, elsewhere["token"], path) == common(404, "endpoint_not_allowed", path) | owner(
        elsewhere
    )

    closed = gateway.new_project()
    token = gateway.new_token(closed["id"])
    manage("PATCH", f"/projects/{closed['id']}", {"active": False})
    assert await refused(gateway, token["token"]) == common(403, "project_inactive") | owner(token)


@pytest.mark.parametrize(("model", "shown"), [("gpt-9", "gpt-9"), ("a\\ud800b", "ab"), ("\\u0007", None)])
async def test_log_of_a_rejected_model_has_the_model(gateway: Deployment, model: str, shown: str | None) -> None:
    token = gateway.new_token(gateway.new_project(provider="openai-strict")["id"])
    body = chat_body().replace(b"gpt-scripted", model.encode())
    found = await refused(gateway, token["token"], CHAT, body, JSON, ("Origin", ORIGIN), (TEAM, "a"))
    wanted = common(400, "parameter_not_allowed") | owner(token, "openai-strict")
    assert found == (wanted if shown is None else wanted | {"model": shown})


async def test_log_of_a_used_up_token_has_the_model(gateway: Deployment) -> None:
    token = gateway.new_token(max_requests=1)
    assert (await gateway.chat(token["token"])).status == 200
    found = await refused(gateway, token["token"], CHAT, chat_body(), JSON)
    assert found == common(429, "request_limit_exceeded") | owner(token) | {"model": "gpt-scripted"}


def test_a_refusal_is_listed_with_what_its_log_line_says(gateway: Deployment) -> None:
    token = gateway.new_token(max_requests=1)
    assert trio.run(gateway.chat, token["token"]).status == 200
    path = f"/v1/files/{token['token']}"
    trio.run(refused, gateway, token["token"], path)
    trio.run(refused, gateway, token["token"], CHAT, chat_body(), JSON)

    def listed() -> list[dict[str, Any]] | None:
        result = manage(gateway, "refusal", "list", "--token-id", token["id"], "--json")
        found: list[dict[str, Any]] = json.loads(result.stdout)
        return found if len(found) == 2 else None

    newest, oldest = wait_for(listed, 5, lambda: "the refusals are not recorded")
    assert newest.pop("id") > oldest["id"]
    assert datetime.now(UTC) - datetime.fromisoformat(newest.pop("refused_at")) < timedelta(minutes=1)
    assert newest == owner(token) | {
        "method": "POST",
        "path": CHAT,
        "code": "request_limit_exceeded",
        "status": 429,
        "model": "gpt-scripted",
        "address": CLIENT,
        "limit_id": None,
    }
    assert token["token"] not in json.dumps(oldest)
    assert oldest["path"].startswith("/v1/files/")
    table = manage(gateway, "refusal", "list", "--code", "request_limit_exceeded", "--limit", "1").stdout
    assert table.splitlines()[1].split()[3:5] == ["request_limit_exceeded", "429"]
    csv = manage(gateway, "refusal", "list", "--token-id", token["id"], "--csv").stdout
    assert len(csv.splitlines()) == 3


async def test_log_of_an_admitted_request_has_the_client(gateway: Deployment) -> None:
    response = await gateway.chat(gateway.new_secret(), ("X-Forwarded-For", CLIENT))
    assert line(gateway, response.header("x-llm-proxy-request-id"))["client"] == CLIENT


def test_a_request_is_found_by_the_id_that_sdks_show(gateway: Deployment, tmp_path: Path) -> None:
    token = gateway.new_token()
    response = trio.run(gateway.chat, token["token"])
    settled(gateway.server, token["id"], 1)
    own, shown = response.header("x-llm-proxy-request-id"), response.header("x-request-id")
    script = block(ROOT / "docs" / "operations" / "monitoring.md", "find a request")
    script = script.replace("http://localhost:8080", gateway.server.url)
    script = script.replace("req_011CSHoEeqs5C35K2UUqR7Fy", str(shown))
    found: dict[str, Any] = json.loads(done(script, tmp_path, {"MANAGEMENT_TOKEN": MANAGEMENT_TOKEN}))
    assert found["id"] == own != shown
    assert (found["provider_request_id"], found["unmetered"]) == (shown, False)
    assert line(gateway, own)["provider_request_id"] == shown
    for identity in (str(own).upper(), str(shown)):
        assert json.loads(manage(gateway, "request", "get", identity, "--json").stdout) == found
    fields = dict(row.split(maxsplit=1) for row in manage(gateway, "request", "get", str(own)).stdout.splitlines())
    assert (fields["outcome"], fields["status"], fields["provider_request_id"]) == ("ok", "200", shown)
    absent = manage(gateway, "request", "get", "req_none")
    assert (absent.exit_code, absent.stdout) == (1, "")
    assert absent.stderr.startswith("error: There is no such request: No finished request has this id")


def manage(gateway: Deployment, *arguments: str) -> Result:
    """Run `llm-proxy manage` against the server, in this process."""
    where = ("--manage-api-base-url", gateway.server.url, "--management-token", MANAGEMENT_TOKEN)
    return CliRunner().invoke(program, ["manage", *arguments, *where], prog_name="llm-proxy")
