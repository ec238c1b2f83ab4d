"""Token usage, read from passing responses: without I/O, in bounded memory, and without exceptions.

- `meter`: `meter_for` selects the meter of a response by media type and content encoding; JSON, compressed bodies
- `events`: server-sent events, lines of JSON
- `scan`: JSON of any length in constant memory, for documents that are too long to keep
- `frames`: AWS event streams
- `results`: files with the results of batches
- `tally`: collects the reports of one answer
- `shapes`: what each vendor's report means, a table
- `estimate`: tokens from texts, if nothing was reported
"""

from __future__ import annotations

from llm_proxy.gateway.usage.meter import GENERATED, NOTHING, UsageMeter, meter_for
from llm_proxy.gateway.usage.shapes import UNKNOWN, Usage, model_name

__all__ = ["GENERATED", "NOTHING", "UNKNOWN", "Usage", "UsageMeter", "meter_for", "model_name"]
