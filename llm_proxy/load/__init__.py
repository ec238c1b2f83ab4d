"""Puts load on an HTTP server and says what it saw, at as little cost to the machine as Python allows.

- `target`: where the load goes, and the bytes of its requests
- `wire`: a connection, plain or TLS
- `framing`: where an answer ends, sans-I/O
- `timer`: waits more finely than the event loop can
- `pacing`: when the next request begins, in a closed loop or an open one
- `histogram`: distributions of times, in bounded memory
- `tally`: what was measured
- `engine`: the connections at work
- `report`: all of it as one mapping for JSON

It imports nothing else of ours but `net.tls`, so that what it measures is not itself.
"""

from __future__ import annotations

from llm_proxy.load.engine import CannotBegin, Load
from llm_proxy.load.histogram import Histogram, spread
from llm_proxy.load.pacing import Plan
from llm_proxy.load.report import BUSY, report
from llm_proxy.load.tally import Tally
from llm_proxy.load.target import Target

__all__ = [
    "BUSY",
    "CannotBegin",
    "Histogram",
    "Load",
    "Plan",
    "Tally",
    "Target",
    "report",
    "spread",
]
