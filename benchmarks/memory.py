"""Memory: growth of the resident memory per request, from ten thousand to a hundred thousand requests."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import attrs
from attrs import frozen

from benchmarks.databases import NAMES, Kind
from benchmarks.findings import Chapter, Plot, Series, Table, at_most
from benchmarks.processes import Process, Upstream
from benchmarks.rig import Bench, Rig, Served, Subject, bottlenecks, check_upstream, put_load
from benchmarks.targets import BYTES_PER_REQUEST

_MB = 1_000_000
_LOOK_EVERY = 0.02


@frozen
class Plan:
    """How much is requested.

    Attributes:
        first: requests before memory is read for the first time.
        step: requests between two readings.
        steps: how often it is read after the first time.
        streamed: share of the requests that are streamed, on `streamed_connections`.
        plain_connections: for the others.
    """

    first: int = 10_000
    step: int = 10_000
    steps: int = 9
    streamed: float = 0.1
    streamed_connections: int = 5
    plain_connections: int = 27

    @classmethod
    def at_scale(cls, bench: Bench) -> Plan:
        """Return the plan for this run. Memory is allocated in blocks, which fewer requests would not fill."""
        return cls() if bench.scale >= 1 else cls(first=20_000, step=bench.scaled(10_000, 5000), steps=6)

    @property
    def requests(self) -> int:
        """How many there are in all."""
        return self.first + self.steps * self.step


@frozen
class Reading:
    """The resident memory after so many requests, in bytes."""

    requests: int
    resident: int


def slope(readings: Sequence[Reading]) -> float:
    """Return the growth in bytes per request, by least squares; NaN for fewer than two readings."""
    if len(readings) < 2:
        return math.nan
    return statistics.linear_regression(
        [reading.requests for reading in readings], [reading.resident for reading in readings]
    ).slope


def run(bench: Bench, plan: Plan | None = None) -> list[Chapter]:
    """Measure on one database; each leaves the same to the proxy. Raises LoadFailed and ProcessFailed."""
    plan = plan or Plan.at_scale(bench)
    kind = Kind.SQLITE if Kind.SQLITE in bench.kinds else bench.kinds[0]
    with Rig(bench, "memory") as rig:
        upstream = rig.start_upstream()
        served = rig.serve(kind, upstream)
        plain = Subject("plain", served.loads())
        streamed = Subject("streamed", served.loads("--stream"))
        upstream.reset()
        some = round(plan.requests * plan.streamed)
        with ThreadPoolExecutor(2) as pool:
            loads = [
                pool.submit(_load, plain, upstream, plan.requests - some, plan.plain_connections),
                pool.submit(_load, streamed, upstream, some, plan.streamed_connections),
            ]
            readings = list(_read(served.proxies[0].process, upstream, plan, loads))
            for load in loads:
                load.result()
        bench.say(f"memory: {readings[0].resident / _MB:.1f} MB, then {readings[-1].resident / _MB:.1f} MB")
        problems = check_upstream(upstream, [*plain.samples, *streamed.samples])
        problems += [*bottlenecks(plain), *bottlenecks(streamed), *served.verify_ledger()]
    return [_tell(plan, served, readings, problems)]


def _load(subject: Subject, upstream: Upstream, requests: int, connections: int) -> None:
    options = ("--requests", str(requests), "--connections", str(connections))
    subject.samples.append(put_load(subject, upstream, *options))


def _read(process: Process, upstream: Upstream, plan: Plan, loads: Sequence[Future[None]]) -> Iterator[Reading]:
    """Read the memory each time that another step of requests is done, until the loads are."""
    due = plan.first
    while due <= plan.requests:
        over = all(load.done() for load in loads)
        served = int(upstream.counts()["requests"])
        if served >= due:
            yield Reading(served, process.resident_bytes())
            due += plan.step * (1 + (served - due) // plan.step)
        elif over:
            return
        time.sleep(_LOOK_EVERY)


def _tell(plan: Plan, served: Served, readings: list[Reading], problems: list[str]) -> Chapter:
    first, last = readings[0], readings[-1]
    name = f"LLM Proxy, {NAMES[served.kind]}"
    return Chapter(
        title="Memory",
        method=(
            f"The resident memory of one worker while {last.requests:,} requests go through it on "
            f"{plan.plain_connections + plan.streamed_connections} connections that are kept open, {plan.streamed:.0%} "
            f"of them streamed, read after each {plan.step:,} from {first.requests:,} on, when caches and pools have "
            f"filled. The growth for each request is the slope of the line of least squares through the readings. A "
            f"leak of one small object for each request would be above the bound of {BYTES_PER_REQUEST:g} bytes: a "
            f"number in a list takes 32, an id in a dictionary more than 100."
        ),
        tables=[
            Table(
                ["requests", "resident MB"],
                [[f"{reading.requests:,}", reading.resident / _MB] for reading in readings],
            )
        ],
        plots=[
            Plot(
                name="memory",
                title="Resident memory as requests are served",
                x="requests",
                y="MB",
                series=[Series(name, [(reading.requests, reading.resident / _MB) for reading in readings])],
            )
        ],
        checks=[
            at_most(
                f"Growth of memory per request, {first.requests:,} to {last.requests:,} requests, {name}",
                slope(readings),
                BYTES_PER_REQUEST,
                "bytes",
            )
        ],
        problems=problems,
        raw={"plan": attrs.asdict(plan), "readings": [attrs.asdict(reading) for reading in readings]},
    )
