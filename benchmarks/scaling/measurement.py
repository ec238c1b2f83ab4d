"""Loads on servers with one, two and eight processes, with the CPU time of all participants."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence

from attrs import Factory, define, frozen

from benchmarks.cpu import SETTLE
from benchmarks.databases import NAMES, Kind
from benchmarks.processes import Upstream, cpu_seconds, listener
from benchmarks.rig import ENOUGH, KEY, Bench, Rig, Sample, Served, Subject, bottlenecks, check_upstream, put_load
from benchmarks.scaling.model import Cost, Parameters
from llm_proxy.metrics import families

_SECONDS = 4.0
_FEWEST = 0.2
#: How many are many.
TOKENS = 200
#: Connections without a pause that give as much load as there can be.
CONNECTIONS = 64
#: Processes whose values are worked out, and then measured.
PROCESSES = 8
#: Connections of one process: they make transactions of three sizes.
_FEW_TO_MANY = (4, 16, CONNECTIONS)
#: Requests per second, so far apart that the settlement of one finds no admission of the next.
_LONE = 20


@frozen
class Load:
    """How a server is loaded: connections without a pause, or a rate."""

    processes: int
    connections: int
    one_token: bool = False
    rate: int | None = None

    @property
    def name(self) -> str:
        """What people read."""
        processes = f"{self.processes} process{'es' if self.processes > 1 else ''}"
        how = f"{self.rate} requests/s" if self.rate else f"{self.connections} connections"
        return f"{processes}, {how}, {'one token' if self.one_token else 'many tokens'}"

    @property
    def options(self) -> tuple[str, ...]:
        """Of the load generator."""
        rate = ("--rate", str(self.rate)) if self.rate else ()
        return ("--connections", str(self.connections), *rate)


LOADS = (
    *(Load(1, connections) for connections in _FEW_TO_MANY),
    Load(1, 1, rate=_LONE),
    Load(2, CONNECTIONS),
    Load(PROCESSES, CONNECTIONS),
    Load(PROCESSES, CONNECTIONS, one_token=True),
)


@frozen
class Reading:
    """What one load took. CPU times are in µs per request, transactions in seconds.

    Attributes:
        sample: the load's result.
        n: requests that a transaction admitted.
        seconds: that a transaction took.
        commits: transactions per second.
        proxy_us, database_us, others_us: CPU time of all processes of the proxy, of the database server, and of load
            and provider together.
        busy: the part of the machine's cores that all of them used.
    """

    sample: Sample
    n: float
    seconds: float
    commits: float
    proxy_us: float
    database_us: float
    others_us: float
    busy: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.sample.rate


@define
class Run:
    """A load on a server, in rounds."""

    load: Load
    served: Served
    subject: Subject
    database: int
    readings: list[Reading] = Factory(list)

    def median(self, figure: str) -> float:
        """Return the median of one figure over the rounds."""
        return statistics.median(float(getattr(reading, figure)) for reading in self.readings)

    def measure(self, upstream: Upstream, seconds: float) -> Reading:
        """Put the load on, and read what everybody spent until all was settled."""
        (proxy,) = self.served.proxies

        def spent() -> tuple[float, float, float, Mapping[str, float]]:
            cpu = (proxy.process.cpu_seconds(), cpu_seconds(self.database), upstream.process.cpu_seconds())
            return *cpu, proxy.metrics()

        before = spent()
        # A rate that low takes longer until its ticks of CPU time say something.
        sample = put_load(self.subject, upstream, "--seconds", f"{seconds * (3 if self.load.rate else 1):g}")
        time.sleep(SETTLE)
        after = spent()
        (report,) = sample.reports
        proxy_s, database_s, upstream_s = (late - early for early, late in zip(before[:3], after[:3], strict=True))
        others_s = upstream_s + report["cpu_share"] * report["seconds"]
        counted = {name: after[3][name] - value for name, value in before[3].items()}
        transactions = counted[f"{families.TRANSACTION_SECONDS.name}_count"]
        microseconds = 1e6 / sample.requests
        reading = Reading(
            sample=sample,
            n=counted[f"{families.BATCH_ADMITTED.name}_sum"] / transactions,
            seconds=counted[f"{families.TRANSACTION_SECONDS.name}_sum"] / transactions,
            commits=transactions / report["seconds"],
            proxy_us=proxy_s * microseconds,
            database_us=database_s * microseconds,
            others_us=others_s * microseconds,
            busy=(proxy_s + database_s + others_s) / report["seconds"] / (os.cpu_count() or 1),
        )
        self.readings.append(reading)
        self.subject.samples.append(sample)
        return reading


@define
class Contest:
    """All loads on one database, which took turns.

    Attributes:
        connections: that the eight processes have open, under load.
    """

    kind: Kind
    runs: Mapping[Load, Run]
    connections: float = 0
    problems: list[str] = Factory(list)

    @property
    def parameters(self) -> Parameters:
        """What the model needs, of one process and two."""
        single = [run for load, run in self.runs.items() if load.processes == 1]
        pressed = [run for run in single if not run.load.rate]

        def fitted(figure: str) -> Cost:
            return Cost.fitted([(run.median("n"), run.median(figure)) for run in single])

        times = [(run.median("n"), run.median("seconds") / run.median("n")) for run in pressed]
        # Processes that contend for the cores share less than one that has them for itself.
        both = self.runs[Load(2, CONNECTIONS)]
        return Parameters(
            proxy=fitted("proxy_us"),
            database=fitted("database_us"),
            others=both.median("others_us"),
            seconds=Cost.fitted(times),
            shared=both.median("n") / (CONNECTIONS / 2),
            busy=both.median("busy"),
        )


def _start(rig: Rig, kind: Kind, upstream: Upstream, loads: Sequence[Load]) -> dict[Load, Run]:
    """Start a server for each number of processes; loads on as many share it."""
    runs: dict[Load, Run] = {}
    for processes in sorted({load.processes for load in loads}):
        served = rig.serve(kind, upstream, workers=processes)
        (proxy,) = served.proxies
        project = proxy.create_project(KEY, "many tokens")
        secrets = [proxy.create_token(project, max_requests=ENOUGH)["token"] for _ in range(TOKENS)]
        path = rig.directory / f"{kind}-{processes}-tokens"
        database = listener(served.target.port)
        for load in loads:
            if load.processes == processes:
                one, many = served.loads(*load.options), served.spread(secrets, path, *load.options)
                options = one if load.one_token else many
                runs[load] = Run(load, served, Subject(f"{NAMES[kind]}, {load.name}", options), database)
    return runs


def seconds_of(bench: Bench) -> float:
    """Return how long each load lasts in each round."""
    return max(_FEWEST, _SECONDS * bench.scale)


def measure(bench: Bench, kind: Kind) -> Contest:
    """Measure one database. Raises LoadFailed and ProcessFailed."""
    seconds = seconds_of(bench)
    with Rig(bench, "scaling") as rig:
        upstream = rig.start_upstream()
        contest = Contest(kind, _start(rig, kind, upstream, LOADS))
        for each in contest.runs.values():
            put_load(each.subject, upstream, "--seconds", f"{seconds / 4:g}")
        upstream.reset()
        for number in range(1, bench.rounds + 1):
            for each in contest.runs.values():
                reading = each.measure(upstream, seconds)
                bench.say(
                    f"scaling, round {number}: {each.subject.name}: {reading.rate:,.0f} requests/s, "
                    f"{reading.n:.1f} in a transaction"
                )
        samples = (sample for each in contest.runs.values() for sample in each.subject.samples)
        contest.problems += check_upstream(upstream, samples)
        last = contest.runs[LOADS[-1]].served
        contest.connections = last.proxies[0].metrics()[families.CONNECTIONS.name]
        for each in contest.runs.values():
            contest.problems += bottlenecks(each.subject)
        for served in {id(each.served): each.served for each in contest.runs.values()}.values():
            contest.problems += served.verify_ledger()
    return contest
