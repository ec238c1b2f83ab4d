"""What was measured, as one mapping for JSON; times are milliseconds, unless the key says seconds."""

from __future__ import annotations

from typing import Any, Final

from llm_proxy.load.pacing import Plan
from llm_proxy.load.tally import Tally

#: Above this share of one core, the generator itself is what limits the rate.
BUSY: Final = 0.85
#: Seconds that an open loop's requests may begin late, at the 99th percentile, before its figures say more about the
#: generator than about the server.
_LATE: Final = 0.01


def report(plan: Plan, tally: Tally) -> dict[str, Any]:
    """Return the report of a load; see `Tally` for what its words mean.

    An open loop adds what was intended: `intended_latency_ms` is the latency that people would see, `latency_ms` the
    uncorrected one from sending on; `behind` says that the generator could not keep its schedule.
    """
    elapsed = max(tally.elapsed, 1e-9)
    share = tally.cpu / elapsed
    statuses = {str(status): number for status, number in sorted(tally.statuses.items())}
    found = {
        "requests": tally.answered,
        "connections": plan.connections,
        "seconds": round(elapsed, 4),
        "rate": round(tally.answered / elapsed, 1),
        "errors": {status: number for status, number in statuses.items() if int(status) >= 400} | tally.failures,
        "error_codes": dict(tally.codes),
        "statuses": statuses,
        "unfinished": tally.unfinished,
        "response_bytes": tally.response_bytes,
        "latency_ms": tally.latencies.spread(),
        "first_byte_ms": tally.first_bytes.spread(),
        "gap_ms": tally.gaps.spread(),
        "pieces": tally.pieces,
        "cpu_seconds": round(tally.cpu, 4),
        "cpu_share": round(share, 3),
        "is_bottleneck": share > BUSY,
    }
    if plan.rate is not None:
        found |= {
            "intended_rate": plan.rate,
            "intended_latency_ms": tally.intended.spread(),
            "lag_ms": tally.lag.spread(),
            "behind": tally.lag.percentile(99) > _LATE,
            "waited": tally.waited,
        }
    return found
