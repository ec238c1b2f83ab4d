"""Combines the metrics of all workers, and writes them in Prometheus' text format."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate, chain
from typing import Final

from attrs import frozen
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from llm_proxy.metrics import families
from llm_proxy.metrics.families import SECTIONS, Family
from llm_proxy.metrics.store import MetricStore

_BY_NAME: Final = {family.name: family for family in chain.from_iterable(SECTIONS.values())}
_MERGES: Final[dict[str, Callable[[Iterable[float]], float]]] = {
    "sum": math.fsum,
    "lowest": min,
    "highest": max,
    "any": max,
}


def exposition(store: MetricStore) -> tuple[bytes, str]:
    """Prometheus' text for all workers, made by the one with this store, and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(store))
    return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4


@frozen
class _Collector(Collector):
    """The interface of the Prometheus library."""

    store: MetricStore

    def collect(self) -> Iterator[Metric]:
        found: dict[str, dict[tuple[str, ...], list[Sequence[float]]]] = {name: {} for name in _BY_NAME}
        processes: list[tuple[int, int]] = []
        for store in self.store.everyone():
            process = store.process
            if process is not None:
                processes.append((store.number, process))
            for (name, labels), cells in chain(store.counters.items(), store.gauges.items() if process else ()):
                if _BY_NAME[name].over_workers != "any" or store is self.store:
                    values = tuple(cells)
                    if not math.isnan(values[0]):
                        found[name].setdefault(labels, []).append(values)
        for name, series in found.items():
            if series:
                yield _metric(_BY_NAME[name], series)
        yield from _process_metrics(processes)


def _metric(family: Family, series: dict[tuple[str, ...], list[Sequence[float]]]) -> Metric:
    merge = _MERGES[family.over_workers]
    names = [label.name for label in family.labels]
    summed = {labels: [merge(cells) for cells in zip(*values, strict=True)] for labels, values in series.items()}
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.text, labels=names)
        bounds = [*map(str, family.bounds), "+Inf"]
        for labels, (*counts, total) in summed.items():
            histogram.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total)
        return histogram
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    plain = kind(family.name, family.text, labels=names)
    for labels, (value,) in summed.items():
        plain.add_metric(labels, value)
    return plain


def _process_metrics(processes: Sequence[tuple[int, int]]) -> Iterator[Metric]:
    """What the operating system knows of each worker; nothing except on Linux."""
    merged: dict[str, Metric] = {}
    for number, process in processes:
        try:
            found = list(ProcessCollector("llm_proxy", partial(int, process), registry=None).collect())
        except (ValueError, UnboundLocalError):
            continue  # the worker has just ended, or the library does not support this system
        for metric in found:
            family = _BY_NAME[metric.name]
            known = merged.setdefault(metric.name, Metric(metric.name, family.text, family.kind))
            for sample in metric.samples:
                known.add_sample(sample.name, {families.WORKER.name: str(number)}, sample.value)
    yield from merged.values()
