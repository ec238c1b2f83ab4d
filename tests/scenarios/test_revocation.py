"""A change on one replica applies to the next request on every replica, without a cache in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio
from attrs import define

from benchmarks.processes import Upstream
from tests.databases.fixtures import require
from tests.databases.kinds import Kind
from tests.databases.scratch import Databases
from tests.harness import client
from tests.harness.deployment import Deployment, chat_body, chat_headers, provider_settings
from tests.harness.server import running_server


@define
class Replicas:
    """Two servers on one database; on SQLite the one that there can be, twice."""

    told: Deployment
    asked: Deployment


@pytest.fixture(scope="module", params=list(Kind), ids=str)
def replicas(request: pytest.FixtureRequest, databases: Databases, session_upstream: Upstream) -> Iterator[Replicas]:
    kind = Kind(request.param)
    require(databases, kind)
    settings = provider_settings(session_upstream)
    with databases.migrated(kind) as scratch, running_server(scratch.env, settings) as first:
        told = Deployment(first, session_upstream)
        if kind is Kind.SQLITE:
            yield Replicas(told, told)
            return
        with running_server(scratch.env, settings) as second:
            yield Replicas(told, Deployment(second, session_upstream))


def revoke(told: Deployment, token: dict[str, Any]) -> None:
    told.server.manage("DELETE", f"/tokens/{token['id']}")


def revoke_all(told: Deployment, token: dict[str, Any]) -> None:
    told.server.manage("POST", f"/projects/{token['project_id']}/tokens/revoke")


def deactivate(told: Deployment, token: dict[str, Any]) -> None:
    told.server.manage("PATCH", f"/tokens/{token['id']}", {"active": False})


def rotate(told: Deployment, token: dict[str, Any]) -> None:
    told.server.manage("POST", f"/tokens/{token['id']}/rotate")


def deactivate_project(told: Deployment, token: dict[str, Any]) -> None:
    told.server.manage("PATCH", f"/projects/{token['project_id']}", {"active": False})


def deactivate_credential(told: Deployment, token: dict[str, Any]) -> None:
    (used,) = told.server.manage("GET", f"/projects/{token['project_id']}")["credentials"]
    told.server.manage("PATCH", f"/credentials/{used['id']}", {"active": False})


def expire(told: Deployment, token: dict[str, Any]) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=1)
    told.server.manage("PATCH", f"/tokens/{token['id']}", {"expires_at": soon.isoformat()})


def lower_the_limit(told: Deployment, token: dict[str, Any]) -> None:
    told.server.manage("PATCH", f"/tokens/{token['id']}", {"max_requests": 1})


def limit_the_token(told: Deployment, token: dict[str, Any]) -> None:
    told.server.manage("POST", "/limits", {"token_id": token["id"], "metric": "tokens", "window": "month", "amount": 0})


def limit_the_project(told: Deployment, token: dict[str, Any]) -> None:
    limit = {"project_id": token["project_id"], "metric": "requests", "window": "total", "amount": 5}
    made = told.server.manage("POST", "/limits", limit)
    told.server.manage("PATCH", f"/limits/{made['id']}", {"amount": 0})


def take_the_model_away(told: Deployment, token: dict[str, Any]) -> None:
    told.server.manage("PATCH", f"/projects/{token['project_id']}", {"models": ["another-*"]})


@pytest.mark.parametrize(
    ("change", "status", "code", "after"),
    [
        (revoke, 401, "token_inactive", 0),
        (revoke_all, 401, "token_inactive", 0),
        (deactivate, 401, "token_inactive", 0),
        (rotate, 401, "token_invalid", 0),
        (deactivate_project, 403, "project_inactive", 0),
        (deactivate_credential, 403, "credential_inactive", 0),
        (expire, 401, "token_expired", 1.01),
        (lower_the_limit, 429, "request_limit_exceeded", 0),
        (limit_the_token, 429, "budget_exceeded", 0),
        (limit_the_project, 429, "request_limit_exceeded", 0),
        (take_the_model_away, 403, "model_not_allowed", 0),
    ],
)
async def test_a_revoked_token_is_rejected_at_its_next_request_on_every_server(
    replicas: Replicas,
    change: Callable[[Deployment, dict[str, Any]], None],
    status: int,
    code: str,
    after: float,
) -> None:
    token = replicas.told.new_token()
    headers, body = chat_headers(token["token"]), chat_body()
    async with client.connect(replicas.asked.server.url) as connection:
        # On one kept connection: nothing about the token may stick to it.
        await connection.request("POST", "/v1/chat/completions", headers, body)
        assert (await connection.response()).status == 200
        await trio.to_thread.run_sync(change, replicas.told, token)
        await trio.sleep(after)
        await connection.request("POST", "/v1/chat/completions", headers, body)
        refused = await connection.response()
    assert (refused.status, refused.json()["error"]["code"]) == (status, code)
