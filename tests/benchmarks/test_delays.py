"""How long the upstream waits."""

from __future__ import annotations

import random
import statistics

import pytest

from benchmarks.upstream.__main__ import delay, seconds


@pytest.mark.parametrize(("text", "value"), [("250us", 0.00025), ("5ms", 0.005), ("1.5s", 1.5), ("2", 2.0)])
def test_durations_are_parsed(text: str, value: float) -> None:
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "5 m", "-1ms", "fast", "normal:1ms", "lognormal:1ms"])
def test_invalid_delays_raise(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        delay(text)


@pytest.mark.parametrize(
    ("text", "median"),
    [("5ms", 0.005), ("lognormal:20ms,0.5", 0.02)],
)
def test_delays_have_the_named_distribution(text: str, median: float) -> None:
    draw = delay(text)
    assert draw is not None
    source = random.Random(1)
    assert statistics.median(draw(source) for _ in range(4000)) == pytest.approx(median, rel=0.1)


def test_no_delay_is_none() -> None:
    assert delay("0") is None
