"""Limits in the shared transaction: what is admitted, held, charged and given back."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from attrs import evolve, frozen

from db import Connection
from db.database import Database
from db.queries import ledger as queries
from db.queries import limits as limit_queries
from db.queries import projects, tokens
from db.records import Limit, LimitCounter, Result, Token
from llm_proxy.errors import CostUnbounded, ProxyError
from llm_proxy.identifiers import new_id, request_id
from llm_proxy.ledger.transaction import AdmissionRequest, Decision, Grant, Settlement, transact
from llm_proxy.limits import Blocked, Bound, started_at
from tests.databases.sent import sent_from_now_on
from tests.db.queries.factories import a_limit, a_project, a_token, to_default

WORKER = new_id()


@frozen
class FixedDemand:
    """A request whose use is known."""

    model: str = "m"
    tokens: int = 10
    cost: int | None = 1000
    bound: Bound | None = None
    bills: bool = True

    def models(self, _provider: str) -> Sequence[str]:
        return (self.model,)

    def generates(self, _provider: str) -> bool:
        return self.bills

    def input_tokens(self) -> int:
        return self.tokens

    def input_cost(self, _provider: str) -> int | None:
        return self.cost

    def is_unpriced_later(self, _provider: str) -> bool:
        return False

    def worst_case(self, _provider: str) -> Bound:
        if not self.bills:
            return Bound(0, 0, 0)
        if self.bound is None:
            raise CostUnbounded
        return self.bound


@pytest.fixture
def token(database: Database) -> Token:
    project = a_project()
    database.write_now(projects.create, project)
    made = a_token(project.id)
    database.write_now(tokens.create, made)
    return made


def limited(database: Database, token: Token, scope: str = "token", **fields: Any) -> Limit:
    subject = {"token": token.id, "project": token.project_id, "proxy": ""}[scope]
    limit = a_limit(scope=scope, subject=subject, **fields)
    database.write_now(limit_queries.create, limit)
    return limit


def apply(token: Token, demand: FixedDemand = FixedDemand()) -> AdmissionRequest:
    return AdmissionRequest(request_id(), token.digest, to_default, "POST", "/v1/x", lambda _name: None, demand=demand)


def admit(database: Database, *requests: AdmissionRequest, **options: Any) -> list[Decision]:
    return database.write_now(partial(transact, **options), WORKER, requests, [], datetime.now(UTC))


def settle(database: Database, *pairs: tuple[Grant, Result], doubtful: bool = False) -> None:
    settlements = [Settlement.of(grant, result) for grant, result in pairs]
    database.write_now(partial(transact, doubtful=doubtful), WORKER, [], settlements, datetime.now(UTC))


def told(decisions: Sequence[Decision]) -> list[str]:
    def one(decision: Decision) -> str:
        if isinstance(decision, Blocked):
            return f"waits: {decision.error.code}"
        return decision.code if isinstance(decision, ProxyError) else "ok"

    return [one(decision) for decision in decisions]


def grants(decisions: Sequence[Decision]) -> list[Grant]:
    return [one for one in decisions if isinstance(one, Grant)]


def counter(database: Database, limit: Limit) -> LimitCounter:
    def read(connection: Connection) -> LimitCounter:
        key = limit_queries.counter_id(limit.id, started_at(limit.period, datetime.now(UTC)))
        return limit_queries.read_counters(connection, [key])[key]

    return database.read_now(read)


def state(database: Database, limit: Limit) -> tuple[int, int, int]:
    found = counter(database, limit)
    return found.used, found.reserved, found.unknown


def wait_for_a_window(period: str) -> None:
    """Wait for the next minute if it may otherwise begin during the test."""
    if period == "minute" and (left := 60 - time.time() % 60) < 5:
        time.sleep(left)


OK = Result(outcome="ok", status=200, requested_model="m", input_tokens=7, output_tokens=5, cost_nanousd=1200)


@pytest.mark.parametrize("scope", ["token", "project", "proxy"])
@pytest.mark.parametrize("period", ["total", "minute", "month"])
def test_a_limit_of_requests_is_never_exceeded(database: Database, token: Token, scope: str, period: str) -> None:
    wait_for_a_window(period)
    limit = limited(database, token, scope, period=period)
    decisions = admit(database, *(apply(token) for _ in range(3)))
    refused = "request_limit_exceeded" if period == "total" else "rate_limit_exceeded"
    assert told(decisions) == ["ok", "ok", refused]
    assert state(database, limit) == (0, 2, 0)
    first, second = grants(decisions)
    settle(database, (first, OK), (second, Result(outcome="void")))
    assert state(database, limit) == (1, 0, 0)
    assert told(admit(database, apply(token), apply(token))) == ["ok", refused]


def test_a_token_without_limits_has_none(database: Database, token: Token) -> None:
    other = evolve(a_token(token.project_id))
    database.write_now(tokens.create, other)
    limited(database, other, amount=0)
    (grant,) = grants(admit(database, apply(token, FixedDemand(bills=False))))
    assert grant.reservation.limits is None


def test_money_is_refused_once_what_is_settled_reaches_it(database: Database, token: Token) -> None:
    limit = limited(database, token, metric="cost", period="day", amount=2000)
    decisions = admit(database, apply(token), apply(token), apply(token))
    assert told(decisions) == ["ok"] * 3
    settle(database, *((grant, OK) for grant in grants(decisions)))
    assert state(database, limit) == (3600, 0, 0)
    (refusal,) = admit(database, apply(token))
    assert isinstance(refusal, ProxyError)
    assert refusal.code == "budget_exceeded"
    assert refusal.limit_id == limit.id
    assert "$0.0000036 of $0.000002" in refusal.message
    assert refusal.retry_after is not None


def test_a_reserved_budget_admits_no_more_than_fits(database: Database, token: Token) -> None:
    limit = limited(database, token, metric="cost", amount=5000, policy="reserved", wait_ms=1000)
    demand = FixedDemand(bound=Bound(10, 10, 2000))
    decisions = admit(database, *(apply(token, demand) for _ in range(4)))
    assert told(decisions) == ["ok", "ok", "waits: budget_reserved", "waits: budget_reserved"]
    assert state(database, limit) == (0, 4000, 0)
    settle(database, *((grant, OK) for grant in grants(decisions)))
    assert state(database, limit) == (2400, 0, 0)
    assert told(admit(database, apply(token, demand))) == ["ok"]
    too_much = FixedDemand(bound=Bound(10, 10, 2601))
    refusals = admit(database, apply(token, too_much), apply(token, FixedDemand()))
    assert told(refusals) == ["budget_exceeded", "cost_unbounded"]
    assert [refusal.limit_id for refusal in refusals if isinstance(refusal, ProxyError)] == [limit.id] * 2


@pytest.mark.parametrize(("worst", "waits"), [(4000, True), (5001, False)])
def test_a_request_that_does_not_fit_into_what_is_left_is_told_how_much_that_is(
    database: Database, token: Token, worst: int, *, waits: bool
) -> None:
    limited(database, token, metric="cost", amount=5000, policy="reserved", period="day")
    (grant,) = grants(admit(database, apply(token, FixedDemand(bound=Bound(10, 10, 2000)))))
    settle(database, (grant, OK))
    (refusal,) = admit(database, apply(token, FixedDemand(bound=Bound(10, 10, worst))))
    assert isinstance(refusal, ProxyError)
    assert (refusal.code, refusal.retry_after is not None) == ("budget_exceeded", waits)
    assert "has $0.0000038 of $0.000005 left, and this request may use up to" in refusal.message


def test_a_request_waits_behind_those_that_came_before(database: Database, token: Token) -> None:
    limit = limited(database, token, metric="concurrency", amount=1, wait_ms=1000)
    (grant,) = grants(admit(database, apply(token)))
    settle(database, (grant, OK))
    assert told(admit(database, apply(token), waiting={limit.id})) == ["waits: rate_limit_exceeded"]
    decisions = admit(database, apply(token), apply(token), waiting={limit.id}, retried=1)
    assert told(decisions) == ["ok", "waits: rate_limit_exceeded"]


def test_a_request_that_needs_nothing_of_a_limit_waits_for_nobody(database: Database, token: Token) -> None:
    limit = limited(database, token, metric="cost", amount=5000, policy="reserved", wait_ms=1000)
    small, free = FixedDemand(bound=Bound(10, 10, 1)), FixedDemand(bills=False)
    decisions = admit(database, apply(token, small), apply(token, free), waiting={limit.id})
    assert told(decisions) == ["waits: budget_reserved", "ok"]


def test_a_model_without_a_price_is_refused_unless_the_limit_allows_it(database: Database, token: Token) -> None:
    unpriced = FixedDemand(cost=None)
    strict = limited(database, token, metric="cost", amount=10**9)
    assert told(admit(database, apply(token, unpriced))) == ["model_not_priced"]
    database.write_now(limit_queries.remove, strict)
    open_ = limited(database, token, metric="cost", amount=10**9, allow_unpriced=True)
    (grant,) = grants(admit(database, apply(token, unpriced)))
    settle(database, (grant, Result(outcome="ok", requested_model="m", input_tokens=1, output_tokens=1)))
    assert counter(database, open_).unpriced == 1


@pytest.mark.parametrize(
    ("metric", "policy", "charged"),
    [("tokens", "settled", 10), ("cost", "settled", 1000), ("cost", "reserved", 2000), ("requests", "settled", 1)],
)
def test_an_answer_that_counts_nothing_is_charged_what_it_held(
    database: Database, token: Token, metric: str, policy: str, charged: int
) -> None:
    limit = limited(database, token, metric=metric, policy=policy, amount=5000)
    (grant,) = grants(admit(database, apply(token, FixedDemand(bound=Bound(10, 20, 2000)))))
    settle(database, (grant, Result(outcome="ok", requested_model="m", usage_details={})))
    assert state(database, limit) == (charged, 0, 0)
    assert counter(database, limit).unpriced == (metric == "cost")


@pytest.mark.parametrize(("policy", "charged"), [("settled", 1000), ("reserved", 2000), ("warn", 1000)])
def test_a_request_without_a_known_cost_is_charged_what_it_held(
    database: Database, token: Token, policy: str, charged: int
) -> None:
    limit = limited(database, token, metric="cost", policy=policy, amount=5000)
    (grant,) = grants(admit(database, apply(token, FixedDemand(bound=Bound(10, 20, 2000)))))
    settle(database, (grant, Result(outcome="ok", requested_model="m", input_tokens=1, output_tokens=1)))
    assert state(database, limit) == (charged, 0, 0)
    assert counter(database, limit).unpriced == 1


def test_a_limit_counts_only_its_models(database: Database, token: Token) -> None:
    limited(database, token, amount=1, models={"patterns": ["gpt-5*", "o4"]})
    decisions = admit(database, *(apply(token, FixedDemand(model)) for model in ("m", "GPT-5.4", "o4", "o4-mini")))
    assert told(decisions) == ["ok", "ok", "request_limit_exceeded", "ok"]


@pytest.mark.parametrize(
    ("metric", "policy", "charged"),
    [("tokens", "settled", 10), ("cost", "settled", 1000), ("cost", "reserved", 2000), ("output_tokens", "settled", 0)],
)
def test_a_request_whose_worker_died_is_charged_what_it_held(
    database: Database, token: Token, metric: str, policy: str, charged: int
) -> None:
    limit = limited(database, token, metric=metric, policy=policy, amount=5000)
    (grant,) = grants(admit(database, apply(token, FixedDemand(bound=Bound(10, 20, 2000)))))
    database.write_now(queries.sweep, [grant.reservation.id], datetime.now(UTC))
    assert state(database, limit) == (charged, 0, charged)
    # It was only paused, and settles after all.
    settle(database, (grant, OK), doubtful=True)
    used = {"tokens": 12, "cost": 1200, "output_tokens": 5}[metric]
    assert state(database, limit) == (used, 0, 0)
    settle(database, (grant, OK), doubtful=True)
    assert state(database, limit) == (used, 0, 0)


def test_a_refused_commit_is_given_back(database: Database, token: Token) -> None:
    limit = limited(database, token)
    (grant,) = grants(admit(database, apply(token)))
    database.write_now(queries.give_back, [grant.reservation.id], datetime.now(UTC))
    assert state(database, limit) == (0, 0, 0)


def test_a_deleted_limit_is_ignored_by_requests_that_hold_some_of_it(database: Database, token: Token) -> None:
    limit = limited(database, token)
    (grant,) = grants(admit(database, apply(token)))
    database.write_now(limit_queries.remove, limit)
    settle(database, (grant, OK))
    key = limit_queries.counter_id(limit.id, None)
    assert database.read_now(limit_queries.read_counters, [key]) == {}
    (free,) = grants(admit(database, apply(token)))
    assert free.reservation.limits is None
    assert free.token.limited is False


def test_locks_are_taken_of_tokens_then_counters_by_id_then_hourly_sums(database: Database, token: Token) -> None:
    for scope in ("token", "project", "proxy"):
        limited(database, token, scope)
    (grant,) = grants(admit(database, apply(token)))
    statements: list[str] = []

    def run(connection: Connection) -> None:
        nonlocal statements
        statements = sent_from_now_on(connection)
        transact(connection, WORKER, [apply(token)], [Settlement.of(grant, OK)], datetime.now(UTC))

    database.write_now(run)
    pattern = re.compile(r"(?:FROM|INTO|UPDATE) (tokens|limit_counters|usage_hourly)\b")
    first = {found[1]: text for text in reversed(statements) if (found := pattern.search(text))}
    assert sorted(first, key=lambda table: statements.index(first[table])) == [
        "tokens",
        "limit_counters",
        "usage_hourly",
    ]
    assert "ORDER BY limit_counters.id" in first["limit_counters"]


def test_the_row_of_a_request_says_what_it_held_and_when_by_the_database(database: Database, token: Token) -> None:
    limit = limited(database, token, period="hour")
    (grant,) = grants(admit(database, apply(token)))
    (key,) = grant.reservation.limits or {}
    assert key == limit_queries.counter_id(limit.id, started_at("hour", grant.reservation.admitted_at))
    (seen,) = grant.limits
    assert (seen.used, seen.reserved) == (0, 1)


def test_only_warning_limits_refuse_nothing(database: Database, token: Token) -> None:
    limit = limited(database, token, metric="tokens", amount=10, policy="warn")
    (grant,) = grants(admit(database, apply(token)))
    settle(database, (grant, OK))
    (again,) = grants(admit(database, apply(token)))
    assert [one.warns for one in (*grant.limits, *again.limits)] == [False, True]
    assert state(database, limit)[0] == 12
