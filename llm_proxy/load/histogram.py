"""Distributions of times, in bounded memory however long a load runs.

A value is counted in a bucket whose width is a thousandth of its value, as in HdrHistogram. Percentiles are so precise
as that, maximum and mean are exact, and from a microsecond to an hour there are at most 22,000 buckets.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from math import ceil, exp, floor, log

PERCENTILES = (50, 90, 95, 99, 99.9)
_STEPS = 1000
#: Seconds; what is shorter counts as this.
_LEAST = 1e-9
_LOWEST = floor(_STEPS * log(_LEAST))
_BATCH = 1024


class Histogram:
    """How often times occurred; all times are seconds."""

    def __init__(self, values: Iterable[float] = ()) -> None:
        """Begin with some values."""
        self._buckets: Counter[int] = Counter()
        self._counted = 0
        self._total = 0.0
        self._most = 0.0
        # Counting a batch costs less than half of counting its values one by one, and requests wait meanwhile.
        self._fresh = array("d")
        for value in values:
            self.add(value)

    def add(self, value: float) -> None:
        """Count a value."""
        self._fresh.append(value)
        if len(self._fresh) >= _BATCH:
            self._fold()

    @property
    def count(self) -> int:
        """How many values there are."""
        return self._counted + len(self._fresh)

    @property
    def most(self) -> float:
        """The greatest value; 0 where there is none."""
        self._fold()
        return self._most

    def _fold(self) -> None:
        """Count the values of the batch."""
        fresh, self._fresh = self._fresh, array("d")
        self._counted += len(fresh)
        self._total += sum(fresh)
        self._most = max(self._most, max(fresh, default=0.0))
        self._buckets.update([floor(_STEPS * log(value)) if value > _LEAST else _LOWEST for value in fresh])

    def percentile(self, share: float) -> float:
        """Return the value that `share` per cent of the values do not exceed (nearest rank); 0 where there is none."""
        self._fold()
        # In tenths of a per cent, so that rounding does not push a rank to the next.
        rank = max(1, ceil(self._counted * round(share * 10) / 1000))
        if rank >= self._counted:
            return self._most
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                return min(_middle(bucket), self._most)
        return self._most

    def spread(self) -> dict[str, float]:
        """Return percentiles, mean and maximum in milliseconds; empty where there are no values."""
        if not self.count:
            return {}
        found = {f"p{share:g}": self.percentile(share) for share in PERCENTILES}
        found |= {"mean": self._total / self._counted, "max": self._most}
        return {name: round(value * 1000, 3) for name, value in found.items()}

    def parts(self, number: int) -> list[tuple[float, float, int]]:
        """Divide the range of the values into at most `number` parts of equal ratio.

        Returns:
            The least and the greatest value of each part, and how many values are in it; nothing for no values.
        """
        self._fold()
        if not self._buckets:
            return []
        first, last = min(self._buckets), max(self._buckets)
        width = ceil((last - first + 1) / number)
        counts: Counter[int] = Counter()
        for bucket, values in self._buckets.items():
            counts[(bucket - first) // width] += values
        starts = [(part, first + part * width) for part in range(max(counts) + 1)]
        return [(exp(start / _STEPS), exp((start + width) / _STEPS), counts[part]) for part, start in starts]


def spread(values: Iterable[float]) -> dict[str, float]:
    """Return percentiles, mean and maximum of seconds in milliseconds; empty where there are none."""
    return Histogram(values).spread()


def _middle(bucket: int) -> float:
    """The value in the middle of a bucket."""
    return exp((bucket + 0.5) / _STEPS)
