"""One answer for all workers, whichever gives it. Workers are taken for alive here as long as this process is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from prometheus_client.parser import text_string_to_metric_families

from db.records import Result
from llm_proxy.metrics import Metrics, MetricStores, families


def shown(metrics: Metrics) -> dict[str, float]:
    text, _ = metrics.render()
    return {
        sample.name + "".join(f"{{{value}}}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


@pytest.fixture
def stores() -> MetricStores:
    return MetricStores(3)


@contextmanager
def dead(stores: MetricStores, number: int, use: Callable[[Metrics], None] | None = None) -> Iterator[None]:
    """A worker that has served and was killed."""
    pid = os.fork()
    if pid == 0:
        metrics = Metrics(["openai"], "1", stores.take(number))
        if use is not None:
            use(metrics)
        os._exit(0)
    os.waitpid(pid, 0)
    yield


def served(metrics: Metrics) -> None:
    metrics.request("openai", Result(outcome="ok", status=200, duration_us=300_000, first_byte_us=100_000))
    metrics.observe_transaction(0.002, 3, 1)
    metrics.refusal("token_invalid")
    metrics.upstream_started("openai")


def test_counters_and_histograms_are_summed_over_workers(stores: MetricStores) -> None:
    one, other = (Metrics(["openai"], "1", stores.take(number)) for number in (0, 1))
    served(one)
    served(other)
    served(other)
    for metrics in (one, other):
        found = shown(metrics)
        assert found["llm_proxy_requests_total{ok}{openai}{2xx}"] == 3
        assert found["llm_proxy_refusals_total{token_invalid}"] == 3
        assert found["llm_proxy_database_batch_admitted_requests_sum"] == 9
        assert found["llm_proxy_database_batch_admitted_requests_bucket{2.0}"] == 0
        assert found["llm_proxy_database_batch_admitted_requests_bucket{4.0}"] == 3
        assert found["llm_proxy_database_batch_admitted_requests_count"] == 3
        assert found["llm_proxy_request_duration_seconds_sum{openai}"] == pytest.approx(0.9)
        assert found["llm_proxy_upstream_in_flight_requests{openai}"] == 3
        assert found["llm_proxy_workers"] == 2
        assert found["llm_proxy_build_info{1}"] == 1


def test_gauges_are_combined_as_their_family_says(stores: MetricStores) -> None:
    one, other = (Metrics(["openai"], "1", stores.take(number)) for number in (0, 1))
    for metrics, value, up in ((one, 3, 1), (other, 5, 0)):
        for family in (families.WAITING, families.SETTLE_LAG, families.SCHEMA_REVISION):
            metrics.set_function(family, partial(int, value))
        metrics.set_function(families.DATABASE_UP, partial(bool, up))
    one.publish()
    found = shown(other)
    assert found["llm_proxy_database_waiting_requests"] == 8
    assert found["llm_proxy_database_up"] == 0
    assert found["llm_proxy_database_settle_lag_seconds"] == 5
    assert found["llm_proxy_database_schema_revision"] == 5
    assert shown(one)["llm_proxy_database_schema_revision"] == 3


def test_a_dead_worker_has_counters_but_no_gauges(stores: MetricStores) -> None:
    alive = Metrics(["openai"], "1", stores.take(0))
    served(alive)

    def use(metrics: Metrics) -> None:
        served(metrics)
        metrics.set_function(families.WAITING, lambda: 7)
        metrics.set_function(families.LOG_LINES_LOST, lambda: 2)
        metrics.publish()

    with dead(stores, 1, use):
        found = shown(alive)
        assert found["llm_proxy_requests_total{ok}{openai}{2xx}"] == 2
        assert found["llm_proxy_log_lines_lost_total"] == 2
        assert found["llm_proxy_upstream_in_flight_requests{openai}"] == 1
        assert found["llm_proxy_workers"] == 1
        assert found["llm_proxy_worker_starts_total"] == 2
        assert "llm_proxy_database_waiting_requests" not in found


def test_the_successor_of_a_worker_continues_its_counters(stores: MetricStores) -> None:
    def use(metrics: Metrics) -> None:
        served(metrics)
        metrics.set_function(families.LOG_LINES_LOST, lambda: 2)
        metrics.render()

    with dead(stores, 0, use):
        successor = Metrics(["anthropic"], "1", stores.take(0))
        successor.request("openai", Result(outcome="ok", status=200))
        successor.set_function(families.LOG_LINES_LOST, lambda: 1)
        for _ in range(2):
            found = shown(successor)
            assert found["llm_proxy_requests_total{ok}{openai}{2xx}"] == 1  # not configured any more
            assert found["llm_proxy_requests_total{ok}{other}{2xx}"] == 1
            assert found["llm_proxy_database_batch_admitted_requests_sum"] == 3
            assert found["llm_proxy_log_lines_lost_total"] == 3
            assert "llm_proxy_upstream_in_flight_requests{openai}" not in found
            assert found["llm_proxy_worker_starts_total"] == 2


def test_each_worker_has_its_own_process_metrics(stores: MetricStores) -> None:
    metrics = Metrics(["openai"], "1", stores.take(2))
    found = shown(metrics)
    assert found["llm_proxy_process_open_fds{2}"] > 0
    assert found["llm_proxy_process_cpu_seconds_total{2}"] > 0
    assert [name for name in found if name.startswith("llm_proxy_process_open_fds")] == [
        "llm_proxy_process_open_fds{2}"
    ]


def test_every_family_has_a_prefix_and_a_sentence() -> None:
    every = [family for section in families.SECTIONS.values() for family in section]
    assert len({family.name for family in every}) == len(every)
    for family in every:
        assert family.name.startswith("llm_proxy_")
        assert family.text.endswith(".")
        assert bool(family.bounds) == (family.kind == "histogram")
    assert all(family.name.startswith("llm_proxy_database_") for family in families.SECTIONS["Database"])
