from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from attrs import evolve

from db.records import Project, Reservation, Token
from llm_proxy.errors import (
    DatabaseUnavailable,
    EndpointNotAllowed,
    MethodNotAllowed,
    ProjectInactive,
    ProxyError,
    RequestLimitExceeded,
    TokenExpired,
    TokenInactive,
    TokenInvalid,
)
from llm_proxy.identifiers import new_id, request_id
from llm_proxy.ledger import AdmissionRequest, Grant, Terms
from llm_proxy.ledger.outage import token_cache
from llm_proxy.ledger.outage.token_cache import Circle
from tests.db.queries.books import NOON, a_project, a_token

TERMS = Terms(window=300, requests=3, duration=600)
PROJECT = a_project()


def a_grant(token: Token, counted: int = 1) -> Grant:
    reservation = Reservation(request_id(), new_id(), token.id, PROJECT.id, "openai", "POST", "/v1/x", NOON)
    return Grant(reservation, token.digest, "sealed", token, counted)


def apply(token: Token, provider: str | None = None, refusal: ProxyError | None = None) -> AdmissionRequest:
    return AdmissionRequest(request_id(), token.digest, provider, "POST", "/v1/x", lambda _name: refusal)


def knowing(*, counted: int = 1, **fields: Any) -> tuple[Circle, Token]:
    """A circle that has seen one token open at clock 0."""
    circle, token = Circle(), a_token(PROJECT.id, **fields)
    circle.learn(token.digest, a_grant(token, counted), 0.0, used_too=False)
    return circle, token


def vouched(circle: Circle, token: Token, clock: float = 1.0, **application: Any) -> bool:
    try:
        circle.vouch(apply(token, **application), TERMS, clock, NOON)
    except DatabaseUnavailable:
        return False
    return True


def test_a_token_goes_on_for_so_many_requests() -> None:
    circle, token = knowing()
    assert [vouched(circle, token) for _ in range(5)] == [True, True, True, False, False]


def test_a_token_goes_on_until_the_end_of_its_window() -> None:
    circle, token = knowing()
    assert vouched(circle, token, 300.0)
    assert not vouched(circle, token, 300.1)


def test_a_token_that_was_never_seen_does_not_go_on() -> None:
    circle, _ = knowing()
    assert not vouched(circle, a_token(PROJECT.id))


def test_the_limit_holds_by_the_last_known_counter() -> None:
    circle, token = knowing(max_requests=10, request_count=7, counted=8)
    assert [vouched(circle, token) for _ in range(3)] == [True, True, False]


def test_an_expired_token_does_not_go_on() -> None:
    circle, token = knowing(expires_at=NOON)
    assert not vouched(circle, token)
    circle, token = knowing(expires_at=NOON + timedelta(microseconds=1))
    assert vouched(circle, token)


def test_the_request_itself_is_judged_as_ever() -> None:
    circle, token = knowing()
    with pytest.raises(MethodNotAllowed):
        circle.vouch(apply(token, refusal=MethodNotAllowed()), TERMS, 1.0, NOON)
    assert not vouched(circle, token, provider="anthropic")
    assert [vouched(circle, token, provider="openai") for _ in range(4)] == [True, True, True, False]


@pytest.mark.parametrize("refusal", [TokenInvalid, TokenInactive, TokenExpired, ProjectInactive, RequestLimitExceeded])
def test_a_token_that_was_refused_is_forgotten(refusal: type[ProxyError]) -> None:
    circle, token = knowing()
    circle.learn(token.digest, refusal(), 1.0, used_too=False)
    assert not vouched(circle, token)


def test_a_request_that_was_refused_for_itself_says_nothing_about_its_token() -> None:
    circle, token = knowing()
    circle.learn(token.digest, EndpointNotAllowed(), 250.0, used_too=False)
    assert vouched(circle, token, 300.0)
    assert not vouched(circle, token, 301.0)


@pytest.mark.parametrize(("used_too", "left"), [(False, 3), (True, 1)])
def test_opening_again_begins_anew_unless_the_books_do_not_know_of_it(used_too: bool, left: int) -> None:
    circle, token = knowing()
    assert vouched(circle, token)
    assert vouched(circle, token)
    circle.learn(token.digest, a_grant(token), 100.0, used_too=used_too)
    assert sum(vouched(circle, token, 400.0) for _ in range(5)) == left


@pytest.mark.parametrize(
    "found",
    [
        lambda _: None,
        lambda token: (evolve(token, active=False), PROJECT),
        lambda token: (evolve(token, expires_at=NOON), PROJECT),
        lambda token: (token, evolve(PROJECT, active=False)),
    ],
)
def test_a_second_look_forgets_what_does_not_open_any_more(found: Any) -> None:
    circle, token = knowing()
    circle.review(token.digest, found(token), NOON)
    assert not vouched(circle, token)


def test_a_second_look_takes_over_what_has_changed_but_verifies_nothing() -> None:
    circle, token = knowing(max_requests=10)
    moved: tuple[Token, Project] = (evolve(token, request_count=9), evolve(PROJECT, api_key="new"))
    circle.review(token.digest, moved, NOON)
    assert not vouched(circle, token, 300.1)
    assert circle.vouch(apply(token), TERMS, 1.0, NOON).sealed_key == "new"
    assert not vouched(circle, token)


def test_a_second_look_that_comes_late_does_not_turn_the_counter_back() -> None:
    circle, token = knowing(max_requests=10, request_count=9, counted=10)
    circle.review(token.digest, (token, PROJECT), NOON)
    assert not vouched(circle, token)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "MAX_KNOWN", 3)
    circle, first = knowing()
    others = [a_token(PROJECT.id) for _ in range(2)]
    for token in (*others, first, a_token(PROJECT.id)):
        circle.learn(token.digest, a_grant(token), 1.0, used_too=False)
    assert len(circle) == 3
    assert vouched(circle, first)
    assert [vouched(circle, token) for token in others] == [False, True]


def test_the_old_ones_are_forgotten_in_passing() -> None:
    circle, _ = knowing()
    young = a_token(PROJECT.id)
    circle.learn(young.digest, a_grant(young), 200.0, used_too=False)
    assert circle.answers(TERMS, 500.0)
    assert circle.fresh(301.0, 300.0) == [young.digest]
    assert not circle.answers(TERMS, 501.0)


@pytest.mark.parametrize("refusal", [None, MethodNotAllowed()])
def test_a_refusal_of_a_known_token_says_whose_it_is(refusal: ProxyError | None) -> None:
    circle, token = knowing()
    with pytest.raises(ProxyError) as refused:
        circle.vouch(apply(token, "openai" if refusal else "anthropic", refusal), TERMS, 1.0, NOON)
    found = refused.value
    assert (found.token_id, found.project_id, found.provider) == (token.id, PROJECT.id, "openai")
