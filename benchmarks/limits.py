"""The cost of limits: CPU time per request with a per-minute, a daily and a monthly limit of money, and capacity.

The same server serves both tokens, one of a project with limits and one of a project without any, in interleaved
rounds. So a ratio is that of the limits alone. Capacity is that of several instances on one database, where all
requests of the limited project change the same counters.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from attrs import frozen

from benchmarks.cpu import Costed, measure_in_turn
from benchmarks.databases import NAMES, Kind
from benchmarks.findings import Chapter, Table, at_least, at_most, ratio
from benchmarks.rig import CHAT, ENOUGH, KEY, Bench, Rig, Served, Subject, bottlenecks, check_upstream, put_load
from benchmarks.targets import LIMITED_CPU, LIMITED_RATE

_REQUESTS = 5000
_CONNECTIONS = 32
_INSTANCES, _ALL_CONNECTIONS = 3, 64
_SECONDS, _FEWEST = 3.0, 0.2
_WINDOWS = ("minute", "day", "month")


@frozen
class _Pair:
    """One proxy, or several on one database, and the loads without limits and with them."""

    served: Served
    free: Subject
    limited: Subject

    @property
    def subjects(self) -> tuple[Subject, Subject]:
        return self.free, self.limited


def _tokens(served: Served) -> tuple[str, str]:
    """Tokens of a project without limits, and of one with them."""
    first = served.proxies[0]
    project = first.create_project(KEY, "limited")
    for window in _WINDOWS:
        limit = {"project_id": project, "metric": "cost", "window": window, "amount": "1000000", "unpriced": "allow"}
        first.manage("POST", "/limits", limit)
    return served.token, str(first.create_token(project, max_requests=ENOUGH)["token"])


def _loads(served: Served, token: str, *options: str) -> Sequence[tuple[str, ...]]:
    return [("--url", proxy.url + CHAT, "--token", token, *options) for proxy in served.proxies]


def run(bench: Bench) -> list[Chapter]:
    """Measure both loads on each database in turn. Raises LoadFailed and ProcessFailed."""
    return [_cpu(bench), _capacity(bench)]


def _cpu(bench: Bench) -> Chapter:
    requests = bench.scaled(_REQUESTS, _CONNECTIONS)
    with Rig(bench, "limits-cpu") as rig:
        upstream = rig.start_upstream()
        pairs: list[tuple[Served, Costed, Costed]] = []
        for kind in bench.kinds:
            served = rig.serve(kind, upstream)
            free, limited = (
                Costed(f"{NAMES[kind]}, {name}", _loads(served, token), process=served.proxies[0].process)
                for name, token in zip(("no limits", "three limits"), _tokens(served), strict=True)
            )
            pairs.append((served, free, limited))
        subjects = [subject for _, *both in pairs for subject in both]
        measure_in_turn(bench, "limits", upstream, subjects, _CONNECTIONS, requests)
        problems = check_upstream(upstream, (sample for subject in subjects for sample in subject.samples))
        for served, free, limited in pairs:
            problems += [*bottlenecks(free), *bottlenecks(limited), *served.verify_ledger()]
    ratios = {served.kind: ratio(limited.values("cpu_us"), free.values("cpu_us")) for served, free, limited in pairs}
    return Chapter(
        title="CPU time per request with limits",
        method=(
            f"{requests:,} requests in each round ({bench.rounds} of them), on {_CONNECTIONS} connections, with a "
            f"token of a project that has limits of money per {', '.join(_WINDOWS)}, and with one of a project without "
            "limits, on the same server. Each value is the median of the rounds."
        ),
        tables=[
            Table(
                ("database", "µs CPU without", "µs CPU with three limits", "ratio"),
                [
                    (NAMES[served.kind], free.median("cpu_us"), limited.median("cpu_us"), f"{ratios[served.kind]:.2f}")
                    for served, free, limited in pairs
                ],
            )
        ],
        checks=[
            at_most(f"CPU per request with three limits over none, {NAMES[kind]}", found, LIMITED_CPU, "x")
            for kind, found in ratios.items()
        ],
        problems=problems,
        raw={"samples": {subject.name: list(map(attrs.asdict, subject.samples)) for subject in subjects}},
    )


def _capacity(bench: Bench) -> Chapter:
    seconds = max(_FEWEST, _SECONDS * bench.scale)
    with Rig(bench, "limits-capacity") as rig:
        upstream = rig.start_upstream()
        pairs: list[_Pair] = []
        for kind in bench.kinds:
            served = rig.serve(kind, upstream, instances=1 if kind is Kind.SQLITE else _INSTANCES)
            each = str(_ALL_CONNECTIONS // len(served.proxies))
            free, limited = (_loads(served, token, "--connections", each) for token in _tokens(served))
            name = NAMES[kind]
            pairs.append(_Pair(served, Subject(f"{name}, no limits", free), Subject(f"{name}, three limits", limited)))
        subjects = [subject for pair in pairs for subject in pair.subjects]
        for subject in subjects:
            put_load(subject, upstream, "--seconds", str(_FEWEST))
        upstream.reset()
        for number in range(1, bench.rounds + 1):
            for subject in subjects:
                sample = subject.measure_round(upstream, "--seconds", f"{seconds:g}")
                bench.say(f"limits, round {number}: {subject.name}: {sample.rate:,.0f} requests/s")
        problems = check_upstream(upstream, (sample for subject in subjects for sample in subject.samples))
        for pair in pairs:
            problems += [*bottlenecks(pair.free), *bottlenecks(pair.limited), *pair.served.verify_ledger()]
    ratios = {pair.served.kind: ratio(pair.limited.values("rate"), pair.free.values("rate")) for pair in pairs}
    return Chapter(
        title="Capacity with limits",
        method=(
            f"{_INSTANCES} instances on one database (one on SQLite), {_ALL_CONNECTIONS} connections in all, for "
            f"{seconds:g} s in each round ({bench.rounds} of them). All requests have the same token, and with limits "
            "all of them change the same three counters."
        ),
        tables=[
            Table(
                ("database", "requests/s without", "requests/s with three limits", "ratio"),
                [
                    (
                        NAMES[pair.served.kind],
                        pair.free.median("rate"),
                        pair.limited.median("rate"),
                        f"{ratios[pair.served.kind]:.2f}",
                    )
                    for pair in pairs
                ],
            )
        ],
        checks=[
            at_least(f"Requests/s with three limits over none, {NAMES[kind]}", found, LIMITED_RATE, "x")
            for kind, found in ratios.items()
        ],
        problems=problems,
        raw={"samples": {subject.name: list(map(attrs.asdict, subject.samples)) for subject in subjects}},
    )
