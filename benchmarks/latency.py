"""Added latency: latency through the proxy minus latency of the upstream called directly."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import attrs
from attrs import define

from benchmarks.databases import NAMES, Kind
from benchmarks.findings import Chapter, Check, Plot, Series, Table, at_most
from benchmarks.processes import Upstream
from benchmarks.rig import CHAT, KEY, Bench, Rig, Sample, Served, Subject, bottlenecks, check_upstream, put_load
from benchmarks.targets import ADDED_P50_MS, ADDED_P99_OVER_P50

_CONNECTIONS = (1, 8, 32, 128)
_LOADED = 32
_SECONDS = 1.0
#: The open loop is for the tail, which is rare by its nature.
_OPEN_SECONDS = 2.0
_FEWEST = 0.2
#: The open loop's rate over the capacity that the closed loop found. Near its capacity every server queues.
_SUSTAINED = 0.55
#: The least share of the requested rate that counts as keeping up.
_KEPT_UP = 0.95
_PERCENTILES = ("p50", "p95", "p99")
_CLOSED, _OPEN = "latency_ms", "intended_latency_ms"


@define
class _Pair:
    """The proxy on one database and the upstream, under the same load; one sample of each per round."""

    kind: Kind
    proxy: Subject
    direct: Subject
    key: str
    rate: float = 0.0

    def added(self, percentile: str) -> list[float]:
        """Return the added latency of each round, in milliseconds."""
        both = zip(self.proxy.samples, self.direct.samples, strict=True)
        return [ours.ms(percentile, self.key) - theirs.ms(percentile, self.key) for ours, theirs in both]

    def median(self, percentile: str) -> float:
        """Return the median added latency of the rounds."""
        return statistics.median(self.added(percentile))

    def direct_ms(self, percentile: str) -> float:
        """Return the median latency of the upstream itself."""
        return statistics.median(sample.ms(percentile, self.key) for sample in self.direct.samples)

    @property
    def tail(self) -> float:
        """Added p99 over added p50."""
        return self.median("p99") / self.median("p50")

    @property
    def cells(self) -> tuple[float, ...]:
        """The values of a row."""
        added = [self.median(percentile) for percentile in _PERCENTILES]
        return (*added, self.tail, self.direct_ms("p50"), self.direct_ms("p99"))


_HEADS = ("added p50 ms", "added p95 ms", "added p99 ms", "p99 over p50", "direct p50 ms", "direct p99 ms")


def run(bench: Bench) -> list[Chapter]:
    """Measure with closed loops of several widths, then with an open one. Raises LoadFailed and ProcessFailed."""
    seconds, open_seconds = (max(_FEWEST, full * bench.scale) for full in (_SECONDS, _OPEN_SECONDS))
    with Rig(bench, "latency") as rig:
        upstream = rig.start_upstream()
        direct = ("--url", upstream.url + CHAT, "--token", KEY)
        proxies = {kind: rig.serve(kind, upstream) for kind in bench.kinds}
        for load in (direct, *(served.loads()[0] for served in proxies.values())):
            put_load(Subject("", [load]), upstream, "--connections", str(_LOADED), "--seconds", str(_FEWEST))
        upstream.reset()
        closed = _run_closed(bench, upstream, direct, proxies, seconds)
        opened = _run_open(bench, upstream, direct, proxies, open_seconds, closed[_LOADED])
        pairs = [pair for group in (*closed.values(), opened) for pair in group]
        problems = check_upstream(upstream, _all_samples(pairs))
        for pair in pairs:
            problems += bottlenecks(pair.proxy)
        for pair in opened:
            problems += _lag(pair)
        for served in proxies.values():
            problems += served.verify_ledger()
    return [
        Chapter(
            title="Added latency",
            method=_describe(bench, seconds, open_seconds),
            tables=[_tabulate_closed(closed), _tabulate_open(opened)],
            plots=[_plot_closed(closed), _plot_open(opened)],
            checks=_check(closed[1], opened),
            problems=problems,
            raw={"seconds": seconds, "closed": {n: _raw(group) for n, group in closed.items()}, "open": _raw(opened)},
        )
    ]


def _measure(bench: Bench, number: int, subject: Subject, upstream: Upstream, options: Sequence[str], key: str) -> None:
    sample = subject.measure_round(upstream, *options)
    bench.say(
        f"latency, round {number}: {subject.name}: p50 {sample.ms('p50', key)} ms, p99 {sample.ms('p99', key)} ms"
    )


def _run_closed(
    bench: Bench, upstream: Upstream, direct: tuple[str, ...], proxies: Mapping[Kind, Served], seconds: float
) -> dict[int, list[_Pair]]:
    found: dict[int, list[_Pair]] = {}
    for connections in _CONNECTIONS:
        # All pairs of one width share the direct subject: one sample of it in each round.
        reference = Subject(f"direct, {connections} connections", [direct])
        found[connections] = [
            _Pair(kind, Subject(f"{NAMES[kind]}, {connections} connections", served.loads()), reference, _CLOSED)
            for kind, served in proxies.items()
        ]
    for number in range(1, bench.rounds + 1):
        for connections, pairs in found.items():
            options = ("--connections", str(connections), "--seconds", f"{seconds:g}")
            for subject in (pairs[0].direct, *(pair.proxy for pair in pairs)):
                _measure(bench, number, subject, upstream, options, _CLOSED)
    return found


def _run_open(
    bench: Bench,
    upstream: Upstream,
    direct: tuple[str, ...],
    proxies: Mapping[Kind, Served],
    seconds: float,
    capacity: Sequence[_Pair],
) -> list[_Pair]:
    rates = {pair.kind: float(round(pair.proxy.median("rate") * _SUSTAINED)) for pair in capacity}
    pairs = []
    for kind, served in proxies.items():
        at = f"{NAMES[kind]} at {rates[kind]:,.0f} requests/s"
        pairs.append(
            _Pair(kind, Subject(at, served.loads()), Subject(f"direct, for {at}", [direct]), _OPEN, rates[kind])
        )
    for number in range(1, bench.rounds + 1):
        for pair in pairs:
            options = ("--connections", str(_LOADED), "--seconds", f"{seconds:g}", "--rate", f"{pair.rate:g}")
            for subject in (pair.direct, pair.proxy):
                _measure(bench, number, subject, upstream, options, _OPEN)
    return pairs


def _all_samples(pairs: Sequence[_Pair]) -> list[Sample]:
    subjects = {id(subject): subject for pair in pairs for subject in (pair.proxy, pair.direct)}
    return [sample for subject in subjects.values() for sample in subject.samples]


def _lag(pair: _Pair) -> list[str]:
    reached = pair.proxy.median("rate")
    if reached >= _KEPT_UP * pair.rate:
        return []
    return [f"{pair.proxy.name}: only {reached:,.0f} requests/s were reached, so the rate was not sustained"]


def _check(single: Sequence[_Pair], opened: Sequence[_Pair]) -> list[Check]:
    checks = [
        at_most(
            f"Added latency p50, {NAMES[pair.kind]}, 1 connection", pair.median("p50"), ADDED_P50_MS[pair.kind], "ms"
        )
        for pair in single
    ]
    for pair in opened:
        name = f"Added latency p99 over p50, {NAMES[pair.kind]}, {_LOADED} connections at a sustained rate"
        checks.append(at_most(name, pair.tail, ADDED_P99_OVER_P50, "x"))
    return checks


def _describe(bench: Bench, seconds: float, open_seconds: float) -> str:
    return (
        "Each value is a percentile through the proxy less the same percentile against the upstream called directly, "
        "under the same load in the same round. It is the median of the rounds, in which the subjects take turns: "
        f"{bench.rounds} of {seconds:g} s, and of {open_seconds:g} s for the open loop. Closed loop: each connection "
        "sends its next request when the last answer is complete, so that with many connections the queue is full. "
        f"Open loop: requests are due at a fixed rate on {_LOADED} connections, about "
        f"{_SUSTAINED:.0%} of the capacity that the closed loop found, and a latency counts from when its request was "
        "due, so that a stall shows in all the requests that it kept waiting. The target of the tail is checked on the "
        "open loop: a full queue hides what a server does to its tail."
    )


def _tabulate_closed(closed: Mapping[int, Sequence[_Pair]]) -> Table:
    rows: list[tuple[str | float, ...]] = [
        (NAMES[pair.kind], str(width), *pair.cells) for width, pairs in closed.items() for pair in pairs
    ]
    order = list(NAMES.values())
    rows.sort(key=lambda row: order.index(str(row[0])))
    return Table(("closed loop", "connections", *_HEADS), rows)


def _tabulate_open(opened: Sequence[_Pair]) -> Table:
    rows: list[tuple[str | float, ...]] = [(NAMES[pair.kind], pair.rate, *pair.cells) for pair in opened]
    return Table((f"open loop, {_LOADED} connections", "requests/s", *_HEADS), rows)


def _plot_closed(closed: Mapping[int, Sequence[_Pair]]) -> Plot:
    points: dict[str, list[tuple[float | str, float]]] = {}
    for width, pairs in closed.items():
        for pair in pairs:
            points.setdefault(NAMES[pair.kind], []).append((width, pair.median("p50")))
    return Plot(
        name="added-latency-closed",
        title="Added latency, median, as connections grow",
        x="connections, each with a request under way",
        y="ms added by the proxy",
        series=[Series(name, values) for name, values in points.items()],
        log_x=True,
        log_y=True,
    )


def _plot_open(opened: Sequence[_Pair]) -> Plot:
    return Plot(
        name="added-latency-open",
        title=f"Added latency at {_SUSTAINED:.0%} of capacity, {_LOADED} connections",
        x="",
        y="ms added by the proxy",
        series=[Series(name, [(NAMES[pair.kind], pair.median(name)) for pair in opened]) for name in _PERCENTILES],
        kind="bars",
    )


def _raw(pairs: Sequence[_Pair]) -> dict[str, object]:
    return {
        NAMES[pair.kind]: {
            "rate": pair.rate,
            "proxy": list(map(attrs.asdict, pair.proxy.samples)),
            "direct": list(map(attrs.asdict, pair.direct.samples)),
        }
        for pair in pairs
    }
