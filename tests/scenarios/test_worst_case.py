"""Budgets under the policy `reserved`: what the SDKs see, and a burst whose worst case is larger than the budget."""
# ruff: noqa: ASYNC110 (what is waited for happens in another process)

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from tests.harness.deployment import Deployment
from tests.scenarios.gateway import figure
from tests.scenarios.refusals import ANTHROPIC, OPENAI, Sdk
from tests.scenarios.sdk import LAX_GENERATORS

pytestmark = [pytest.mark.filterwarnings(*LAX_GENERATORS)]

SDKS = pytest.mark.parametrize("sdk", [OPENAI, ANTHROPIC], ids=["openai", "anthropic"])
#: Retries that a client could afford, where the point is that it makes none.
RETRIES: Final = 3
#: The longest answer of the model, in tokens.
LONGEST: Final = 128_000
BURST: Final = 50


@pytest.fixture(scope="module")
def gateway_settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    path: Path = tmp_path_factory.mktemp("prices") / "prices.yaml"
    path.write_text("""
        prices:
          openai: {"gpt-*": {input: 1, output: 10}, "text-*": {input: 1}}
          anthropic: {"claude-*": {input: 1, output: 10}}
    """)
    return {"PRICES_PATH": str(path)}


def limited(gateway: Deployment, sdk: Sdk, **fields: Any) -> tuple[str, str]:
    """A token with a limit: its secret, and the limit's id."""
    project = gateway.new_project(provider=sdk.provider)
    token = gateway.new_token(project["id"])
    wanted = {"token_id": token["id"], "metric": "cost", "window": "total", "policy": "reserved", **fields}
    return token["token"], gateway.server.manage("POST", "/limits", wanted)["id"]


def state(gateway: Deployment, limit_id: str) -> tuple[float, float]:
    """What is used and reserved of a limit, once nothing of it is held."""
    deadline = time.monotonic() + 5
    while True:
        found = gateway.server.manage("GET", f"/limits/{limit_id}")
        if float(found["reserved"]) == 0 or time.monotonic() > deadline:
            return float(found["used"]), float(found["reserved"])
        time.sleep(0.02)


@SDKS
async def test_a_burst_that_fits_is_served_if_it_waits(gateway: Deployment, sdk: Sdk) -> None:
    """The budget is a hundred times what the burst costs, and two worst cases."""
    secret, limit_id = limited(gateway, sdk, amount="2.60", wait="30s")
    served: Counter[str] = Counter()
    async with sdk.make("async", gateway.server.url, secret) as client, trio.open_nursery() as nursery:

        async def ask() -> None:
            await sdk.ask(client, max_tokens=LONGEST, timeout=60)
            served["served"] += 1

        for _ in range(BURST):
            nursery.start_soon(ask)
    assert served == {"served": BURST}
    used, reserved = await trio.to_thread.run_sync(state, gateway, limit_id)
    assert 0 < used < 0.26
    assert reserved == 0
    assert figure(gateway, "llm_proxy_reservation_exceeded_total") == 0


@SDKS
async def test_a_reserved_budget_is_told_from_one_that_is_spent(gateway: Deployment, sdk: Sdk) -> None:
    secret, _ = limited(gateway, sdk, amount="2.60")
    gateway.upstream.hold()
    async with sdk.make("async", gateway.server.url, secret) as client, trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(lambda: sdk.ask(client, max_tokens=LONGEST, timeout=60))
        await trio.to_thread.run_sync(lambda: gateway.upstream.wait(in_flight=2))
        with pytest.raises(sdk.errors.RateLimitError, match="is reserved by running requests") as caught:
            await sdk.ask(client, max_tokens=LONGEST, timeout=60)
        gateway.upstream.release()
    error = caught.value
    assert sdk.code(error) == "budget_reserved"
    assert error.response.headers["retry-after"] == "1"


@SDKS
async def test_the_sdk_repeats_a_request_until_the_reservation_is_given_back(gateway: Deployment, sdk: Sdk) -> None:
    secret, _ = limited(gateway, sdk, amount="2.60")
    gateway.upstream.hold()
    async with sdk.make("async", gateway.server.url, secret, max_retries=2) as client, trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(lambda: sdk.ask(client, max_tokens=LONGEST, timeout=60))
        await trio.to_thread.run_sync(lambda: gateway.upstream.wait(in_flight=2))
        before = figure(gateway, "llm_proxy_refusals_total", code="budget_reserved")
        nursery.start_soon(lambda: sdk.ask(client, max_tokens=LONGEST, timeout=60))
        with trio.fail_after(5):
            while figure(gateway, "llm_proxy_refusals_total", code="budget_reserved") == before:
                await trio.sleep(0.01)
        gateway.upstream.release()
    assert gateway.upstream.counts()["answered"] == 3


def refusals() -> Iterator[Any]:
    for sdk in (OPENAI, ANTHROPIC):
        name = "max_completion_tokens" if sdk is OPENAI else "max_tokens"
        image = [{"role": "user", "content": [{"type": "image"}]}]
        for code, status, fields, budget, words in (
            (
                "budget_exceeded",
                429,
                {"max_tokens": LONGEST, "timeout": 60},
                "0.10",
                "this request may use up to $1.28",
            ),
            ("cost_unbounded", 400, {name: 10, "messages": image}, "1", "the field 'messages.content.type'"),
            ("model_not_priced", 403, {name: 10, "model": "unpriced"}, "1", "'unpriced' has no price"),
        ):
            yield pytest.param(sdk, code, status, fields, budget, words, id=f"{sdk.provider}-{code}")


@pytest.mark.parametrize(("sdk", "code", "status", "fields", "budget", "words"), list(refusals()))
async def test_a_final_refusal_is_shown_and_not_repeated(
    gateway: Deployment, sdk: Sdk, code: str, status: int, fields: dict[str, Any], budget: str, words: str
) -> None:
    secret, _ = limited(gateway, sdk, amount=budget)
    before = figure(gateway, "llm_proxy_refusals_total", code=code)
    async with sdk.make("async", gateway.server.url, secret, max_retries=RETRIES) as client:
        with pytest.raises(sdk.errors.APIStatusError) as caught:
            await sdk.ask(client, **fields)
    error: Any = caught.value
    assert (error.status_code, sdk.code(error)) == (status, code)
    assert words in str(error)
    assert figure(gateway, "llm_proxy_refusals_total", code=code) == before + 1
    assert gateway.upstream.counts()["requests"] == 0


async def test_a_request_without_a_maximum_is_told_what_to_send(gateway: Deployment) -> None:
    secret, _ = limited(gateway, OPENAI, amount="1")
    async with OPENAI.make("async", gateway.server.url, secret) as client:
        with pytest.raises(OPENAI.errors.BadRequestError, match=r"max_completion_tokens.*Send it") as caught:
            await OPENAI.ask(client)
        assert caught.value.param == "max_completion_tokens"
        assert (await client.models.list()).data
        assert (await client.files.create(file=("lines.jsonl", b"{}\n"), purpose="batch")).id
        assert (await client.embeddings.create(model="text-embedding-scripted", input="one")).data
