"""Sums up the figures of all workers, and writes them as Prometheus reads them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, chain
from typing import Final

from attrs import frozen
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from llm_proxy.metrics import families
from llm_proxy.metrics.families import SECTIONS, Family
from llm_proxy.metrics.slate import Slate

_NAMED: Final = {family.name: family for family in chain.from_iterable(SECTIONS.values())}
_MERGES: Final[dict[str, Callable[[Iterable[float]], float]]] = {
    "sum": math.fsum,
    "lowest": min,
    "highest": max,
    "any": max,
}


def exposition(slate: Slate) -> tuple[bytes, str]:
    """Prometheus' text of all workers' figures, as seen from one of them, and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(slate))
    return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4


@frozen
class _Collector(Collector):
    """What the Prometheus library asks for the figures."""

    slate: Slate

    def collect(self) -> Iterator[Metric]:
        """Give every figure as it is now."""
        found: dict[str, dict[tuple[str, ...], list[Sequence[float]]]] = {name: {} for name in _NAMED}
        processes: list[tuple[int, int]] = []
        for slate in self.slate.everyone():
            process = slate.process
            if process is not None:
                processes.append((slate.number, process))
            for (name, labels), cells in chain(slate.lasting.items(), slate.momentary.items() if process else ()):
                family = _NAMED[name]
                if family.over_workers != "any" or slate is self.slate:
                    figures = tuple(cells)
                    if not math.isnan(figures[0]):
                        found[name].setdefault(labels, []).append(figures)
        for name, series in found.items():
            if series:
                yield _metric(_NAMED[name], series)
        yield from _process_metrics(processes)


def _metric(family: Family, series: dict[tuple[str, ...], list[Sequence[float]]]) -> Metric:
    merge = _MERGES[family.over_workers]
    names = [label.name for label in family.labels]
    summed = {labels: [merge(cells) for cells in zip(*figures, strict=True)] for labels, figures in series.items()}
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.text, labels=names)
        bounds = [*map(str, family.bounds), "+Inf"]
        for labels, (*counts, total) in summed.items():
            histogram.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total)
        return histogram
    plain = (CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily)(
        family.name, family.text, labels=names
    )
    for labels, (figure,) in summed.items():
        plain.add_metric(labels, figure)
    return plain


@lru_cache(maxsize=256)
def _process_collector(process: int) -> ProcessCollector:
    return ProcessCollector(namespace="llm_proxy", pid=lambda: process, registry=None)


def _process_metrics(processes: Sequence[tuple[int, int]]) -> Iterator[Metric]:
    """What the system knows of each worker; nothing where it does not tell, or not as Linux does."""
    merged: dict[str, Metric] = {}
    for number, process in processes:
        try:
            found = list(_process_collector(process).collect())
        except (ValueError, UnboundLocalError):
            continue  # it has just ended, or the library does not understand what this system says
        for metric in found:
            family = _NAMED[metric.name]
            known = merged.setdefault(metric.name, Metric(metric.name, family.text, family.kind))
            for sample in metric.samples:
                known.add_sample(sample.name, {families.WORKER.name: str(number)}, sample.value)
    yield from merged.values()
