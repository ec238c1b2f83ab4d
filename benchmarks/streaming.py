"""Streams: added time to the first byte, added gaps, CPU time per chunk, and a thousand slow ones at the same time."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Sequence
from typing import Any

import attrs
from attrs import Factory, define

from benchmarks.databases import Kind
from benchmarks.findings import Chapter, Plot, Series, Table, at_least, at_most, ratio
from benchmarks.load import BUSY
from benchmarks.processes import Process, Upstream
from benchmarks.rig import KEY, Bench, Rig, bottlenecks, put_load
from benchmarks.streamed import Plan, Streamed, at, directions, proxied_by, start_reference
from benchmarks.targets import ADDED_FIRST_BYTE_MS, CHUNK_CPU_RATIO, STREAM_KB

_KB = 1000
#: The share of chunks that must travel alone, so that CPU time for each of them means something.
_APART = 0.95
#: Open files that a process may need beside one for each stream and side.
_FILES = 256


@define
class Held:
    """What happened to the streams that were to be held at the same time. Memory is in bytes."""

    report: dict[str, Any]
    idle: int
    at_once: int
    resident: list[int] = Factory(list)
    problems: list[str] = Factory(list)

    @property
    def whole(self) -> int:
        """How many were open at the same time, and came to their ends."""
        return min(int(self.report["statuses"].get("200", 0)), self.at_once)

    def each(self) -> float:
        """Return the memory of each stream in KB; NaN if they were never all open."""
        return (max(self.resident) - self.idle) / self.at_once / _KB if self.resident else float("nan")


def allow_files(number: int) -> None:
    """Let this process and those that it starts open so many files. Raises ValueError where the system forbids it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < number:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))


def run(bench: Bench, plan: Plan | None = None) -> list[Chapter]:
    """Measure on one database, because chunks do not reach it. Raises LoadFailed and ProcessFailed."""
    plan = plan or Plan.at_scale(bench)
    kind = Kind.SQLITE if Kind.SQLITE in bench.kinds else bench.kinds[0]
    return [_pace(bench, kind, plan), _hold(bench, kind, plan)]


def _pace(bench: Bench, kind: Kind, plan: Plan) -> Chapter:
    problems = []
    with Rig(bench, "streaming") as rig:
        upstream = rig.start_upstream()
        served = rig.serve(kind, upstream)
        proxied = proxied_by(served)
        direct = at("upstream, called directly", upstream.url, KEY, upstream.process)
        bare = start_reference(rig)
        for streamed in (proxied, direct, bare):
            streamed.read(upstream, plan.streams, 20, 0.001)
        for number in range(1, plan.rounds + 1):
            for streamed in (proxied, direct):
                streamed.ask(upstream, plan)
            for streamed in (proxied, direct):
                streamed.paced.append(streamed.read(upstream, plan.streams, plan.chunks, plan.gap))
            costs = [f"{streamed.name} {streamed.measure_chunks(upstream, plan):.0f}" for streamed in (proxied, bare)]
            bench.say(f"streaming, round {number}: µs of CPU per chunk: {', '.join(costs)}")
        for streamed in (proxied, direct):
            streamed.subject.samples += streamed.paced
            problems += bottlenecks(streamed.subject)
        problems += [
            f"{streamed.name}: {1 - streamed.apart:.0%} of the chunks were sent together with others"
            for streamed in (proxied, bare)
            if streamed.apart < _APART
        ]
        problems += served.verify_ledger()
    return _tell_pace(plan, proxied, direct, bare, problems)


def _tell_pace(plan: Plan, proxied: Streamed, direct: Streamed, bare: Streamed, problems: Sequence[str]) -> Chapter:
    pairs = zip(proxied.first_bytes, direct.first_bytes, strict=True)
    added = statistics.median(through - without for through, without in pairs)
    chunk = ratio(proxied.chunk_us, bare.chunk_us)
    both = (proxied, direct)
    times: list[list[str | float]] = [
        [streamed.name, statistics.median(streamed.first_bytes), *map(streamed.gap, ("p50", "p99", "max"))]
        for streamed in both
    ]
    costs: list[list[str | float]] = [
        [streamed.name, statistics.median(streamed.chunk_us), min(streamed.chunk_us), max(streamed.chunk_us)]
        for streamed in (proxied, bare)
    ]
    return Chapter(
        title="Streams",
        method=(
            f"{plan.rounds} interleaved rounds. Time to the first byte: {plan.first_bytes} streams one after the other "
            f"on one connection. Gaps: {plan.streams} streams at the same time of {plan.chunks} chunks, "
            f"{plan.gap * 1000:g} ms apart. CPU time per chunk: {plan.busy_streams} streams of {plan.busy_chunks} "
            f"chunks, {plan.busy_gap * 1000:g} ms apart, so that each chunk is a wake-up of its own on both sides: "
            f"without a gap, chunks that pile up would be sent together, the more of them the slower the server. The "
            f"bare application sends the same bytes at the same pace, woken by a timer where the proxy is woken by the "
            f"upstream's bytes. The requests' own time is included, one for each {plan.busy_chunks} chunks."
        ),
        tables=[
            Table(["", "first byte p50 ms", "gap p50 ms", "gap p99 ms", "gap max ms"], times),
            Table(["", "CPU µs per chunk", "lowest", "highest"], costs),
        ],
        plots=[
            Plot(
                name="cpu-per-chunk",
                title="CPU time per chunk of a stream",
                x="",
                y="µs",
                series=[Series("", [(str(row[0]), float(row[1])) for row in costs])],
                kind="bars",
            )
        ],
        checks=[
            at_most(f"Added time to first byte, p50, 1 stream, {proxied.name}", added, ADDED_FIRST_BYTE_MS, "ms"),
            at_most(f"CPU per chunk over bare Hypercorn, {proxied.name}", chunk, CHUNK_CPU_RATIO, "x"),
        ],
        problems=problems,
        raw={
            "plan": attrs.asdict(plan),
            "first_byte_ms": {streamed.name: streamed.first_bytes for streamed in both},
            "paced": {streamed.name: list(map(attrs.asdict, streamed.paced)) for streamed in both},
            "chunk_us": {streamed.name: streamed.chunk_us for streamed in (proxied, bare)},
        },
    )


def _hold(bench: Bench, kind: Kind, plan: Plan) -> Chapter:
    """Hold slow streams on a fresh proxy, so that its memory growth is caused by them."""
    allow_files(2 * plan.held + _FILES)
    with Rig(bench, "streams-held") as rig:
        upstream = rig.start_upstream()
        served = rig.serve(kind, upstream)
        proxied = proxied_by(served)
        put_load(proxied.subject, upstream, "--stream", "--requests", str(plan.warm_up))
        held = _hold_all(proxied, upstream, plan)
        bench.say(f"streaming: {held.whole} of {plan.held} slow streams held, {held.each():.0f} KB each")
        held.problems += served.verify_ledger()
    return tell_held(plan, proxied.name, held)


def _hold_all(proxied: Streamed, upstream: Upstream, plan: Plan) -> Held:
    """Open all streams, read the memory while they are all open, and read them to their ends."""
    upstream.reset()
    idle = proxied.process.resident_bytes()
    resident, problems = [], []
    before = upstream.process.cpu_seconds()
    number = str(plan.held)
    options = ("--connections", number, "--requests", number, "--rate", str(plan.held / plan.opening))
    (load,) = proxied.subject.loads
    with Process.start_python(
        "benchmarks.load", *load, *options, *directions(plan.held_chunks, plan.held_gap)
    ) as reader:
        try:
            upstream.wait(timeout=10 + plan.opening + plan.held_chunks * plan.held_gap, in_flight=plan.held)
        except TimeoutError as error:
            problems.append(f"streaming: the streams were never all open at the same time: {error}")
        while upstream.counts()["in_flight"] >= plan.held:
            resident.append(proxied.process.resident_bytes())
            time.sleep(0.1)
        report = reader.read_json(timeout=60 + plan.held_chunks * plan.held_gap)
    shares = {
        "load generator": report["cpu_share"],
        "upstream": (upstream.process.cpu_seconds() - before) / report["seconds"],
    }
    problems += [f"streaming: the {name} was the bottleneck" for name, share in shares.items() if share > BUSY]
    if report["errors"]:
        problems.append(f"streaming: of the held streams, some failed: {report['errors']}")
    return Held(report, idle, upstream.counts()["in_flight_peak"], resident, problems)


def tell_held(plan: Plan, name: str, held: Held) -> Chapter:
    """Write down how holding streams went."""
    report = held.report
    open_mb = max(held.resident, default=0) / _KB**2
    gaps = report["gap_ms"]
    return Chapter(
        title="Streams held at the same time",
        method=(
            f"{plan.held} streams of {plan.held_chunks} chunks, {plan.held_gap * 1000:g} ms apart, opened one after "
            f"the other within {plan.opening:g} s and all read to their ends, with the default settings. Memory is the "
            f"worker's resident memory while all are open, less that of the same worker idle after {plan.warm_up} "
            f"requests; the kernel's socket buffers are not in it."
        ),
        tables=[
            Table(
                ["", "streams at once", "whole", "idle MB", "all open MB", "KB each", "gap p50 ms", "gap p99 ms"],
                [[name, held.at_once, held.whole, held.idle / _KB**2, open_mb, held.each(), gaps["p50"], gaps["p99"]]],
            )
        ],
        checks=[
            at_least(f"Slow streams held at the same time, none dropped, {name}", held.whole, plan.held, "streams"),
            at_most(f"Memory of a slow stream, {plan.held} at the same time, {name}", held.each(), STREAM_KB, "KB"),
        ],
        problems=held.problems,
        raw={"report": report, "idle_bytes": held.idle, "open_bytes": held.resident},
    )
