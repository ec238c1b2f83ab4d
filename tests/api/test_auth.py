from __future__ import annotations

import hmac

import pytest
import structlog
import trio
import trio.testing

from llm_proxy.api import auth
from llm_proxy.api.auth import Guard
from llm_proxy.errors import Unauthorized
from tests.api.conftest import MANAGEMENT_TOKEN, Api

RIGHT = ["Bearer right-token"]
WRONG = ["Bearer wrong-token"]
HERE, THERE = "192.0.2.1", "198.51.100.7"


@pytest.fixture
def guard() -> Guard:
    return Guard("right-token")


def refused(guard: Guard, address: str = HERE, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(Unauthorized):
            guard.check(address, WRONG)


@pytest.mark.parametrize(
    "authorization",
    [["Bearer right-token"], ["bearer right-token"], ["BEARER   right-token "]],
)
async def test_the_right_token_is_accepted(guard: Guard, authorization: list[str]) -> None:
    guard.check(HERE, authorization)


@pytest.mark.parametrize(
    ("authorization", "description"),
    [
        ([], Unauthorized.description),
        ([""], Unauthorized.description),
        (["Bearer"], Unauthorized.description),
        (["Bearer "], Unauthorized.description),
        (["right-token"], Unauthorized.description),
        (["Basic right-token"], Unauthorized.description),
        (["Bearer right-token", "Bearer right-token"], Unauthorized.description),
        (["Bearer right-toke"], "The management token is wrong."),
        (["Bearer right-tokens"], "The management token is wrong."),
        (["Bearer Right-token"], "The management token is wrong."),
        (["Bearer right-token, Bearer right-token"], "The management token is wrong."),
        (["Bearer r\xefght-\ud800"], "The management token is wrong."),
    ],
)
async def test_every_other_authorization_is_refused(guard: Guard, authorization: list[str], description: str) -> None:
    with pytest.raises(Unauthorized) as refusal:
        guard.check(HERE, authorization)
    assert refusal.value.description == description


@pytest.mark.parametrize("authorization", [[], [""], ["Bearer"], ["Bearer "], ["Bearer \xa0"], ["Bearer x"]])
async def test_without_a_management_token_every_request_is_refused(authorization: list[str]) -> None:
    with pytest.raises(Unauthorized):
        Guard("").check(HERE, authorization)


async def test_tokens_are_compared_in_constant_time(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return False

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for token in ("r", "right-token", "x" * 1000):
        with pytest.raises(Unauthorized):
            guard.check(HERE, [f"Bearer {token}"])
    assert {len(side) for sides in compared for side in sides} == {32}, "of one length, whatever was guessed"
    assert len(compared) == 3


async def test_the_right_token_is_accepted_after_many_wrong_ones(guard: Guard) -> None:
    refused(guard, times=1000)
    guard.check(HERE, RIGHT)


async def test_wrong_tokens_are_logged_at_most_once_in_an_interval_and_counted(
    guard: Guard, autojump_clock: trio.testing.MockClock
) -> None:
    with structlog.testing.capture_logs() as logged:
        refused(guard, times=500)
        await trio.sleep(auth.LOG_INTERVAL)
        refused(guard, THERE)
    assert [(line["address"], line["attempts"]) for line in logged] == [(HERE, 1), (THERE, 500)]


async def test_a_missing_token_is_not_logged(guard: Guard) -> None:
    with structlog.testing.capture_logs() as logged, pytest.raises(Unauthorized):
        guard.check(HERE, [])
    assert logged == []


async def test_every_route_below_manage_needs_the_token(api: Api) -> None:
    rules = [rule.rule for rule in api.app.url_map.iter_rules() if rule.rule.startswith("/manage")]
    assert len(rules) >= 9
    identity = "6f1b4a52-8a39-4c0e-9d0e-6c1f7d1f3b11"
    for rule in rules:
        path = rule.replace("<project_id>", identity).replace("<token_id>", identity).replace("<path:rest>", "x")
        for method in ("GET", "POST", "PATCH", "PUT", "DELETE", "OPTIONS"):
            reply = await api(method, path, {}, token=None)
            assert (reply.status, reply.json) == (
                401,
                {
                    "error": "The management API needs the management token",
                    "code": "unauthorized",
                    "description": Unauthorized.description,
                },
            )
            assert reply.headers["WWW-Authenticate"] == 'Bearer realm="llm-proxy management"'


async def test_a_header_name_with_an_underscore_is_another_name(api: Api) -> None:
    """As WSGI would not have it, where `Content_Type` and `Content-Type` are one variable."""
    body = {"name": "p", "api_key": "sk-key-1234"}
    ignored = {"Content_Type": "text/plain", "X_HTTP_Method_Override": "DELETE", "Content_Length": "1"}
    assert (await api("POST", "/manage/projects", body, headers=ignored)).status == 201
    alone = {"Authorization_": f"Bearer {MANAGEMENT_TOKEN}", "Authorization": "Bearer wrong-token"}
    assert (await api("GET", "/manage/projects", headers=alone)).status == 401


async def test_the_right_token_is_accepted_over_http_after_ten_wrong_ones_from_its_address(api: Api) -> None:
    for _ in range(11):
        reply = await api("GET", "/manage/projects", token="wrong")
        assert (reply.status, reply.json["description"]) == (401, "The management token is wrong.")
    assert (await api("GET", "/manage/projects", token=MANAGEMENT_TOKEN)).status == 200


def test_repr_of_a_guard_has_no_token() -> None:
    guard = Guard("right-token")
    assert "right-token" not in f"{guard!r}{guard.__dict__}"
