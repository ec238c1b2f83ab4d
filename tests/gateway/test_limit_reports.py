from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import pytest
import structlog

from db.records import Limit, Reservation, Result
from llm_proxy.gateway import limit_reports
from llm_proxy.gateway.limit_reports import LimitReports
from llm_proxy.identifiers import new_id
from llm_proxy.ledger import Grant
from llm_proxy.ledger.limits import LimitState
from llm_proxy.metrics import Metrics
from tests.db.queries import factories
from tests.db.queries.factories import a_project, a_token, an_account

NOON: Final = datetime(2026, 11, 29, 12, tzinfo=UTC)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(["openai"])


@pytest.fixture
def reports(metrics: Metrics) -> LimitReports:
    return LimitReports(metrics)


def a_limit(**fields: Any) -> Limit:
    usual = {"scope": "project", "subject": "p", "metric": "cost", "period": "hour", "amount": 100}
    return factories.a_limit(**usual | fields)


def a_grant(limit: Limit, *, held: int) -> Grant:
    project = a_project()
    token = a_token(project.id)
    holds = {f"{limit.id} 2026-11-29T12:00": held}
    reservation = Reservation(new_id(), new_id(), token.id, project.id, "openai", "POST", "/v1/x", NOON, holds)
    state = LimitState(limit, 0, held, None)
    return Grant(reservation, token.digest, an_account(project), token, 1, (state,))


def shown(metrics: Metrics) -> set[str]:
    """The counts of limits that are not zero."""
    lines = metrics.render()[0].decode().splitlines()
    names = "llm_proxy_limit_warnings_total", "llm_proxy_reservation_exceeded_total"
    return {line for line in lines if line.startswith(names) and not line.endswith(" 0.0")}


def test_a_limit_warns_once_in_each_window(reports: LimitReports, metrics: Metrics) -> None:
    limit = a_limit(warn_at=80)
    with structlog.testing.capture_logs() as logged:
        for used in (79, 80, 90, 100):
            reports.judged([LimitState(limit, used, 0, NOON)])
        reports.judged([LimitState(limit, 100, 0, NOON.replace(hour=13))])
        reports.judged([LimitState(a_limit(policy="warn", scope="token"), 99, 0, None)])
    assert [(line["event"], line["log_level"], line["used"]) for line in logged] == [
        ("a limit is nearly used up", "warning", 80),
        ("a limit is used up", "warning", 100),
    ]
    assert {line["limit_id"] for line in logged} == {limit.id}
    assert shown(metrics) == {'llm_proxy_limit_warnings_total{scope="project"} 2.0'}


def test_the_memory_of_warnings_is_bounded(reports: LimitReports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit_reports, "_REMEMBERED", 2)
    states = [LimitState(a_limit(policy="warn", amount=1), 1, 0, None) for _ in range(3)]
    with structlog.testing.capture_logs() as logged:
        for state in (*states, states[2], states[0]):
            reports.judged([state])
    assert len(logged) == 4
    assert len(reports._warned) == 2


@pytest.mark.parametrize(
    ("metric", "result", "used"),
    [
        ("cost", {"cost_nanousd": 101}, 101),
        ("tokens", {"input_tokens": 60, "output_tokens": 41}, 101),
        ("output_tokens", {"input_tokens": 1000, "output_tokens": 102}, 102),
        ("cost", {"cost_nanousd": 100}, None),
        ("cost", {"input_tokens": 1000}, None),
        ("input_tokens", {"input_tokens": 100, "output_tokens": 1000}, None),
    ],
)
def test_a_request_that_used_more_than_it_had_reserved_is_reported(
    reports: LimitReports, metrics: Metrics, metric: Any, result: dict[str, Any], used: int | None
) -> None:
    grant = a_grant(a_limit(metric=metric, policy="reserved"), held=100)
    with structlog.testing.capture_logs() as logged:
        reports.settled(grant, Result(outcome="ok", status=200, **result))
    if used is None:
        assert not logged
        assert not shown(metrics)
        return
    (line,) = logged
    assert (line["log_level"], line["used"], line["reserved"]) == ("error", used, 100)
    assert line["request_id"] == grant.reservation.id
    assert shown(metrics) == {'llm_proxy_reservation_exceeded_total{provider="openai"} 1.0'}


def test_a_limit_that_is_not_reserved_has_no_worst_case(reports: LimitReports, metrics: Metrics) -> None:
    with structlog.testing.capture_logs() as logged:
        reports.settled(a_grant(a_limit(), held=1), Result(outcome="ok", status=200, cost_nanousd=100))
    assert not logged
    assert not shown(metrics)
