"""Token usage, read from responses as they pass; sans-I/O, bounded in memory, and it never raises.

- `meter.py`: `meter_for` picks the meter of a response, by its media type and content encoding
- `events.py`: server-sent events
- `body.py`: JSON bodies
- `scan.py`: JSON of any length in constant memory, for what is too long to be kept
- `decoding.py`: compressed bodies, with caps against bombs
- `tally.py`: what `usage` objects mean, and the sum of several
"""

from __future__ import annotations

from llm_proxy.gateway.usage.meter import NOTHING, UsageMeter, meter_for
from llm_proxy.gateway.usage.tally import UNKNOWN, Usage, model_name

__all__ = ["NOTHING", "UNKNOWN", "Usage", "UsageMeter", "meter_for", "model_name"]
