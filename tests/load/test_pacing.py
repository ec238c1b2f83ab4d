from __future__ import annotations

from itertools import islice, pairwise

import pytest

from llm_proxy.load import LoadPlan


def test_even_arrivals_are_evenly_spaced_and_end_with_the_time() -> None:
    assert list(LoadPlan(rate=4, seconds=1).starts()) == [0, 0.25, 0.5, 0.75]
    assert list(LoadPlan(rate=4, seconds=1, requests=2).starts()) == [0, 0.25]


def test_poisson_arrivals_have_their_rate_and_their_seed() -> None:
    starts = list(islice(LoadPlan(rate=100, arrivals="poisson", seed=7).starts(), 10_000))
    assert starts == sorted(starts)
    assert starts[-1] == pytest.approx(100, rel=0.05)
    gaps = sorted(later - earlier for earlier, later in pairwise(starts))
    # The median of an exponential distribution is ln 2 of its mean.
    assert gaps[len(gaps) // 2] == pytest.approx(0.00693, rel=0.05)
    assert list(islice(LoadPlan(rate=100, arrivals="poisson", seed=7).starts(), 5)) == starts[:5]
    assert list(islice(LoadPlan(rate=100, arrivals="poisson", seed=8).starts(), 5)) != starts[:5]


def test_a_closed_loop_has_no_planned_starts() -> None:
    with pytest.raises(ValueError, match="closed"):
        LoadPlan(requests=1).starts()


@pytest.mark.parametrize(
    ("plan", "planned"),
    [
        (LoadPlan(requests=5), 5),
        (LoadPlan(seconds=5), None),
        (LoadPlan(seconds=5, rate=3), 15),
        (LoadPlan(seconds=5, rate=3, requests=7), 7),
        (LoadPlan(rate=3, requests=7), 7),
        (LoadPlan(seconds=5, requests=7), 7),
    ],
)
def test_the_number_of_planned_requests_is_known_in_advance(plan: LoadPlan, planned: int | None) -> None:
    assert plan.planned == planned
