"""Counts what happens, and shows it to Prometheus.

- `families` declares every metric: its name, its labels, and what becomes of it over several workers
- `slate` is where figures stand: a process's own memory, or memory that all workers of a server share
- `counting` counts: `Metrics`
- `exposition` sums up the slates of all workers and writes Prometheus' text

On the path of a request there are only additions to cells that were found before; everything else happens when
Prometheus asks. Every label has a bounded set of values: configured providers, outcomes, error codes. There is no label
with a token, a key, a path or a model, which clients could choose at will.
"""

from __future__ import annotations

from llm_proxy.metrics.counting import Metrics
from llm_proxy.metrics.slate import Slate, Slates

__all__ = ["Metrics", "Slate", "Slates"]
