"""What was measured, in bounded memory for any length of a load, and its report.

A duration is counted in a bucket whose width is a thousandth of the value, as in HdrHistogram. Percentiles have that
precision, maximum and mean are exact, and from a microsecond to an hour there are at most 22,000 buckets.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from math import ceil, exp, floor, log
from typing import Any, Final

from attrs import define, field, frozen

from llm_proxy.load.pacing import LoadPlan
from llm_proxy.load.response import Answer

#: Limits of the codes that are counted separately: a server may make up a code for each response.
_MAX_CODES: Final = 100
_MAX_CODE_LENGTH: Final = 100
#: Above this share of one core, the generator itself limits the rate.
BUSY: Final = 0.85
#: Seconds. If more than one per cent of the requests of a fixed rate begin later than this, the generator is too slow.
_LATE: Final = 0.01

PERCENTILES: Final = (50, 90, 95, 99, 99.9)
#: Buckets of a histogram for each factor of e.
_STEPS: Final = 1000
#: Seconds; shorter durations count as this.
_MIN: Final = 1e-9


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


@frozen
class TokenRefused:
    """The first response, if it refuses the token: its status, and the message of its error."""

    status: int
    message: str


@define
class Measurements:
    """What was measured; durations are in seconds.

    Attributes:
        statuses: number of responses by status.
        codes: number of responses from 400 on, by status and the code of the error.
        failures: number of requests without a complete response, by cause.
        latencies: from sending a request to the last byte of its response.
        first_bytes: from sending a request to the first byte of its response.
        intended: fixed rate only: from the planned start of a request to the last byte of its response.
        lag: fixed rate only: from the time when a request should and could begin to the time when it began. The
            generator itself causes it, so `intended` does not include it.
        waited: fixed rate only: requests for which no connection was free at their planned start.
        gaps: between arrivals of the same streamed body.
        pieces: of streamed bodies.
        response_bytes: heads and bodies, without TLS.
        unfinished: requests that were running when the load was stopped.
        token_refused: why the load was stopped after the first response.
        elapsed: duration of the load.
        cpu: CPU time of this process during the load.
    """

    statuses: Counter[int] = field(factory=Counter)
    codes: Counter[str] = field(factory=Counter)
    failures: Counter[str] = field(factory=Counter)
    latencies: DurationHistogram = field(factory=DurationHistogram)
    first_bytes: DurationHistogram = field(factory=DurationHistogram)
    intended: DurationHistogram = field(factory=DurationHistogram)
    lag: DurationHistogram = field(factory=DurationHistogram)
    waited: int = 0
    gaps: DurationHistogram = field(factory=DurationHistogram)
    pieces: int = 0
    response_bytes: int = 0
    unfinished: int = 0
    token_refused: TokenRefused | None = None
    elapsed: float = 0.0
    cpu: float = 0.0

    @property
    def answered(self) -> int:
        """Requests with a complete response of any status."""
        return self.latencies.count

    @property
    def done(self) -> int:
        """Requests with a response or a failure."""
        return self.answered + sum(self.failures.values())

    @property
    def failed(self) -> int:
        """Requests with a status from 400 on, or without a response."""
        return sum(n for status, n in self.statuses.items() if status >= 400) + sum(self.failures.values())

    def record(self, answer: Answer) -> None:
        """Count a complete response, without its durations."""
        self.statuses[answer.status] += 1
        self.response_bytes += answer.size
        if answer.stream:
            self.pieces += answer.pieces
        if answer.status >= 400:
            code = f"{answer.status} {error_of(answer.body)[0]}".strip()
            self.codes[code if code in self.codes or len(self.codes) < _MAX_CODES else str(answer.status)] += 1


def error_of(body: bytes) -> tuple[str, str]:
    """Return code and message of an error of OpenAI, Anthropic or the management API; empty if there is none."""
    try:
        found: Any = json.loads(body)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        return "", ""
    error = found.get("error")
    if isinstance(error, dict):
        code, message = error.get("code") or error.get("type"), error.get("message")
    else:
        code, message = found.get("code"), found.get("description") or error
    return str(code or "")[:_MAX_CODE_LENGTH], str(message or "")


def report(plan: LoadPlan, measured: Measurements) -> dict[str, Any]:
    """Return the measurements as a mapping for JSON; durations are milliseconds, unless the key says seconds.

    With a fixed rate, `intended_latency_ms` is the latency that users see and `latency_ms` the one from sending on;
    `behind` is true if the generator could not keep the rate.
    """
    elapsed = max(measured.elapsed, 1e-9)
    share = measured.cpu / elapsed
    statuses = {str(status): number for status, number in sorted(measured.statuses.items())}
    found = {
        "requests": measured.answered,
        "connections": plan.connections,
        "seconds": round(elapsed, 4),
        "rate": round(measured.answered / elapsed, 1),
        "errors": {status: number for status, number in statuses.items() if int(status) >= 400} | measured.failures,
        "error_codes": dict(measured.codes),
        "statuses": statuses,
        "unfinished": measured.unfinished,
        "response_bytes": measured.response_bytes,
        "latency_ms": measured.latencies.summary(),
        "first_byte_ms": measured.first_bytes.summary(),
        "gap_ms": measured.gaps.summary(),
        "pieces": measured.pieces,
        "cpu_seconds": round(measured.cpu, 4),
        "cpu_share": round(share, 3),
        "is_bottleneck": share > BUSY,
    }
    if plan.rate is not None:
        found |= {
            "intended_rate": plan.rate,
            "intended_latency_ms": measured.intended.summary(),
            "lag_ms": measured.lag.summary(),
            "behind": measured.lag.percentile(99) > _LATE,
            "waited": measured.waited,
        }
    return found
