"""Capacity: requests per second in a closed loop, with one worker, with two, and with two instances on one database."""

from __future__ import annotations

import os
from collections.abc import Sequence

import attrs
from attrs import frozen

from benchmarks.databases import NAMES, Kind
from benchmarks.findings import Chapter, Check, Plot, Series, Table, at_least, ratio
from benchmarks.processes import Upstream
from benchmarks.rig import Bench, Rig, Served, Subject, bottlenecks, check_upstream, put_load
from benchmarks.targets import CORES_FOR_TWO_WORKERS, RATE, SEED_RATE, SEED_RATE_OF_TWO_INSTANCES, TWO_WORKERS

_CONNECTIONS = 32
_SECONDS = 3.0
_WARM_UP = 0.5
_FEWEST = 0.2
_NAMES = {(1, 1): "1 worker", (2, 1): "2 workers", (1, 2): "2 instances"}
_WHY_ONE = (
    "SQLite serves one process with one worker: it has one writer, and a second process on its file is refused. "
    "More than that is what the other databases are for."
)


@frozen
class _Setup:
    """A proxy in one shape, and its load."""

    served: Served
    workers: int
    subject: Subject

    @property
    def shape(self) -> str:
        return _NAMES[self.workers, len(self.served.proxies)]

    @property
    def rates(self) -> list[float]:
        return self.subject.values("rate")

    @property
    def rate(self) -> float:
        return self.subject.median("rate")


def _shapes(kind: Kind) -> Sequence[tuple[int, int]]:
    return [(1, 1)] if kind is Kind.SQLITE else list(_NAMES)


def _start(rig: Rig, kind: Kind, upstream: Upstream, workers: int, instances: int) -> _Setup:
    served = rig.serve(kind, upstream, workers=workers, instances=instances)
    loads = served.loads("--connections", str(_CONNECTIONS // instances))
    name = f"{NAMES[kind]}, {_NAMES[workers, instances]}"
    return _Setup(served, workers, Subject(name, loads))


def run(bench: Bench) -> list[Chapter]:
    """Measure each database in each shape, in turn. Raises LoadFailed and ProcessFailed."""
    seconds = max(_FEWEST, _SECONDS * bench.scale)
    with Rig(bench, "throughput") as rig:
        upstream = rig.start_upstream()
        setups = [_start(rig, kind, upstream, *shape) for kind in bench.kinds for shape in _shapes(kind)]
        for setup in setups:
            put_load(setup.subject, upstream, "--seconds", str(max(_FEWEST, _WARM_UP * bench.scale)))
        upstream.reset()
        for number in range(1, bench.rounds + 1):
            for setup in setups:
                sample = setup.subject.measure_round(upstream, "--seconds", f"{seconds:g}")
                bench.say(f"throughput, round {number}: {setup.subject.name}: {sample.rate:,.0f} requests/s")
        problems = check_upstream(upstream, (sample for setup in setups for sample in setup.subject.samples))
        for setup in setups:
            problems += [*bottlenecks(setup.subject), *setup.served.verify_ledger()]
    checks, unchecked = _check(setups)
    return [
        Chapter(
            title="Capacity",
            method=_describe(bench, seconds),
            tables=[_tabulate(setups)],
            plots=[_plot(setups)],
            checks=checks,
            problems=problems,
            raw={
                "seconds": seconds,
                "samples": {s.subject.name: list(map(attrs.asdict, s.subject.samples)) for s in setups},
            },
            unchecked=unchecked,
        )
    ]


def _check(setups: Sequence[_Setup]) -> tuple[list[Check], list[str]]:
    checks: list[Check] = []
    unchecked: list[str] = []
    cores = os.cpu_count() or 1
    single = {setup.served.kind: setup for setup in setups if setup.shape == _NAMES[1, 1]}
    for setup in setups:
        name, kind = f"Requests/s, {setup.subject.name}", setup.served.kind
        match setup.shape:
            case "1 worker":
                checks.append(at_least(name, setup.rate, RATE, "requests/s"))
                if kind is Kind.SQLITE:
                    name = f"Requests/s that were asked for, {setup.subject.name}"
                    checks.append(at_least(name, setup.rate, SEED_RATE, "requests/s"))
            case "2 instances":
                name = f"Requests/s that were asked for, {setup.subject.name}"
                bound = SEED_RATE_OF_TWO_INSTANCES
                checks.append(at_least(name, setup.rate, bound, "requests/s"))
            case _ if cores >= CORES_FOR_TWO_WORKERS:
                gain = ratio(setup.rates, single[kind].rates)
                checks.append(at_least(f"2 workers over 1, {NAMES[kind]}", gain, TWO_WORKERS, "x"))
            case _:
                unchecked.append(
                    f"2 workers over 1, {NAMES[kind]} (at least {TWO_WORKERS:g} x): two workers, the load, the "
                    f"upstream and the database share {cores} cores here, and it takes {CORES_FOR_TWO_WORKERS}"
                )
    return checks, unchecked


def _describe(bench: Bench, seconds: float) -> str:
    kinds = set(bench.kinds)
    text = (
        f"Closed loop: each of {_CONNECTIONS} connections sends its next request when the last answer is complete, "
        f"for {seconds:g} s in each round ({bench.rounds} of them); the subjects take turns, and a value is the "
        "median of its rounds. Two workers are two processes of one server, on one address. Two instances are two "
        "servers with one worker each, on one database, with half of the connections each, from a load generator of "
        "its own. The load generators, the upstream and the database server run on the same machine and take their "
        "share of it."
    )
    return f"{text} {_WHY_ONE}" if Kind.SQLITE in kinds else text


def _tabulate(setups: Sequence[_Setup]) -> Table:
    single = {setup.served.kind: setup.rates for setup in setups if setup.shape == _NAMES[1, 1]}
    rows = [
        (
            NAMES[setup.served.kind],
            setup.shape,
            setup.rate,
            setup.subject.lowest_to_highest("rate"),
            f"{ratio(setup.rates, single[setup.served.kind]):.2f}",
        )
        for setup in setups
    ]
    return Table(("database", "shape", "requests/s", "lowest to highest", "over 1 worker"), rows)


def _plot(setups: Sequence[_Setup]) -> Plot:
    series = [
        Series(shape, [(NAMES[setup.served.kind], setup.rate) for setup in setups if setup.shape == shape])
        for shape in _NAMES.values()
    ]
    return Plot(
        name="capacity",
        title="Capacity, with a durable ledger",
        x="",
        y="requests/s",
        series=[one for one in series if one.points],
        kind="bars",
        levels=[(RATE, f"at least {RATE:,.0f} with 1 worker")],
    )
