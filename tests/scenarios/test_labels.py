"""Labels: from the token and from headers, into the ledger and its sums, and never to the provider."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from benchmarks.processes import Upstream
from tests.databases.kinds import Kind
from tests.databases.scratch import Databases
from tests.harness import client
from tests.harness.deployment import Deployment, chat_body, chat_headers
from tests.harness.server import ServerFailed
from tests.scenarios.aftermath import settled
from tests.scenarios.gateway import ORIGIN, TEAM, open_gateway

SETTINGS = {"LABEL_HEADERS": "X-User=user, X-Feature=feature", "LABEL_KEYS": "team"}
SENT = (("X-LLM-Proxy-Labels", "feature=search, team=shop"), ("X-User", "alice"), ("X_User", "mallory"))


@pytest.fixture(scope="module")
def gateway(
    databases: Databases, session_upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    with (
        databases.migrated(Kind.SQLITE) as scratch,
        open_gateway(scratch, session_upstream, tmp_path_factory.mktemp("gateway"), SETTINGS) as deployment,
    ):
        yield deployment


def chat(gateway: Deployment, secret: str, *headers: tuple[str, str]) -> client.Response:
    head = chat_headers(secret, *headers, ("x-scripted-echo", "1"))
    return trio.run(gateway.server.request, "POST", "/v1/chat/completions", head, chat_body())


def labels(gateway: Deployment, token: dict[str, Any], *headers: tuple[str, str]) -> Any:
    """The labels in the ledger of a request with these headers."""
    assert chat(gateway, token["token"], *headers).status == 200
    (row,) = settled(gateway.server, token["id"], 1)
    return row["labels"]


def test_labels_of_headers_are_recorded_where_the_project_allows_it(gateway: Deployment) -> None:
    project = gateway.new_project(allow_request_labels=True)
    assert labels(gateway, gateway.new_token(project["id"]), *SENT) == {
        "feature": "search",
        "team": "shop",
        "user": "alice",
    }


def test_labels_of_the_token_win(gateway: Deployment) -> None:
    project = gateway.new_project(allow_request_labels=True)
    token = gateway.new_token(project["id"], labels={"team": "search", "env": "prod"})
    assert labels(gateway, token, *SENT) == {"env": "prod", "feature": "search", "team": "search", "user": "alice"}


def test_labels_of_headers_are_ignored_elsewhere(gateway: Deployment) -> None:
    token = gateway.new_token(labels={"team": "search"})
    assert labels(gateway, token, *SENT) == {"team": "search"}
    assert labels(gateway, gateway.new_token(), *SENT, ("X-LLM-Proxy-Labels", "not a label")) is None


def test_a_change_of_labels_holds_at_the_next_request(gateway: Deployment) -> None:
    token = gateway.new_token(labels={"team": "search"})
    gateway.server.manage("PATCH", f"/tokens/{token['id']}", {"labels": {}})
    assert labels(gateway, token) is None


@pytest.mark.parametrize("allowed", [True, False])
def test_no_header_of_labels_reaches_the_provider(gateway: Deployment, allowed: bool) -> None:
    project = gateway.new_project(allow_request_labels=allowed)
    answer = chat(gateway, gateway.new_secret(project["id"]), *SENT, ("X_LLM_Proxy_Labels", "a=b"))
    received = json.loads(base64.b64decode(answer.header("x-scripted-received") or ""))
    names = {name.lower().replace("_", "-") for name, _ in received["headers"]}
    assert not names & {"x-llm-proxy-labels", "x-user", "x-feature"}
    assert "content-type" in names


@pytest.mark.parametrize(
    ("header", "value", "message"),
    [
        ("X-LLM-Proxy-Labels", "team", "The header x-llm-proxy-labels has labels that are not valid."),
        ("X-LLM-Proxy-Labels", "Team=a", "The header x-llm-proxy-labels has labels that are not valid."),
        ("X-LLM-Proxy-Labels", "user=bob", "The label 'user' has two values."),
        ("X-LLM-Proxy-Labels", f"team=sk-{'a' * 43}", "The label 'team' contains a secret."),
        ("X-Feature", "f" * 129, "The header x-feature has labels that are not valid."),
        ("X-LLM-Proxy-Labels", ",".join(f"k{n}=v" for n in range(17)), "Send at most 16 labels"),
    ],
)
def test_wrong_labels_are_refused_where_labels_are_allowed(
    gateway: Deployment, header: str, value: str, message: str
) -> None:
    project = gateway.new_project(allow_request_labels=True)
    answer = chat(gateway, gateway.new_secret(project["id"]), ("X-User", "alice"), (header, value))
    assert (answer.status, answer.json()["error"]["code"]) == (400, "bad_request")
    assert message in answer.json()["error"]["message"]


def test_wrong_labels_of_a_token_are_refused(gateway: Deployment) -> None:
    project = gateway.new_project()
    for wrong in ({"Team": "a"}, {"team": ""}, {"team": 1}, {"team": "a\nb"}, {f"k{n}": "v" for n in range(17)}):
        with pytest.raises(ServerFailed, match="at most 16 labels"):
            gateway.new_token(project["id"], labels=wrong)


def test_a_header_that_the_provider_requires_can_be_a_label(
    databases: Databases, session_upstream: Upstream, tmp_path: Path
) -> None:
    settings = {"LABEL_HEADERS": f"{TEAM}=team"}
    with (
        databases.migrated(Kind.SQLITE) as scratch,
        open_gateway(scratch, session_upstream, tmp_path, settings, strict=True) as gateway,
    ):
        project = gateway.new_project(provider="openai-strict", allow_request_labels=True)
        token = gateway.new_token(project["id"])
        headers = (("Origin", ORIGIN), (TEAM, "search"))
        assert labels(gateway, token, *headers) == {"team": "search"}
        assert chat(gateway, token["token"], ("Origin", ORIGIN)).json()["error"]["code"] == "header_required"
