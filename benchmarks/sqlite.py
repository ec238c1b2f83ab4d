"""SQLite's upper bound: one process, `synchronous=FULL` and `NORMAL`, on a fast and a slow disk.

The slow disk is this machine's, with each flush made longer by `strace`, which holds the process's `fsync` and
`fdatasync` back. It lets all other calls pass untouched; what it costs by itself is measured too.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
from collections.abc import Sequence

import attrs
from attrs import Factory, define, frozen

from benchmarks.databases import Kind
from benchmarks.findings import Chapter, Plot, Series, Table, at_least
from benchmarks.processes import Upstream
from benchmarks.rig import Bench, Rig, Sample, Served, Subject, bottlenecks, check_upstream, put_load
from benchmarks.targets import SEED_RATE, SLOW_FLUSH_MS

_CONNECTIONS = 32
_SECONDS = 3.0
_SECONDS_OF_ONE = 1.0
_WARM_UP = 0.5
_FEWEST = 0.2


@frozen
class Disk:
    """A disk whose flushes take `delay_ms` longer than this machine's."""

    name: str
    delay_ms: float | None = None

    @property
    def tracer(self) -> Sequence[str]:
        """The command under which the proxy has this disk."""
        if self.delay_ms is None:
            return ()
        calls = "fsync,fdatasync"
        # -D keeps the proxy the child that was started, and strace its grandchild.
        return (
            *("strace", "-D", "-f", "-q", "--seccomp-bpf", "-o", "/dev/null", "-e", f"trace={calls}"),
            *("-e", f"inject={calls}:delay_exit={round(self.delay_ms * 1000)}"),
        )


_HERE = Disk("this machine's")
_TRACED = Disk("this machine's, traced", 0.0)
_SLOW = Disk(f"{SLOW_FLUSH_MS:g} ms a flush", SLOW_FLUSH_MS)
_SETUPS = (("FULL", _HERE), ("NORMAL", _HERE), ("FULL", _TRACED), ("FULL", _SLOW), ("NORMAL", _SLOW))


@define
class _Setup:
    """A proxy on a disk; `alone` are the samples of one connection."""

    synchronous: str
    disk: Disk
    served: Served
    subject: Subject
    alone: list[Sample] = Factory(list)

    @property
    def p50_alone(self) -> float:
        return statistics.median(sample.ms("p50") for sample in self.alone)

    def ms(self, percentile: str) -> float:
        return statistics.median(sample.ms(percentile) for sample in self.subject.samples)


def tracing_works() -> bool:
    """Whether `strace` is here and may hold calls back."""
    if shutil.which("strace") is None:
        return False
    done = subprocess.run([*_TRACED.tracer, "true"], capture_output=True, check=False)  # noqa: S603 - the words are ours
    return done.returncode == 0


def _start(rig: Rig, upstream: Upstream, synchronous: str, disk: Disk) -> _Setup:
    name = f"SQLite, {synchronous}, {disk.name}"
    served = rig.serve(
        Kind.SQLITE,
        upstream,
        name=f"{synchronous}-{disk.delay_ms}".lower(),
        settings={"SQLITE_SYNCHRONOUS": synchronous},
        under=disk.tracer,
    )
    return _Setup(synchronous, disk, served, Subject(name, served.loads()))


def run(bench: Bench) -> list[Chapter]:
    """Measure each setting on each disk, in turn. Raises LoadFailed and ProcessFailed."""
    if Kind.SQLITE not in bench.kinds:
        return []
    tracing = tracing_works()
    seconds, alone = (max(_FEWEST, part * bench.scale) for part in (_SECONDS, _SECONDS_OF_ONE))
    with Rig(bench, "sqlite") as rig:
        upstream = rig.start_upstream()
        setups = [
            _start(rig, upstream, synchronous, disk) for synchronous, disk in _SETUPS if tracing or not disk.tracer
        ]
        many = ("--connections", str(_CONNECTIONS), "--seconds")
        for setup in setups:
            put_load(setup.subject, upstream, *many, str(max(_FEWEST, _WARM_UP * bench.scale)))
        upstream.reset()
        for number in range(1, bench.rounds + 1):
            for setup in setups:
                sample = setup.subject.measure_round(upstream, *many, f"{seconds:g}")
                setup.alone.append(put_load(setup.subject, upstream, "--connections", "1", "--seconds", f"{alone:g}"))
                bench.say(f"sqlite, round {number}: {setup.subject.name}: {sample.rate:,.0f} requests/s")
        problems = check_upstream(upstream, (s for setup in setups for s in [*setup.subject.samples, *setup.alone]))
        for setup in setups:
            if setup.disk is _HERE:
                problems += bottlenecks(setup.subject)
            problems += setup.served.verify_ledger()
    slow = [
        (setup.subject.name, setup.subject.median("rate"))
        for setup in setups
        if setup.disk is _SLOW and setup.synchronous == "FULL"
    ]
    return [
        Chapter(
            title="The upper bound of SQLite",
            method=_describe(bench, seconds, alone),
            tables=[_tabulate(setups)],
            plots=[_plot(setups)],
            checks=[at_least(f"Requests/s, {name}", rate, SEED_RATE, "requests/s") for name, rate in slow],
            problems=problems,
            raw={
                "seconds": seconds,
                "samples": {s.subject.name: [attrs.asdict(sample) for sample in s.subject.samples] for s in setups},
                "alone": {s.subject.name: [attrs.asdict(sample) for sample in s.alone] for s in setups},
            },
            unchecked=()
            if tracing
            else ("SQLite on a slow disk: this machine has no strace, or does not let it trace",),
        )
    ]


def _describe(bench: Bench, seconds: float, alone: float) -> str:
    return (
        f"One server process with one worker, everything on: {_CONNECTIONS} connections in a closed loop for "
        f"{seconds:g} s, then one for {alone:g} s, in each of {bench.rounds} rounds; the subjects take turns, and a "
        "figure is the median of its rounds. `FULL` and `NORMAL` are the values of `SQLITE_SYNCHRONOUS`. The slow disk "
        f"is this machine's, with {SLOW_FLUSH_MS:g} ms added to each `fsync` and `fdatasync` of the server by strace; "
        "the cost of tracing itself is in a separate row, which differs from the first only by tracing."
    )


def _tabulate(setups: Sequence[_Setup]) -> Table:
    rows = [
        (
            setup.synchronous,
            setup.disk.name,
            setup.subject.median("rate"),
            setup.subject.lowest_to_highest("rate"),
            setup.ms("p50"),
            setup.ms("p99"),
            setup.p50_alone,
        )
        for setup in setups
    ]
    columns = ("synchronous", "disk", "requests/s", "lowest to highest", "p50 ms", "p99 ms", "p50 ms, 1 connection")
    return Table(columns, rows)


def _plot(setups: Sequence[_Setup]) -> Plot:
    disks = (_HERE, _SLOW)
    series = [
        Series(
            synchronous,
            [
                (s.disk.name, s.subject.median("rate"))
                for s in setups
                if s.synchronous == synchronous and s.disk in disks
            ],
        )
        for synchronous in ("FULL", "NORMAL")
    ]
    return Plot(
        name="sqlite",
        title="SQLite, one process",
        x="",
        y="requests/s",
        series=series,
        kind="bars",
        levels=[(SEED_RATE, f"at least {SEED_RATE:,.0f}")],
    )
