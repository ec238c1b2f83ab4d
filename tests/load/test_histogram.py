from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.load import DurationHistogram

TIMES = st.floats(1e-6, 3600)


@given(st.lists(TIMES, min_size=1, max_size=300), st.sampled_from([1, 50, 90, 99, 99.9, 100]))
def test_a_percentile_is_the_nearest_rank_within_a_thousandth(values: list[float], share: float) -> None:
    rank = max(1, ceil(len(values) * round(share * 10) / 1000))
    assert DurationHistogram(values).percentile(share) == pytest.approx(sorted(values)[rank - 1], rel=1e-3)


@given(st.lists(TIMES, min_size=1, max_size=300))
def test_percentiles_are_in_order_and_mean_and_maximum_are_exact(values: list[float]) -> None:
    found = DurationHistogram(values).summary()
    assert list(found) == ["p50", "p90", "p95", "p99", "p99.9", "mean", "max"]
    assert found["p50"] <= found["p90"] <= found["p95"] <= found["p99"] <= found["p99.9"] <= found["max"]
    assert found["max"] == round(max(values) * 1000, 3)
    assert found["mean"] == pytest.approx(sum(values) / len(values) * 1000, abs=1e-3)


def test_values_are_counted_one_by_one() -> None:
    histogram = DurationHistogram()
    for number in range(1, 5001):
        histogram.add(number / 1000)
        assert histogram.count == number
    assert histogram.percentile(50) == pytest.approx(2.5, rel=1e-3)
    assert histogram.max == 5.0
    assert histogram.summary()["mean"] == 2500.5


def test_memory_does_not_grow_with_the_number_of_values() -> None:
    histogram = DurationHistogram(1e-6 * 1.00001**number for number in range(300_000))
    assert len(histogram._buckets) <= 3002


def test_a_histogram_without_values_has_no_summary() -> None:
    histogram = DurationHistogram()
    assert (histogram.summary(), histogram.max, histogram.percentile(50)) == ({}, 0.0, 0.0)


def test_durations_of_zero_are_counted() -> None:
    assert DurationHistogram([0.0, 0.0]).summary() == dict.fromkeys(
        ["p50", "p90", "p95", "p99", "p99.9", "mean", "max"], 0.0
    )
