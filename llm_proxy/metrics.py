"""Counts what happens, and shows it to Prometheus.

On the path of a request there are only integers, in objects that were found before; what Prometheus sees is put
together from them when it asks (`_Collector`). Every label has a bounded set of values: configured providers,
outcomes, error codes. There is no label with a token, a key, a path or a model, which clients could choose at will.

Counts are those of one process.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Final, Literal, Protocol, get_args

from attrs import define, field, frozen
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from db.records import Outcome
from llm_proxy.errors import ProxyError

_PREFIX: Final = "llm_proxy_"
_OTHER: Final = "other"

_OUTCOMES: Final = frozenset(get_args(Outcome))
_TOKEN_KINDS: Final = ("input", "output", "cached")

#: Upper bounds in seconds. Answers of language models take from milliseconds (a refusal) to many minutes (reasoning).
_DURATION_BOUNDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TRANSACTION_BOUNDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
_BATCH_BOUNDS: Final = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)


class TokenUsage(Protocol):
    """What a response cost in tokens; None where the provider did not say."""

    @property
    def input_tokens(self) -> int | None:
        """Tokens of the prompt."""

    @property
    def output_tokens(self) -> int | None:
        """Tokens of the answer."""

    @property
    def cached_tokens(self) -> int | None:
        """Tokens of the prompt that the provider had in its cache."""


class Histogram:
    """Counts per bucket, and the sum."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """Take the upper bounds, inclusive and in ascending order; what is above them goes into a last bucket."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, as Prometheus wants them."""
        bounds = [*map(str, self._bounds), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self._counts)), strict=True))

    @property
    def sum(self) -> float:
        """The sum of all values."""
        return self._sum


@define(eq=False)
class _Provider:
    """The figures of one provider's requests. `ends` counts by outcome and hundreds of the status (0: none)."""

    ends: dict[tuple[str, int], int] = field(factory=dict)
    duration: Histogram = field(factory=lambda: Histogram(_DURATION_BOUNDS))
    first_byte: Histogram = field(factory=lambda: Histogram(_DURATION_BOUNDS))
    in_flight: int = 0
    input: int = 0
    output: int = 0
    cached: int = 0


@frozen
class _Figure:
    """A figure that is asked for when Prometheus asks; `label` names what tells the values of a mapping apart."""

    kind: Literal["gauge", "counter"]
    name: str
    text: str
    label: str | None
    read: Callable[[], float | Mapping[str, float]]


class Metrics:
    """All figures of one process."""

    def __init__(self, providers: Iterable[str] = (), version: str = "") -> None:
        """Start from zero.

        Args:
            providers: the names that may become labels; every other one is counted as `other`.
            version: of this program.
        """
        self._version = version
        self._providers = {name: _Provider() for name in (*providers, _OTHER)}
        self._other = self._providers[_OTHER]
        self._refusals = dict.fromkeys((*sorted(_codes(ProxyError)), _OTHER), 0)
        self._transaction = Histogram(_TRANSACTION_BOUNDS)
        self._admitted = Histogram(_BATCH_BOUNDS)
        self._settled = Histogram(_BATCH_BOUNDS)
        self._figures: list[_Figure] = []
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Collector(self._collect))
        ProcessCollector(namespace=_PREFIX.rstrip("_"), registry=self._registry)

    def request(
        self,
        provider: str,
        outcome: str,
        status: int | None,
        duration_s: float,
        first_byte_s: float | None,
        usage: TokenUsage | None,
    ) -> None:
        """Count one request that was admitted and has ended.

        Args:
            provider: the name of the provider that it went to.
            outcome: one of `db.records.Outcome`.
            status: what the client was sent, None where nothing was.
            duration_s: seconds from its arrival to its end.
            first_byte_s: seconds from its arrival to the first byte of the answer's body, None where there was none.
            usage: its tokens, None where they are not known.
        """
        figures = self._providers.get(provider, self._other)
        end = (outcome if outcome in _OUTCOMES else _OTHER, 0 if status is None else status // 100)
        figures.ends[end] = figures.ends.get(end, 0) + 1
        figures.duration.observe(duration_s)
        if first_byte_s is not None:
            figures.first_byte.observe(first_byte_s)
        if usage is not None:
            figures.input += usage.input_tokens or 0
            figures.output += usage.output_tokens or 0
            figures.cached += usage.cached_tokens or 0

    def refusal(self, code: str) -> None:
        """Count one request that the proxy answered itself, by its error code."""
        self._refusals[code if code in self._refusals else _OTHER] += 1

    def upstream_started(self, provider: str) -> None:
        """Count a request as being with its provider, until `upstream_ended`."""
        self._providers.get(provider, self._other).in_flight += 1

    def upstream_ended(self, provider: str) -> None:
        """End what `upstream_started` began; exactly once each."""
        self._providers.get(provider, self._other).in_flight -= 1

    def observe_transaction(self, seconds: float, admitted: int, settled: int) -> None:
        """Count one committed transaction of the ledger: how long it took and how many requests it carried."""
        self._transaction.observe(seconds)
        self._admitted.observe(admitted)
        self._settled.observe(settled)

    def watch_ledger(
        self, *, waiting: Callable[[], int], unsettled: Callable[[], int], lag: Callable[[], float] | None = None
    ) -> None:
        """Show the writer's queues.

        Args:
            waiting: how many requests wait for their admission.
            unsettled: how many settlements are not in the database yet.
            lag: seconds since the oldest of these requests ended, 0 where there is none.
        """
        self.gauge("llm_proxy_ledger_waiting_requests", "Requests that wait for their admission.", waiting)
        self.gauge("llm_proxy_ledger_unsettled_requests", "Settlements that are not in the database yet.", unsettled)
        if lag is not None:
            self.gauge("llm_proxy_ledger_settle_lag_seconds", "Age of the oldest settlement that is not written.", lag)

    def watch_grace(self, *, admissions: Callable[[], int], spooled: Callable[[], int]) -> None:
        """Show what is admitted while the database is away.

        Args:
            admissions: how many requests were admitted without it so far.
            spooled: how many requests were admitted or have ended without it, and are not in it yet.
        """
        name = "llm_proxy_ledger_grace_admissions"
        self.counter(name, "Requests that were admitted while the database was away.", admissions)
        text = "Requests that were admitted or have ended while the database was away, and are not in it yet."
        self.gauge("llm_proxy_ledger_spooled_requests", text, spooled)

    def watch_database(self, *, up: Callable[[], bool], pool: Callable[[], Mapping[str, int]]) -> None:
        """Show whether the database answers, and the connections by state (such as `in_use`, `idle`, `limit`)."""
        self.gauge("llm_proxy_database_up", "Whether the database answered when it was last asked.", up)
        self.gauge("llm_proxy_database_connections", "Connections of this process by state.", pool, label="state")

    def watch_upstreams(self, *, idle: Callable[[], int], in_use: Callable[[], int]) -> None:
        """Show the connections to providers: those kept for the next request, and those that carry one."""
        self.gauge(
            "llm_proxy_upstream_connections",
            "Connections to providers by state.",
            lambda: {"idle": idle(), "in_use": in_use()},
            label="state",
        )

    def gauge(
        self, name: str, text: str, read: Callable[[], float | Mapping[str, float]], *, label: str | None = None
    ) -> None:
        """Show a figure that can go up and down, read when Prometheus asks.

        Args:
            name: begins with `llm_proxy_`.
            text: one sentence that explains it.
            read: gives the figure, or with `label` a figure for each value of that label. Where it raises, the figure
                is left out.
            label: what the keys of the mapping are; their number must be bounded.

        Raises:
            ValueError: the name is taken, or does not begin as it should.
        """
        self._add(_Figure("gauge", name, text, label, read))

    def counter(
        self, name: str, text: str, read: Callable[[], float | Mapping[str, float]], *, label: str | None = None
    ) -> None:
        """Show a figure that only grows; as `gauge`. Prometheus sees `_total` at the end of the name."""
        self._add(_Figure("counter", name, text, label, read))

    def render(self) -> tuple[bytes, str]:
        """Give the figures in Prometheus' text format, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4

    def _add(self, figure: _Figure) -> None:
        if not figure.name.startswith(_PREFIX):
            raise ValueError(f"the name of a metric begins with {_PREFIX}: {figure.name}")
        taken = {metric.name for metric in self._collect()} | {other.name for other in self._figures}
        if figure.name in taken:
            raise ValueError(f"there is a metric of this name already: {figure.name}")
        self._figures.append(figure)

    def _collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily("llm_proxy_build_info", "The version that runs.", labels=["version"])
        build.add_metric([self._version], 1)
        yield build
        yield from self._collect_requests()
        refusals = CounterMetricFamily(
            "llm_proxy_refusals", "Requests that the proxy answered itself, by error code.", labels=["code"]
        )
        for code, count in self._refusals.items():
            refusals.add_metric([code], count)
        yield refusals
        for name, text, histogram in (
            ("transaction_seconds", "Time that a shared transaction took.", self._transaction),
            ("batch_admitted_requests", "Requests admitted by one transaction.", self._admitted),
            ("batch_settled_requests", "Requests settled by one transaction.", self._settled),
        ):
            family = HistogramMetricFamily(f"llm_proxy_ledger_{name}", text, labels=[])
            family.add_metric([], histogram.buckets(), histogram.sum)
            yield family
        for figure in self._figures:
            yield from _read(figure)

    def _collect_requests(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "llm_proxy_requests", "Admitted requests that have ended.", labels=["provider", "outcome", "status"]
        )
        duration = HistogramMetricFamily(
            "llm_proxy_request_duration_seconds", "From a request's arrival to its end.", labels=["provider"]
        )
        first_byte = HistogramMetricFamily(
            "llm_proxy_time_to_first_byte_seconds",
            "From a request's arrival to the first byte of the answer's body.",
            labels=["provider"],
        )
        in_flight = GaugeMetricFamily(
            "llm_proxy_upstream_in_flight_requests", "Requests that are with their provider.", labels=["provider"]
        )
        tokens = CounterMetricFamily("llm_proxy_tokens", "Tokens that providers reported.", labels=["provider", "kind"])
        for name, figures in self._providers.items():
            if figures is self._other and not figures.ends and not figures.in_flight:
                continue
            for (outcome, hundreds), count in figures.ends.items():
                requests.add_metric([name, outcome, f"{hundreds}xx" if hundreds else "none"], count)
            duration.add_metric([name], figures.duration.buckets(), figures.duration.sum)
            first_byte.add_metric([name], figures.first_byte.buckets(), figures.first_byte.sum)
            in_flight.add_metric([name], figures.in_flight)
            for kind in _TOKEN_KINDS:
                tokens.add_metric([name, kind], getattr(figures, kind))
        yield from (requests, duration, first_byte, in_flight, tokens)


class _Collector(Collector):
    """What the Prometheus library asks for the figures."""

    def __init__(self, collect: Callable[[], Iterator[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterator[Metric]:
        """Give every figure as it is now."""
        return self._collect()


def _read(figure: _Figure) -> Iterator[Metric]:
    labels = [] if figure.label is None else [figure.label]
    family: GaugeMetricFamily | CounterMetricFamily
    if figure.kind == "gauge":
        family = GaugeMetricFamily(figure.name, figure.text, labels=labels)
    else:
        family = CounterMetricFamily(figure.name, figure.text, labels=labels)
    try:
        value = figure.read()
        values = value if isinstance(value, Mapping) else {"": value}
        for key, number in values.items():
            family.add_metric([key] if labels else [], float(number))
    except Exception:  # noqa: BLE001 (one figure that cannot be had must not hide the others)
        return
    yield family


def _codes(family: type[ProxyError]) -> set[str]:
    """Find the codes of a whole family of errors."""
    return {family.code}.union(*map(_codes, family.__subclasses__()))
