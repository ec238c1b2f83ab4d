"""Distributions of durations, in bounded memory for any length of a load.

A value is counted in a bucket whose width is a thousandth of the value, as in HdrHistogram. Percentiles have that
precision, maximum and mean are exact, and from a microsecond to an hour there are at most 22,000 buckets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from math import ceil, exp, floor, log

PERCENTILES = (50, 90, 95, 99, 99.9)
_STEPS = 1000
#: Seconds; shorter values count as this.
_MIN = 1e-9


class DurationHistogram:
    """Counts durations in seconds. Without values, `max` is 0."""

    def __init__(self, values: Iterable[float] = ()) -> None:
        self.count = 0
        self.max = 0.0
        self._total = 0.0
        self._buckets: Counter[int] = Counter()
        for value in values:
            self.add(value)

    def add(self, value: float) -> None:
        self.count += 1
        self._total += value
        self.max = max(self.max, value)
        self._buckets[floor(_STEPS * log(max(_MIN, value)))] += 1

    def percentile(self, percent: float) -> float:
        """Return the value that `percent` of the values do not exceed (nearest rank); 0 without values."""
        # In tenths of a per cent, so that rounding does not move a rank to the next.
        rank = max(1, ceil(self.count * round(percent * 10) / 1000))
        if rank < self.count:
            for bucket in sorted(self._buckets):
                rank -= self._buckets[bucket]
                if rank <= 0:
                    return min(exp((bucket + 0.5) / _STEPS), self.max)
        return self.max

    def summary(self) -> dict[str, float]:
        """Return percentiles, mean and maximum in milliseconds; empty without values."""
        if not self.count:
            return {}
        found = {f"p{percent:g}": self.percentile(percent) for percent in PERCENTILES}
        found |= {"mean": self._total / self.count, "max": self.max}
        return {name: round(value * 1000, 3) for name, value in found.items()}
