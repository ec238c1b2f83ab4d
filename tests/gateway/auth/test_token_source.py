from __future__ import annotations

import threading
from pathlib import Path

import pytest
import trio
from attrs import define, field
from trio.testing import MockClock, wait_all_tasks_blocked

from llm_proxy.errors import CredentialNotExchanged
from llm_proxy.gateway.auth import token_source
from llm_proxy.gateway.auth.token_source import EXCHANGE_TIMEOUT, AccessToken, ExchangeFailed, TokenSource
from llm_proxy.logging import log

HOUR = 3600.0


@define
class Vendor:
    """Exchanges secrets, as often as it is asked: each token has a number."""

    lifetime: float = HOUR
    failure: Exception | None = None
    calls: list[str] = field(factory=list)
    gate: threading.Event = field(factory=threading.Event)

    def __attrs_post_init__(self) -> None:
        self.gate.set()

    def exchange(self, secret: str) -> AccessToken:
        self.calls.append(secret)
        self.gate.wait(60)
        if self.failure is not None:
            raise self.failure
        return AccessToken(f"token-{len(self.calls)}", self.lifetime)


@pytest.fixture
def vendor() -> Vendor:
    return Vendor()


@pytest.fixture
def source(vendor: Vendor) -> TokenSource:
    return TokenSource("google", vendor.exchange)


async def settled() -> None:
    """Wait until the exchanges in threads have ended too."""
    await wait_all_tasks_blocked(0.05)


@pytest.mark.parametrize(("lifetime", "refreshed_at"), [(HOUR, HOUR - 300), (600, 480), (60, 48)])
async def test_a_token_is_refreshed_before_it_ends_while_the_old_one_is_used(
    vendor: Vendor, source: TokenSource, mock_clock: MockClock, lifetime: float, refreshed_at: float
) -> None:
    vendor.lifetime = lifetime
    assert await source.token("secret") == "token-1"
    mock_clock.jump(refreshed_at - 1)
    assert await source.token("secret") == "token-1"
    await settled()
    assert len(vendor.calls) == 1
    mock_clock.jump(1)
    vendor.gate.clear()
    assert await source.token("secret") == "token-1", "the exchange is not waited for"
    assert await source.token("secret") == "token-1"
    vendor.gate.set()
    await settled()
    assert await source.token("secret") == "token-2"
    assert len(vendor.calls) == 2


async def test_a_token_that_has_ended_is_not_used(vendor: Vendor, source: TokenSource, mock_clock: MockClock) -> None:
    assert await source.token("secret") == "token-1"
    mock_clock.jump(HOUR)
    assert await source.token("secret") == "token-2"


async def test_fifty_requests_share_one_exchange(vendor: Vendor, source: TokenSource) -> None:
    vendor.gate.clear()
    found: list[str] = []

    async def ask() -> None:
        found.append(await source.token("secret"))

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(ask)
        await settled()
        assert found == []
        vendor.gate.set()
    assert found == ["token-1"] * 50
    assert vendor.calls == ["secret"]


async def test_credentials_are_exchanged_at_the_same_time_and_separately(vendor: Vendor, source: TokenSource) -> None:
    vendor.gate.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.token, "one")
        nursery.start_soon(source.token, "two")
        await settled()
        assert sorted(vendor.calls) == ["one", "two"]
        vendor.gate.set()


async def test_a_cancelled_request_does_not_cancel_the_exchange_for_the_others(
    vendor: Vendor, source: TokenSource
) -> None:
    vendor.gate.clear()
    found: list[str] = []

    async def ask() -> None:
        found.append(await source.token("secret"))

    async with trio.open_nursery() as others:
        async with trio.open_nursery() as first:
            first.start_soon(source.token, "secret")
            await settled()
            assert vendor.calls == ["secret"]
            others.start_soon(ask)
            await settled()
            first.cancel_scope.cancel()
        vendor.gate.set()
    assert found == ["token-1"]
    assert vendor.calls == ["secret"]


async def test_a_failure_is_shared_and_the_next_request_tries_again(vendor: Vendor, source: TokenSource) -> None:
    vendor.failure = ExchangeFailed("the token endpoint answered 401 (invalid_client)")
    with pytest.raises(CredentialNotExchanged) as caught:
        await source.token("secret")
    assert (caught.value.status, caught.value.code) == (502, "upstream_unreachable")
    assert caught.value.message == (
        "The provider's credential could not be exchanged for a token: the token endpoint answered 401"
        " (invalid_client). Nothing was sent to the provider."
    )
    vendor.failure = None
    assert await source.token("secret") == "token-2"


async def test_after_a_failed_refresh_the_old_token_is_used_until_it_ends(
    vendor: Vendor, source: TokenSource, mock_clock: MockClock
) -> None:
    await source.token("secret")
    vendor.failure = ExchangeFailed("the token endpoint answered 503")
    mock_clock.jump(HOUR - 100)
    for _ in range(3):
        assert await source.token("secret") == "token-1"
        await settled()
    assert len(vendor.calls) == 2, "a refresh that failed is not tried again at once"
    mock_clock.jump(10)
    assert await source.token("secret") == "token-1"
    await settled()
    assert len(vendor.calls) == 3
    mock_clock.jump(90)
    with pytest.raises(CredentialNotExchanged, match="503"):
        await source.token("secret")


async def test_a_dropped_token_is_not_used_again(vendor: Vendor, source: TokenSource) -> None:
    await source.token("secret")
    source.drop("secret", "token-1")
    assert await source.token("secret") == "token-2"
    source.drop("secret", "token-1")
    assert await source.token("secret") == "token-2", "a newer token stays"


async def test_an_exchange_without_end_fails_in_time(
    vendor: Vendor, source: TokenSource, mock_clock: MockClock
) -> None:
    vendor.gate.clear()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _ask() -> None:
            with pytest.raises(CredentialNotExchanged, match="no answer within 30 s"):
                await source.token("secret")

        await settled()
        mock_clock.jump(EXCHANGE_TIMEOUT)
    vendor.gate.set()


async def test_the_number_of_credentials_is_bounded(
    vendor: Vendor, source: TokenSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_source, "_MAX_ENTRIES", 2)
    for secret in ("one", "two", "three", "three", "two", "one"):
        await source.token(secret)
    assert vendor.calls == ["one", "two", "three", "one"]
    assert len(source._entries) == 2


async def test_an_unexpected_error_shows_neither_secret_nor_message(
    vendor: Vendor, source: TokenSource, tmp_path: Path
) -> None:
    log.configure(level="debug", path=tmp_path / "log")
    vendor.failure = RuntimeError("could not use canary-1")
    with pytest.raises(CredentialNotExchanged) as caught:
        await source.token("canary-2")
    text = (tmp_path / "log").read_text() + caught.value.message
    assert "a credential could not be exchanged" in text
    assert "RuntimeError" in text
    assert "canary" not in text
