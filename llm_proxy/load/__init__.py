"""A load generator: puts load on an HTTP server and measures it, at little CPU cost.

- `target`: the server, and the bytes of its requests
- `response`: parser of responses, sans-I/O
- `pacing`: when the next request begins: closed loop or fixed rate
- `measurements`: what was measured, with histograms of durations, and its report for JSON
- `engine`: the connections
"""

from __future__ import annotations

from llm_proxy.load.engine import CannotStart, Load
from llm_proxy.load.measurements import BUSY, DurationHistogram, Measurements, report
from llm_proxy.load.pacing import LoadPlan
from llm_proxy.load.target import LoadTarget

__all__ = ["BUSY", "CannotStart", "DurationHistogram", "Load", "LoadPlan", "LoadTarget", "Measurements", "report"]
