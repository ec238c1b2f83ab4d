from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from attrs import evolve
from msgspec.structs import replace

from db.records import Limit, Reservation, Token
from llm_proxy.errors import (
    DatabaseUnavailable,
    EndpointNotAllowed,
    MethodNotAllowed,
    ModelNotAllowed,
    ProjectInactive,
    ProxyError,
    RequestLimitExceeded,
    TokenExpired,
    TokenInactive,
    TokenInvalid,
)
from llm_proxy.identifiers import new_id, request_id
from llm_proxy.ledger import AdmissionRequest, Grant
from llm_proxy.ledger.limits import LimitState
from llm_proxy.ledger.outage import token_cache
from llm_proxy.ledger.outage.token_cache import CachedToken, OutageLimits, TokenCache
from tests.db.queries import factories
from tests.db.queries.factories import NOON, a_project, a_token, an_account, to_default
from tests.ledger.test_limits import FixedDemand

LIMITS = OutageLimits(window=300, requests=3, duration=600)
PROJECT = a_project()
ACCOUNT = an_account(PROJECT)
LIMITED = replace(ACCOUNT, limited=True)


def a_grant(token: Token, counted: int = 1) -> Grant:
    reservation = Reservation(request_id(), new_id(), token.id, PROJECT.id, "openai", "POST", "/v1/x", NOON)
    return Grant(reservation, token.digest, ACCOUNT, token, counted)


def apply(token: Token, provider: str | None = None, refusal: ProxyError | None = None) -> AdmissionRequest:
    chosen = to_default if provider is None else lambda _: provider
    return AdmissionRequest(request_id(), token.digest, chosen, "POST", "/v1/x", lambda _name: refusal)


def cache_with_token(*, counted: int = 1, **fields: Any) -> tuple[TokenCache, Token]:
    """A cache with one token that was verified at clock 0."""
    cache, token = TokenCache(LIMITS), a_token(PROJECT.id, **fields)
    cache.record(token.digest, a_grant(token, counted), 0.0, keep_used=False)
    return cache, token


def authorize(cache: TokenCache, token: Token, clock: float = 1.0, **request: Any) -> CachedToken:
    """Authorize a request, and count it as the spool does."""
    cached, _ = cache.authorize_offline(apply(token, **request), clock, NOON)
    cached.used += 1
    return cached


def authorized(cache: TokenCache, token: Token, clock: float = 1.0, **request: Any) -> bool:
    try:
        authorize(cache, token, clock, **request)
    except DatabaseUnavailable:
        return False
    return True


def test_a_token_is_authorized_up_to_its_maximum() -> None:
    cache, token = cache_with_token()
    assert [authorized(cache, token) for _ in range(5)] == [True, True, True, False, False]


def test_a_token_is_authorized_until_its_window_ends() -> None:
    cache, token = cache_with_token()
    assert authorized(cache, token, 300.0)
    assert not authorized(cache, token, 300.1)


def test_an_unknown_token_is_refused() -> None:
    cache, _ = cache_with_token()
    assert not authorized(cache, a_token(PROJECT.id))


def test_the_limit_of_the_token_is_judged_by_the_last_counter() -> None:
    cache, token = cache_with_token(max_requests=10, request_count=7, counted=8)
    assert [authorized(cache, token) for _ in range(3)] == [True, True, False]


def test_an_expired_token_is_refused() -> None:
    cache, token = cache_with_token(expires_at=NOON)
    assert not authorized(cache, token)
    cache, token = cache_with_token(expires_at=NOON + timedelta(microseconds=1))
    assert authorized(cache, token)


def test_the_rules_of_the_provider_are_applied() -> None:
    cache, token = cache_with_token()
    with pytest.raises(MethodNotAllowed):
        authorize(cache, token, refusal=MethodNotAllowed())
    assert not authorized(cache, token, provider="anthropic")
    assert [authorized(cache, token, provider="openai") for _ in range(4)] == [True, True, True, False]


@pytest.mark.parametrize("refusal", [TokenInvalid, TokenInactive, TokenExpired, ProjectInactive, RequestLimitExceeded])
def test_a_token_that_the_ledger_refused_is_removed(refusal: type[ProxyError]) -> None:
    cache, token = cache_with_token()
    cache.record(token.digest, refusal(), 1.0, keep_used=False)
    assert not authorized(cache, token)


def test_a_refusal_that_concerns_the_request_changes_nothing() -> None:
    cache, token = cache_with_token()
    cache.record(token.digest, EndpointNotAllowed(), 250.0, keep_used=False)
    assert authorized(cache, token, 300.0)
    assert not authorized(cache, token, 301.0)


@pytest.mark.parametrize(("keep_used", "left"), [(False, 3), (True, 1)])
def test_a_new_decision_resets_the_maximum_unless_the_database_lacks_requests(keep_used: bool, left: int) -> None:
    cache, token = cache_with_token()
    assert authorized(cache, token)
    assert authorized(cache, token)
    cache.record(token.digest, a_grant(token), 100.0, keep_used=keep_used)
    assert sum(authorized(cache, token, 400.0) for _ in range(5)) == left


@pytest.mark.parametrize(
    "found",
    [
        lambda _: None,
        lambda token: (evolve(token, active=False), ACCOUNT),
        lambda token: (evolve(token, expires_at=NOON), ACCOUNT),
        lambda token: (token, an_account(evolve(PROJECT, active=False))),
    ],
)
def test_refreshing_removes_a_token_that_is_no_longer_valid(found: Any) -> None:
    cache, token = cache_with_token()
    cache.refresh(token.digest, found(token), (), NOON)
    assert not authorized(cache, token)


def test_refreshing_takes_over_changes_but_does_not_verify() -> None:
    cache, token = cache_with_token(max_requests=10)
    moved = (evolve(token, request_count=9), an_account(evolve(PROJECT, api_key="new")))
    cache.refresh(token.digest, moved, (), NOON)
    assert not authorized(cache, token, 300.1)
    assert authorize(cache, token).account.keys["openai"].sealed == "new"
    assert not authorized(cache, token)


def test_refreshing_late_does_not_decrease_the_counter() -> None:
    cache, token = cache_with_token(max_requests=10, request_count=9, counted=10)
    cache.refresh(token.digest, (token, ACCOUNT), (), NOON)
    assert not authorized(cache, token)


def a_limit(**fields: Any) -> Limit:
    return factories.a_limit(**{"metric": "cost", "amount": 5} | fields)


@pytest.mark.parametrize(
    ("fields", "served"),
    [
        ({}, True),
        ({"metric": "requests"}, True),
        ({"metric": "concurrency"}, False),
        ({"policy": "reserved"}, False),
        ({"metric": "requests", "period": "minute"}, False),
        ({"period": "month"}, False),
        ({"period": "month", "policy": "warn"}, True),
    ],
)
def test_a_limit_that_needs_the_database_refuses_its_token(fields: dict[str, str], served: bool) -> None:
    limit = a_limit(**fields)
    for account, token in ((ACCOUNT, a_token(PROJECT.id, limited=True)), (LIMITED, a_token(PROJECT.id))):
        cache, grant = TokenCache(LIMITS), a_grant(token)
        cache.record(token.digest, replace(grant, account=account), 0.0, keep_used=False)
        assert not authorized(cache, token), "its limits are not known yet"
        cache.refresh(token.digest, (token, account), [limit], NOON)
        assert authorized(cache, token) is served
        cache.record(token.digest, replace(grant, account=account), 0.0, keep_used=False)
        assert authorized(cache, token) is served


def test_a_limit_that_a_grant_passed_is_known_before_the_next_refresh() -> None:
    token = a_token(PROJECT.id, limited=True)
    cache, grant = TokenCache(LIMITS), a_grant(token)
    cache.record(token.digest, grant, 0.0, keep_used=False)
    cache.refresh(token.digest, (token, ACCOUNT), [], NOON)
    assert authorized(cache, token)
    state = LimitState(a_limit(period="day"), 0, 0, None)
    cache.record(token.digest, replace(grant, limits=(state,)), 0.0, keep_used=False)
    assert not authorized(cache, token)


def test_a_token_is_authorized_at_once_when_its_limits_were_deleted() -> None:
    token = a_token(PROJECT.id, limited=True)
    cache, grant = TokenCache(LIMITS), a_grant(token)
    cache.record(token.digest, grant, 0.0, keep_used=False)
    assert not authorized(cache, token)
    free = evolve(token, limited=False)
    cache.record(token.digest, replace(grant, token=free), 0.0, keep_used=False)
    assert authorized(cache, free)


def test_a_full_cache_removes_the_token_that_was_verified_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(token_cache, "MAX_TOKENS", 3)
    cache, first = cache_with_token()
    others = [a_token(PROJECT.id) for _ in range(2)]
    for token in (*others, first, a_token(PROJECT.id)):
        cache.record(token.digest, a_grant(token), 1.0, keep_used=False)
    assert len(cache) == 3
    assert authorized(cache, first)
    assert [authorized(cache, token) for token in others] == [False, True]


def test_stale_tokens_are_removed() -> None:
    cache, _ = cache_with_token()
    young = a_token(PROJECT.id)
    cache.record(young.digest, a_grant(young), 200.0, keep_used=False)
    assert cache.has_valid(500.0)
    assert cache.remove_stale(301.0) == [young.digest]
    assert not cache.has_valid(501.0)


@pytest.mark.parametrize("refusal", [None, MethodNotAllowed()])
def test_a_refusal_of_a_cached_token_has_its_ids(refusal: ProxyError | None) -> None:
    cache, token = cache_with_token()
    with pytest.raises(ProxyError) as refused:
        authorize(cache, token, provider="openai" if refusal else "anthropic", refusal=refusal)
    found = refused.value
    assert (found.token_id, found.project_id, found.provider) == (
        token.id,
        PROJECT.id,
        "openai" if refusal else "anthropic",
    )


def test_the_allow_list_of_models_holds() -> None:
    cache, token = cache_with_token(models={"patterns": ["good*"]})
    bad, good = (replace(apply(token), demand=FixedDemand(model)) for model in ("bad", "good"))
    with pytest.raises(ModelNotAllowed, match=r'"bad" is not allowed here. Allowed models: good\*'):
        cache.authorize_offline(bad, 1.0, NOON)
    assert cache.authorize_offline(good, 1.0, NOON)[0].token is token
