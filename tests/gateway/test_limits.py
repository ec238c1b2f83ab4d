"""What a client and the log are told of the limits that judged a request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, field
from sqlalchemy import select

from db.queries import limits, refusals
from db.records import Limit
from db.schema import tokens
from llm_proxy.gateway.http.headers import with_rate_limits
from llm_proxy.ledger import AdmissionRequest, Checked, Ledger
from llm_proxy.ledger.limits import LimitState
from llm_proxy.ledger.refusals import RefusalRecorder
from tests.db.queries import factories
from tests.db.queries.factories import NOON
from tests.gateway.stage import Client, scene

PROVIDERS = [
    (b"content-type", b"application/json"),
    (b"x-ratelimit-limit-requests", b"9999"),
    (b"x_ratelimit_remaining_requests", b"9998"),
    (b"x-ratelimit-reset-tokens", b"7s"),
    (b"anthropic-ratelimit-requests-limit", b"9999"),
]


def a_limit(**fields: Any) -> Limit:
    return factories.a_limit(**{"period": "minute", "amount": 60} | fields)


def a_state(used: int = 10, reserved: int = 5, **fields: Any) -> LimitState:
    return LimitState(a_limit(**fields), used, reserved, NOON.replace(second=40, microsecond=0))


def told(*states: LimitState, anthropic: bool = False) -> dict[bytes, bytes]:
    """The headers of a response 12.5 seconds before the window of the limits ends."""
    now = NOON.replace(second=27, microsecond=500_000)
    return dict(with_rate_limits(PROVIDERS, states, now, anthropic=anthropic))


def test_a_limit_of_requests_replaces_that_of_the_provider() -> None:
    found = told(a_state())
    assert {name: value for name, value in found.items() if b"requests" in name} == {
        b"x-ratelimit-limit-requests": b"60",
        b"x-ratelimit-remaining-requests": b"45",
        b"x-ratelimit-reset-requests": b"13s",
        b"anthropic-ratelimit-requests-limit": b"9999",
    }
    assert found[b"x-ratelimit-reset-tokens"] == b"7s"


def test_anthropics_names_are_used_in_its_api() -> None:
    found = told(a_state(), a_state(metric="input_tokens", amount=100), anthropic=True)
    assert {name: value for name, value in found.items() if name.startswith(b"anthropic-")} == {
        b"anthropic-ratelimit-requests-limit": b"60",
        b"anthropic-ratelimit-requests-remaining": b"45",
        b"anthropic-ratelimit-requests-reset": b"2027-01-15T12:00:40Z",
        b"anthropic-ratelimit-input-tokens-limit": b"100",
        b"anthropic-ratelimit-input-tokens-remaining": b"85",
        b"anthropic-ratelimit-input-tokens-reset": b"2027-01-15T12:00:40Z",
    }


def test_the_limit_with_the_least_left_is_shown() -> None:
    found = told(a_state(), a_state(used=98, amount=100), a_state(amount=1000), a_state(metric="tokens", amount=7))
    assert found[b"x-ratelimit-limit-requests"] == b"100"
    assert found[b"x-ratelimit-remaining-requests"] == b"0"
    assert found[b"x-ratelimit-remaining-tokens"] == b"0"
    assert found[b"x-ratelimit-reset-tokens"] == b"13s"


@pytest.mark.parametrize(
    "fields", [{"period": "hour"}, {"policy": "warn"}, {"metric": "cost"}, {"metric": "concurrency", "period": "total"}]
)
def test_other_limits_change_nothing(fields: dict[str, Any]) -> None:
    assert told(a_state(**fields)) == dict(PROVIDERS)


async def test_client_log_and_recorded_refusal_are_told_of_the_limit_of_a_request(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        recorder = stage.relay.refusals = RefusalRecorder(stage.database)
        token_id = await stage.database.read(lambda connection: connection.scalar(select(tokens.c.id)))
        limit = a_limit(scope="token", subject=token_id, amount=1)
        await stage.database.write(limits.create, limit)
        # The second or the third is refused, even if a new minute begins meanwhile.
        clients = [Client([b'{"model":"m"}']) for _ in range(3)]
        for client in clients:
            await stage.request(client, chunked=False, told=False)
        assert 429 in [client.received[0]["status"] for client in clients]
        for client in clients:
            found = dict(client.received[0]["headers"])
            assert found[b"x-ratelimit-limit-requests"] == b"1"
            assert found[b"x-ratelimit-remaining-requests"] == b"0"
            assert 0 <= int(found[b"x-ratelimit-reset-requests"].removesuffix(b"s")) <= 60
        await recorder.drain()
        recorded, _ = await stage.database.read(refusals.page, 9, None, refusals.Filter())
        assert {row.limit_id for row in recorded} == {limit.id}
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    shown = {(line.get("code"), line.get("limit_id")) for line in lines if line["event"] == "request"}
    assert shown == {(None, None), ("rate_limit_exceeded", limit.id)}


async def test_the_operator_is_told_of_a_reservation_that_was_too_small_and_of_a_limit_that_warns(
    tmp_path: Path,
) -> None:
    """The first request uses all at once, so the one that is refused is the first to see a limit that warns."""
    answer = b'{"model":"m","usage":{"prompt_tokens":5000,"completion_tokens":5000}}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(answer)
    limit = a_limit(metric="tokens", period="total", amount=2000, policy="reserved", warn_at=80)
    async with scene(tmp_path) as stage:
        stage.provider.script = lambda *_: head + answer
        await stage.database.write(limits.create, limit)
        for status in (200, 429):
            client = Client([b'{"model":"m","max_tokens":1,"messages":[]}'])
            await stage.request(client, chunked=False, told=False)
            assert client.received[0]["status"] == status
            await stage.assert_nothing_is_left()
        shown, _ = stage.relay.metrics.render()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [(line["event"], line["used"]) for line in lines if line["event"] != "request"] == [
        ("a request used more than it had reserved", 10_000),
        ("a limit is used up", 10_000),
    ]
    assert b'\nllm_proxy_limit_warnings_total{scope="proxy"} 1.0\n' in shown
    assert sum(b"reservation_exceeded_total{" in line and line.endswith(b" 1.0") for line in shown.splitlines()) == 1


@define
class SlowClient(Client):
    """Sends the last piece of its body when it is told to."""

    rest: trio.Event = field(factory=trio.Event)

    async def receive(self) -> dict[str, Any]:
        if len(self.pieces) == 1:
            await self.rest.wait()
        return await Client.receive(self)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        # The model has no price, so its maximum cost cannot be computed.
        ({"metric": "cost", "period": "month"}, 403),
        ({"metric": "cost", "period": "month", "policy": "reserved"}, 400),
        ({"metric": "tokens"}, 200),
        ({"models": {"patterns": ["m"]}}, 200),
        ({}, 200),
    ],
)
async def test_a_limit_that_is_created_while_a_body_arrives_is_judged_with_the_whole_body(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], status: int
) -> None:
    """The body is so long that it is not held without a limit, and its end comes after the admission."""
    client = SlowClient([b'{"model":"m","messages":[],"user":"' + b"x" * 2 * 1024 * 1024, b'"}'])
    async with scene(tmp_path) as stage:
        stage.relay.max_request_size = 1 << 24
        check = stage.ledger.check

        async def check_then_create(_: Ledger, request: AdmissionRequest) -> Checked:
            checked = await check(request)
            limit = a_limit(scope="proxy", subject="", **{"amount": 10**9} | fields)
            await stage.database.write(limits.create, limit)
            return checked

        monkeypatch.setattr(Ledger, "check", check_then_create)
        stage.ledger.on_decisions = lambda *_: client.rest.set()
        await stage.request(client, chunked=False, told=False)
        assert client.received[0]["status"] == status
        await stage.assert_nothing_is_left()
