from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.load import Histogram, spread

TIMES = st.floats(1e-6, 3600)


@given(st.lists(TIMES, min_size=1, max_size=300), st.sampled_from([1, 50, 90, 99, 99.9, 100]))
def test_a_percentile_is_that_of_the_nearest_rank_to_a_thousandth(values: list[float], share: float) -> None:
    rank = max(1, ceil(len(values) * round(share * 10) / 1000))
    assert Histogram(values).percentile(share) == pytest.approx(sorted(values)[rank - 1], rel=1e-3)


@given(st.lists(TIMES, min_size=1, max_size=300))
def test_percentiles_are_in_order_and_the_maximum_is_exact(values: list[float]) -> None:
    found = spread(values)
    assert list(found) == ["p50", "p90", "p95", "p99", "p99.9", "mean", "max"]
    assert found["p50"] <= found["p90"] <= found["p95"] <= found["p99"] <= found["p99.9"] <= found["max"]
    assert found["max"] == round(max(values) * 1000, 3)
    assert found["mean"] == pytest.approx(sum(values) / len(values) * 1000, abs=1e-3)


def test_values_are_counted_across_batches() -> None:
    histogram = Histogram()
    for number in range(1, 5001):
        histogram.add(number / 1000)
        assert histogram.count == number
    assert histogram.percentile(50) == pytest.approx(2.5, rel=1e-3)
    assert histogram.most == 5.0
    assert histogram.spread()["mean"] == 2500.5


def test_memory_does_not_grow_with_the_number_of_values() -> None:
    histogram = Histogram(1e-6 * 1.00001**number for number in range(300_000))
    assert len(histogram._buckets) <= 3002
    assert len(histogram._fresh) < 1024


def test_nothing_has_no_spread() -> None:
    histogram = Histogram()
    assert (histogram.spread(), histogram.most, histogram.percentile(50), histogram.parts(5)) == ({}, 0.0, 0.0, [])


def test_no_time_at_all_is_counted() -> None:
    assert Histogram([0.0, 0.0]).spread() == dict.fromkeys(["p50", "p90", "p95", "p99", "p99.9", "mean", "max"], 0.0)


@given(st.lists(TIMES, min_size=1, max_size=100), st.integers(1, 20))
def test_parts_hold_all_values_and_follow_each_other(values: list[float], number: int) -> None:
    parts = Histogram(values).parts(number)
    assert 1 <= len(parts) <= number
    assert sum(count for _, _, count in parts) == len(values)
    assert parts[0][0] <= min(values) * 1.001
    assert parts[-1][1] >= max(values) * 0.999
    assert [part[1] for part in parts[:-1]] == [part[0] for part in parts[1:]]
    # The first and the last are there for a value.
    assert parts[0][2]
    assert parts[-1][2]
