"""The metrics of one process."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import Final, get_args

import trio
from attrs import define, field, frozen

from db.records import Outcome, Result, Scope
from llm_proxy import errors
from llm_proxy.metrics import families
from llm_proxy.metrics.exposition import exposition
from llm_proxy.metrics.families import Family
from llm_proxy.metrics.store import Cells, MetricStore

_OTHER: Final = "other"
_LATE_RESULTS: Final = ("booked", "lost", "failed")
_OUTCOMES: Final = frozenset(get_args(Outcome))
#: Seconds between two calls of `Metrics.publish`.
_PUBLISH_INTERVAL: Final = 1.0

#: Returns the value of a metric, None if there is no value; or, with a label, the values by label.
Read = Callable[[], float | Mapping[str, float] | None]


class Histogram:
    """Counts per bucket, and the sum."""

    __slots__ = ("_bounds", "_cells")

    def __init__(self, bounds: tuple[float, ...], cells: Cells) -> None:
        """Take the upper bounds, inclusive and ascending, and two more cells than bounds."""
        self._bounds = bounds
        self._cells = cells

    def observe(self, value: float) -> None:
        self._cells[bisect_left(self._bounds, value)] += 1
        self._cells[-1] += value


@define(eq=False)
class _Provider:
    """The metrics of one provider's requests. `ends` has the key (outcome, status // 100), with 0 for no status."""

    name: str
    duration: Histogram
    first_byte: Histogram
    in_flight: Cells
    input: Cells
    output: Cells
    cached: Cells
    cost: Cells
    unpriced: Cells
    estimated: Cells
    unmetered: Cells
    reservation_exceeded: Cells
    ends: dict[tuple[str, int], Cells] = field(factory=dict)


@frozen
class _Function:
    """A metric that is read from a function: its cells by label, and the value of a counter before this process."""

    family: Family
    read: Read
    cells: dict[str, Cells] = field(factory=dict)
    before: dict[str, float] = field(factory=dict)


class Metrics:
    """Counts the metrics of one process, and shows those of all workers."""

    def __init__(self, providers: Iterable[str] = (), version: str = "", store: MetricStore | None = None) -> None:
        """Start from zero, or from the counters of the last worker with this store.

        `providers` may become labels, each from its first request on; all others are counted as `other`.
        """
        self._store = MetricStore() if store is None else store
        self._names = set(providers)
        self._providers: dict[str, _Provider] = {}
        codes = sorted({kind.code for kind in errors.DATA_PLANE})
        self._refusals = {code: self._cells(families.REFUSALS, code) for code in (*codes, _OTHER)}
        self._late_usage = {result: self._cells(families.LATE_USAGE, result) for result in _LATE_RESULTS}
        self._limit_warnings = {scope: self._cells(families.LIMIT_WARNINGS, scope) for scope in get_args(Scope)}
        self._transaction = self._histogram(families.TRANSACTION_SECONDS)
        self._admitted = self._histogram(families.BATCH_ADMITTED)
        self._settled = self._histogram(families.BATCH_SETTLED)
        self._functions: dict[str, _Function] = {}
        self._cells(families.BUILD, version)[0] = 1
        self._cells(families.WORKERS)[0] = 1
        self._cells(families.WORKER_STARTS)[0] += 1

    def add_providers(self, names: Iterable[str]) -> None:
        """Let these names be labels too."""
        self._names.update(names)

    def show_provider(self, name: str) -> None:
        """Show the metrics of a provider before its first request."""
        self._first(name)

    def request(self, provider: str, result: Result) -> None:
        """Count an admitted request that has ended."""
        metrics = self._providers.get(provider) or self._first(provider)
        end = (result.outcome, 0 if result.status is None else result.status // 100)
        (metrics.ends.get(end) or self._end(metrics, *end))[0] += 1
        metrics.duration.observe((result.duration_us or 0) / 1e6)
        if result.first_byte_us is not None:
            metrics.first_byte.observe(result.first_byte_us / 1e6)
        metrics.input[0] += result.input_tokens or 0
        metrics.output[0] += result.output_tokens or 0
        metrics.cached[0] += result.cached_tokens or 0
        if result.cost_nanousd:
            metrics.cost[0] += result.cost_nanousd / 1e9
        elif result.unpriced:
            metrics.unpriced[0] += 1
        if result.estimated:
            metrics.estimated[0] += 1
        if result.unmetered:
            metrics.unmetered[0] += 1

    def refusal(self, code: str) -> None:
        """Count a request that the proxy refused, by its error code."""
        self._refusals[code if code in self._refusals else _OTHER][0] += 1

    def late_usage(self, result: str, count: int = 1) -> None:
        """Count objects whose usage was booked, is lost, or could not be asked for: `booked`, `lost`, `failed`."""
        self._late_usage[result][0] += count

    def limit_warning(self, scope: str) -> None:
        """Count a window of a limit in which enough is used to warn."""
        self._limit_warnings[scope][0] += 1

    def reservation_exceeded(self, provider: str) -> None:
        """Count a reservation that was smaller than what the request used."""
        (self._providers.get(provider) or self._first(provider)).reservation_exceeded[0] += 1

    def upstream_started(self, provider: str) -> None:
        """Count a request as in flight, until `upstream_ended`."""
        (self._providers.get(provider) or self._first(provider)).in_flight[0] += 1

    def upstream_ended(self, provider: str) -> None:
        (self._providers.get(provider) or self._first(provider)).in_flight[0] -= 1

    def observe_transaction(self, seconds: float, admitted: int, settled: int) -> None:
        """Count a committed transaction of the ledger: its duration and its requests."""
        self._transaction.observe(seconds)
        self._admitted.observe(admitted)
        self._settled.observe(settled)

    def set_function(self, family: Family, read: Read) -> None:
        """Read a metric with at most one label whenever Prometheus asks, and every second if other workers show it.

        A counter counts from the start of this process. If `read` raises, the metric is left out.
        """
        if family.name in self._functions:
            raise ValueError(f"this metric has a function already: {family.name}")
        self._functions[family.name] = _Function(family, read)

    async def run(self) -> None:
        """Publish every second, if other workers show the metrics of this one."""
        while self._store.shared:
            self.publish()
            await trio.sleep(_PUBLISH_INTERVAL)

    def publish(self) -> None:
        for function in self._functions.values():
            self._publish(function)

    def render(self) -> tuple[bytes, str]:
        """The metrics of all workers in Prometheus' text format, and its content type.

        Values are stored before they are shown, so that a later response of another worker shows no lower count.
        """
        self.publish()
        return exposition(self._store)

    def _publish(self, function: _Function) -> None:
        family = function.family
        try:
            read = function.read()
            by_label = read if isinstance(read, Mapping) else {} if read is None else {"": read}
            values = {label: float(value) for label, value in by_label.items()}
        except Exception:  # noqa: BLE001 (an error in one metric must not hide the others)
            values = {}
        for label, value in values.items():
            if label not in function.cells:
                labels = (label,) if family.labels else ()
                cells = function.cells[label] = self._store.cells((family.name, labels), counter=family.is_counter)
                function.before[label] = cells[0] if family.is_counter else 0
            function.cells[label][0] = function.before[label] + value
        if not family.is_counter:
            for label in function.cells.keys() - values.keys():
                function.cells[label][0] = math.nan

    def _cells(self, family: Family, *labels: str) -> Cells:
        cells = self._store.cells((family.name, labels), family.size, counter=family.is_counter)
        if not family.is_counter:
            cells[0] = 0
        return cells

    def _histogram(self, family: Family, *labels: str) -> Histogram:
        return Histogram(family.bounds, self._cells(family, *labels))

    def _provider(self, name: str) -> _Provider:
        return _Provider(
            name,
            self._histogram(families.DURATION, name),
            self._histogram(families.FIRST_BYTE, name),
            self._cells(families.UPSTREAM_REQUESTS, name),
            self._cells(families.TOKENS, name, "input"),
            self._cells(families.TOKENS, name, "output"),
            self._cells(families.TOKENS, name, "cached"),
            self._cells(families.COST, name),
            self._cells(families.UNPRICED, name),
            self._cells(families.ESTIMATED, name),
            self._cells(families.UNMETERED, name),
            self._cells(families.RESERVATION_EXCEEDED, name),
        )

    def _first(self, name: str) -> _Provider:
        """The metrics of a provider at its first request, or those of all others."""
        label = name if name in self._names else _OTHER
        found = self._providers[label] = self._providers.get(label) or self._provider(label)
        return found

    def _end(self, metrics: _Provider, outcome: str, hundreds: int) -> Cells:
        known = outcome if outcome in _OUTCOMES else _OTHER
        cells = self._cells(families.REQUESTS, metrics.name, known, f"{hundreds}xx" if hundreds else "none")
        if known == outcome:
            metrics.ends[outcome, hundreds] = cells
        return cells
