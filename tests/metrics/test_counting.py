from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from db.records import Result
from llm_proxy.errors import ProxyError, TokenInvalid
from llm_proxy.metrics import Metrics, families
from llm_proxy.metrics.counting import Histogram
from llm_proxy.metrics.families import Family

PROVIDERS = ("openai", "anthropic")


def result(status: int | None = 200, seconds: float = 0.1, outcome: Any = "ok", **fields: Any) -> Result:
    return Result(outcome=outcome, status=status, duration_us=round(seconds * 1e6), **fields)


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text, _ = metrics.render()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, labels: Mapping[str, str] | None = None) -> float | None:
    return samples(metrics).get((name, frozenset((labels or {}).items())))


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(PROVIDERS, "1.2.3")


def test_requests_are_counted_by_provider_outcome_and_status(metrics: Metrics) -> None:
    metrics.request("openai", result())
    metrics.request("openai", result(201))
    metrics.request("openai", result(429))
    metrics.request("anthropic", result(None, outcome="client_closed"))

    def count(provider: str, outcome: str, status: str) -> float | None:
        labels = {"provider": provider, "outcome": outcome, "status": status}
        return value(metrics, "llm_proxy_requests_total", labels)

    assert count("openai", "ok", "2xx") == 2
    assert count("openai", "ok", "4xx") == 1
    assert count("anthropic", "client_closed", "none") == 1
    assert count("anthropic", "ok", "2xx") is None


def test_durations_and_times_to_first_byte_are_histograms(metrics: Metrics) -> None:
    metrics.request("openai", result(seconds=0.3, first_byte_us=100_000))
    metrics.request("openai", result(seconds=1000.0))

    def bucket(name: str, bound: str) -> float | None:
        return value(metrics, f"llm_proxy_{name}_seconds_bucket", {"provider": "openai", "le": bound})

    assert [bucket("request_duration", bound) for bound in ("0.25", "0.5", "600.0", "+Inf")] == [0, 1, 1, 2]
    assert value(metrics, "llm_proxy_request_duration_seconds_sum", {"provider": "openai"}) == pytest.approx(1000.3)
    assert [bucket("time_to_first_byte", bound) for bound in ("0.05", "0.1", "+Inf")] == [0, 1, 1]
    assert value(metrics, "llm_proxy_time_to_first_byte_seconds_count", {"provider": "openai"}) == 1


def test_tokens_that_the_provider_reported_are_summed(metrics: Metrics) -> None:
    metrics.request("openai", result(input_tokens=10, output_tokens=20, cached_tokens=5))
    metrics.request("openai", result(input_tokens=1))
    metrics.request("openai", result())
    kinds = ("input", "output", "cached")
    shown = [value(metrics, "llm_proxy_tokens_total", {"provider": "openai", "kind": kind}) for kind in kinds]
    assert shown == [11, 20, 5]


def test_requests_with_usage_and_without_a_cost_are_counted_as_unpriced(metrics: Metrics) -> None:
    metrics.request("openai", result(input_tokens=10, output_tokens=20))
    metrics.request("openai", result(usage_details={"audio_ms": 1}))
    metrics.request("openai", result(input_tokens=10, output_tokens=20, cost_nanousd=0))
    metrics.request("openai", result())
    assert value(metrics, "llm_proxy_unpriced_requests_total", {"provider": "openai"}) == 2


def test_the_cost_of_requests_is_summed_in_usd(metrics: Metrics) -> None:
    for nanousd in (137_250, 2_000_000_000, 0, None):
        metrics.request("openai", result(input_tokens=10, cost_nanousd=nanousd))
    metrics.request("other", result(cost_nanousd=5))
    found = value(metrics, "llm_proxy_cost_usd_total", {"provider": "openai"})
    assert found == pytest.approx(2.00013725, abs=1e-12)


def test_requests_with_estimated_usage_or_unread_usage_are_counted(metrics: Metrics) -> None:
    metrics.request("openai", result(input_tokens=10, estimated=True))
    metrics.request("openai", result(unmetered=True))
    metrics.request("openai", result(input_tokens=10, estimated=True, unmetered=True))
    metrics.request("openai", result(input_tokens=10))
    names = ("llm_proxy_estimated_requests_total", "llm_proxy_unmetered_requests_total")
    assert [value(metrics, name, {"provider": "openai"}) for name in names] == [2, 2]


def test_unknown_providers_outcomes_and_codes_are_counted_as_other(metrics: Metrics) -> None:
    for n in range(50):
        metrics.request(f"provider-{n}", result(outcome=f"outcome-{n}", input_tokens=1))
        metrics.refusal(f"sk-canary-{n}")
        metrics.upstream_started(f"provider-{n}")
    text = metrics.render()[0].decode()
    assert "provider-" not in text
    assert "outcome-" not in text
    assert "canary" not in text
    other = {"provider": "other", "outcome": "other", "status": "2xx"}
    assert value(metrics, "llm_proxy_requests_total", other) == 50
    assert value(metrics, "llm_proxy_refusals_total", {"code": "other"}) == 50


def test_the_label_other_is_shown_only_after_a_request_of_another_provider(metrics: Metrics) -> None:
    assert 'provider="other"' not in metrics.render()[0].decode()


def test_every_error_code_is_a_series_from_the_start(metrics: Metrics) -> None:
    metrics.refusal(TokenInvalid.code)
    found = {
        dict(labels)["code"]: count
        for (name, labels), count in samples(metrics).items()
        if name == "llm_proxy_refusals_total"
    }
    assert found.pop("token_invalid") == 1
    assert {"database_unavailable", "request_limit_exceeded", "invalid_path", ProxyError.code, "other"} <= set(found)
    assert set(found.values()) == {0}


def test_upstream_requests_in_flight_are_counted_until_they_end(metrics: Metrics) -> None:
    metrics.upstream_started("openai")
    metrics.upstream_started("openai")
    metrics.upstream_ended("openai")
    assert value(metrics, "llm_proxy_upstream_in_flight_requests", {"provider": "openai"}) == 1
    metrics.upstream_ended("openai")
    assert value(metrics, "llm_proxy_upstream_in_flight_requests", {"provider": "openai"}) == 0


def test_transactions_of_the_ledger_are_histograms(metrics: Metrics) -> None:
    metrics.observe_transaction(0.002, 3, 0)
    metrics.observe_transaction(0.2, 64, 65)
    assert value(metrics, "llm_proxy_database_transaction_seconds_bucket", {"le": "0.0025"}) == 1
    assert value(metrics, "llm_proxy_database_transaction_seconds_count") == 2
    assert value(metrics, "llm_proxy_database_batch_admitted_requests_sum") == 67
    assert value(metrics, "llm_proxy_database_batch_admitted_requests_bucket", {"le": "64.0"}) == 2
    assert value(metrics, "llm_proxy_database_batch_settled_requests_bucket", {"le": "0.0"}) == 1
    assert value(metrics, "llm_proxy_database_batch_settled_requests_bucket", {"le": "64.0"}) == 1


def test_a_function_is_read_when_prometheus_asks(metrics: Metrics) -> None:
    waiting: float | None = 3
    states = {"in_use": 2, "idle": 1}
    metrics.set_function(families.WAITING, lambda: waiting)
    metrics.set_function(families.CONNECTIONS, lambda: states)
    assert value(metrics, "llm_proxy_database_waiting_requests") == 3
    assert value(metrics, "llm_proxy_database_connections", {"state": "in_use"}) == 2
    assert value(metrics, "llm_proxy_database_connections", {"state": "idle"}) == 1
    waiting, states = 0, {"in_use": 5}
    assert value(metrics, "llm_proxy_database_waiting_requests") == 0
    assert value(metrics, "llm_proxy_database_connections", {"state": "in_use"}) == 5
    assert value(metrics, "llm_proxy_database_connections", {"state": "idle"}) is None
    waiting = None
    assert value(metrics, "llm_proxy_database_waiting_requests") is None


def test_a_function_that_fails_hides_no_other_metric(metrics: Metrics) -> None:
    metrics.set_function(families.UNSETTLED, lambda: 1 / 0)
    metrics.set_function(families.RETRIES, lambda: {"contention": "many"})  # type: ignore[dict-item]  # on purpose
    metrics.set_function(families.LOG_LINES_LOST, lambda: 4)
    assert value(metrics, "llm_proxy_log_lines_lost_total") == 4
    assert value(metrics, "llm_proxy_database_unsettled_requests") is None
    assert value(metrics, "llm_proxy_database_retries_total", {"cause": "contention"}) is None


def test_a_metric_with_two_functions_is_refused(metrics: Metrics) -> None:
    metrics.set_function(families.WAITING, lambda: 1)
    with pytest.raises(ValueError, match=r"has a function already: llm_proxy_database_waiting_requests"):
        metrics.set_function(families.WAITING, lambda: 2)


def test_every_name_starts_with_llm_proxy(metrics: Metrics) -> None:
    names = {name for name, _ in samples(metrics)}
    assert names
    assert {name for name in names if not name.startswith("llm_proxy_")} == set()
    assert value(metrics, "llm_proxy_build_info", {"version": "1.2.3"}) == 1
    assert value(metrics, "llm_proxy_process_open_fds", {"worker": "0"}) is not None


def test_two_instances_of_metrics_share_nothing() -> None:
    one, other = Metrics(PROVIDERS), Metrics(PROVIDERS)
    one.request("openai", result())
    assert 'outcome="ok"' not in other.render()[0].decode()


def test_the_content_type_is_that_of_the_text_format(metrics: Metrics) -> None:
    assert metrics.render()[1] == "text/plain; version=0.0.4; charset=utf-8"


def test_bounds_of_a_histogram_are_inclusive() -> None:
    cells = [0.0] * 4
    histogram = Histogram((1.0, 2.0), cells)
    for number in (0.5, 1.0, 1.5, 2.0, 2.5):
        histogram.observe(number)
    assert cells == [2, 2, 1, 7.5]


def test_a_family_has_as_many_cells_as_its_kind_needs() -> None:
    assert Family("llm_proxy_x", "histogram", "X.", bounds=(1.0, 2.0)).size == 4
    assert Family("llm_proxy_x", "counter", "X.").size == Family("llm_proxy_x", "gauge", "X.").size == 1
