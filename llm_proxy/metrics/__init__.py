"""Metrics in Prometheus' format.

- `families`: declares every metric: its name, its labels, and how the values of several workers are combined
- `store`: the memory that holds the metrics, shared by all workers of a server
- `counting`: `Metrics`, which counts
- `exposition`: combines the stores of all workers and writes Prometheus' text

The path of a request only adds to cells that were found before; all else happens when Prometheus asks. Every label has
a bounded set of values: configured providers, outcomes, error codes. No label contains a token, a key, a path or a
model, which clients could choose freely.
"""

from __future__ import annotations

from llm_proxy.metrics.counting import Metrics
from llm_proxy.metrics.store import MetricStore, MetricStores

__all__ = ["MetricStore", "MetricStores", "Metrics"]
