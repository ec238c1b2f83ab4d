"""Distributions of times, in bounded memory however long a load runs.

A value is counted in a bucket whose width is a thousandth of its value, as in HdrHistogram. Percentiles are so precise
as that, minimum, maximum and mean are exact, and from a microsecond to an hour there are at most 22,000 buckets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from math import ceil, exp, log

from attrs import define, field

PERCENTILES = (50, 90, 95, 99, 99.9)
_STEPS = 1000
#: Seconds; what is shorter counts as this.
_LEAST = 1e-9


@define
class Histogram:
    """How often times occurred; all times are seconds."""

    count: int = 0
    total: float = 0.0
    least: float = float("inf")
    most: float = 0.0
    _buckets: Counter[int] = field(factory=Counter, repr=False)

    @classmethod
    def of(cls, values: Iterable[float]) -> Histogram:
        """Count some values."""
        made = cls()
        for value in values:
            made.add(value)
        return made

    def add(self, value: float) -> None:
        """Count a value."""
        self.count += 1
        self.total += value
        self.least = min(self.least, value)
        self.most = max(self.most, value)
        self._buckets[int(_STEPS * log(max(_LEAST, value)))] += 1

    def percentile(self, share: float) -> float:
        """Return the value that `share` per cent of the values do not exceed (nearest rank); 0 where there is none."""
        # In tenths of a per cent, so that rounding does not push a rank to the next.
        rank = max(1, ceil(self.count * round(share * 10) / 1000))
        if rank >= self.count:
            return self.most
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                return min(max(_middle(bucket), self.least), self.most)
        return self.most

    def spread(self) -> dict[str, float]:
        """Return percentiles, mean and maximum in milliseconds; empty where there are no values."""
        if not self.count:
            return {}
        found = {f"p{share:g}": self.percentile(share) for share in PERCENTILES}
        found |= {"mean": self.total / self.count, "max": self.most}
        return {name: round(value * 1000, 3) for name, value in found.items()}

    def between(self, least: float, most: float) -> int:
        """Return how many values are at least `least` and less than `most`, as precisely as buckets are wide."""
        return sum(number for bucket, number in self._buckets.items() if least <= _middle(bucket) < most)


def spread(values: Iterable[float]) -> dict[str, float]:
    """Return percentiles, mean and maximum of seconds in milliseconds; empty where there are none."""
    return Histogram.of(values).spread()


def _middle(bucket: int) -> float:
    """The value in the middle of a bucket; rounding towards zero has made that of a negative number lie below it."""
    return exp((bucket + (0.5 if bucket > 0 else -0.5 if bucket < 0 else 0.0)) / _STEPS)
