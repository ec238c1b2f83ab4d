"""Subjects that stream: the proxy, the upstream itself, and a bare application."""

from __future__ import annotations

import statistics
import time

from attrs import define, field, frozen

from benchmarks.cpu import SETTLE, start_hypercorn
from benchmarks.databases import NAMES
from benchmarks.processes import Process, Upstream
from benchmarks.rig import CHAT, Bench, Rig, Sample, Served, Subject, put_load
from benchmarks.targets import STREAMS

#: The pieces that end each stream, beside those with text: the usage, and `[DONE]`.
_LAST = 2


@frozen
class Plan:
    """How much is streamed. Gaps are seconds.

    Attributes:
        rounds: of all but the held streams.
        first_bytes: requests, one after the other, for each subject and round.
        streams, chunks, gap: of the measurement of gaps.
        busy_streams, busy_chunks, busy_gap: of the measurement of CPU time.
        held, held_chunks, held_gap: of the streams that are held.
        opening: seconds within which those are opened.
        warm_up: requests before the memory of an idle proxy is read.
    """

    rounds: int
    first_bytes: int = 200
    streams: int = 10
    chunks: int = 80
    gap: float = 0.02
    busy_streams: int = 16
    busy_chunks: int = 400
    busy_gap: float = 0.005
    held: int = STREAMS
    held_chunks: int = 12
    held_gap: float = 0.5
    opening: float = 2.0
    warm_up: int = 1000

    @classmethod
    def at_scale(cls, bench: Bench) -> Plan:
        """Return the plan for this run."""
        if bench.scale >= 1:
            return cls(bench.rounds)
        return cls(
            min(bench.rounds, 3),
            first_bytes=bench.scaled(200, 40),
            chunks=bench.scaled(80, 40),
            busy_chunks=bench.scaled(400, 200),
        )


def directions(chunks: int, gap: float) -> tuple[str, ...]:
    """Return the load generator's options that have the upstream stream so."""
    return ("--stream", "--header", f"x-scripted-chunks: {chunks}", "--header", f"x-scripted-gap: {gap}")


@define
class Streamed:
    """A subject that streams.

    Attributes:
        process: whose CPU time counts.
        first_bytes: p50 of the time to the first byte in each round, in milliseconds.
        paced: the loads in which gaps were measured.
        chunk_us: CPU time per chunk in each round, in microseconds.
        apart: share of the chunks that arrived as chunks of their own there, in the worst round.
    """

    subject: Subject
    process: Process
    first_bytes: list[float] = field(factory=list)
    paced: list[Sample] = field(factory=list)
    chunk_us: list[float] = field(factory=list)
    apart: float = 1.0

    @property
    def name(self) -> str:
        """What people read."""
        return self.subject.name

    def ask(self, upstream: Upstream, plan: Plan) -> None:
        """Ask for short streams one after the other, and keep the time to the first byte."""
        options = ("--connections", "1", "--requests", str(plan.first_bytes), *directions(5, 0))
        self.first_bytes.append(put_load(self.subject, upstream, *options).ms("p50", "first_byte_ms"))

    def read(self, upstream: Upstream, streams: int, chunks: int, gap: float) -> Sample:
        """Read streams that were opened within one gap, all of them to their ends. Raises LoadFailed."""
        number = str(streams)
        options = ("--connections", number, "--requests", number, "--rate", str(streams / gap))
        return put_load(self.subject, upstream, *options, *directions(chunks, gap))

    def measure_chunks(self, upstream: Upstream, plan: Plan) -> float:
        """Stream what is busy, and return and keep the CPU time per chunk in microseconds."""
        before = self.process.cpu_seconds()
        sample = self.read(upstream, plan.busy_streams, plan.busy_chunks, plan.busy_gap)
        time.sleep(SETTLE)
        chunks = plan.busy_streams * (plan.busy_chunks + _LAST)
        self.apart = min(self.apart, sample.reports[0]["pieces"] / chunks)
        cost = (self.process.cpu_seconds() - before) / chunks * 1e6
        self.chunk_us.append(cost)
        return cost

    def gap(self, percentile: str) -> float:
        """Return the median of a percentile of gaps over the rounds, in milliseconds."""
        return statistics.median(sample.ms(percentile, "gap_ms") for sample in self.paced)


def at(name: str, url: str, token: str, process: Process) -> Streamed:
    """Return what streams at an origin."""
    return Streamed(Subject(name, [("--url", url + CHAT, "--token", token)]), process)


def proxied_by(served: Served) -> Streamed:
    """Return the first instance of a proxy, as something that streams."""
    proxy = served.proxies[0]
    return at(f"LLM Proxy, {NAMES[served.kind]}", proxy.url, served.token, proxy.process)


def start_reference(rig: Rig) -> Streamed:
    """Start the bare application that streams, on stock Hypercorn, one trio worker."""
    url, process = start_hypercorn(rig, "benchmarks.stream_hello:app")
    return at("bare app, stock Hypercorn", url, "any", process)
