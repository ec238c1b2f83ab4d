"""CPU time per request of the whole proxy, as a ratio to a bare ASGI application on stock Hypercorn.

The proxy is the real server process with everything on: durable ledger, exact request limit, usage metering, metrics,
a log line per request. It gets what an SDK sends; Hypercorn gets the cheapest request there is. Rounds are
interleaved, so that a slower or busier machine slows all alike; each subject's figure is the median of its rounds,
and the ratio the median of the rounds' ratios. Time of all threads and child processes counts, also what is spent
after the last answer (settlement); the time of a database server does not.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import attrs
from attrs import define, frozen

from benchmarks.databases import NAMES, Kind
from benchmarks.findings import Chapter, Plot, Series, Table, at_most, ratio
from benchmarks.ports import free_port
from benchmarks.processes import Process, ProcessFailed, Upstream
from benchmarks.rig import Bench, Rig, Sample, Served, Subject, bottlenecks, check_upstream, put_load
from benchmarks.targets import CPU_RATIO

#: Seconds for settlements to be written before the CPU time is read.
SETTLE = 0.5
_REQUESTS = 5000
_WARM_UP = 0.1
REFERENCE = "bare app, stock Hypercorn"
GET = ("--method", "GET", "--few-headers")


@frozen
class Plan:
    """The load on each subject. `requests` are per subject and round, at any scale."""

    connections: int = 32
    requests: int | None = None
    streamed: bool = False


@define
class Costed(Subject):
    """A subject whose CPU time is read."""

    process: Process = attrs.field(kw_only=True)

    def measure(self, upstream: Upstream, connections: int, requests: int) -> Sample:
        """Put load on it and return what that cost."""
        before = self.process.cpu_seconds()
        sample = put_load(self, upstream, "--connections", str(connections), "--requests", str(requests))
        time.sleep(SETTLE)
        spent = self.process.cpu_seconds() - before
        return attrs.evolve(sample, cpu_us=spent / sample.requests * 1e6)


def start_hypercorn(rig: Rig, application: str) -> tuple[str, Process]:
    """Start an application on stock Hypercorn with one trio worker; returns its origin. Raises ProcessFailed."""
    port = free_port()
    arguments = ("-k", "trio", "-w", "1", "-b", f"127.0.0.1:{port}", application)
    process = rig.stack.enter_context(
        Process.start_python("hypercorn", *arguments, stderr=rig.directory / "hypercorn.err"),
    )
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.running:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return f"http://127.0.0.1:{port}", process
        time.sleep(0.05)
    raise ProcessFailed("hypercorn did not listen")


def start_own_server(rig: Rig) -> Costed:
    """Start the bare application on the proxy's own server."""
    process = rig.stack.enter_context(Process.start_python("benchmarks.hello", stderr=rig.directory / "hello.err"))
    url = process.read_json()["url"] + "/"
    return Costed("bare app, the proxy's own server", [(*GET, "--url", url)], process=process)


def start_proxies(rig: Rig, upstream: Upstream, *options: str) -> list[tuple[Served, Costed]]:
    """Start a proxy on each kind of database; `options` are further ones of the load."""
    found = []
    for kind in rig.bench.kinds:
        served = rig.serve(kind, upstream)
        loads = served.loads(*options)
        found.append((served, Costed(f"LLM Proxy, {NAMES[kind]}", loads, process=served.proxies[0].process)))
    return found


def measure_in_turn(
    bench: Bench, part: str, upstream: Upstream, subjects: Sequence[Costed], connections: int, requests: int
) -> None:
    """Warm all subjects up, then take one sample of each in every round. Raises LoadFailed."""
    for subject in subjects:
        subject.measure(upstream, connections, max(connections, int(requests * _WARM_UP)))
    upstream.reset()
    for number in range(1, bench.rounds + 1):
        for subject in subjects:
            sample = subject.measure(upstream, connections, requests)
            subject.samples.append(sample)
            told = f"{sample.cpu_us:.0f} µs, p50 {sample.ms('p50')} ms, {sample.rate:,.0f} requests/s"
            bench.say(f"{part}, round {number}: {subject.name}: {told}")


def run(bench: Bench, plan: Plan | None = None) -> list[Chapter]:
    """Measure all subjects in turn. Raises LoadFailed and ProcessFailed."""
    plan = plan or Plan()
    requests = plan.requests or bench.scaled(_REQUESTS, plan.connections)
    with Rig(bench, "cpu") as rig:
        upstream = rig.start_upstream()
        url, process = start_hypercorn(rig, "benchmarks.hello:app")
        references = [Costed(REFERENCE, [(*GET, "--url", f"{url}/")], process=process), start_own_server(rig)]
        proxies = start_proxies(rig, upstream, *(("--stream",) if plan.streamed else ()))
        subjects = [*references, *(subject for _, subject in proxies)]
        measure_in_turn(bench, "cpu", upstream, subjects, plan.connections, requests)
        problems = check_upstream(upstream, (sample for _, subject in proxies for sample in subject.samples))
        for served, subject in proxies:
            problems += [*bottlenecks(subject), *served.verify_ledger()]
    reference = references[0].values("cpu_us")
    ratios = {subject.name: ratio(subject.values("cpu_us"), reference) for subject in subjects}
    checks = [
        at_most(
            f"CPU per request over bare Hypercorn, {NAMES[served.kind]}, {plan.connections} connections",
            ratios[subject.name],
            CPU_RATIO[served.kind],
            "x",
        )
        for served, subject in proxies
    ]
    return [
        Chapter(
            title="CPU time per request",
            method=_describe(plan, bench.rounds, requests),
            tables=[_tabulate(subjects, ratios)],
            plots=[_plot(ratios, bench.kinds)],
            checks=checks,
            problems=problems,
            raw={
                "plan": {**attrs.asdict(plan), "requests": requests},
                "samples": {subject.name: list(map(attrs.asdict, subject.samples)) for subject in subjects},
            },
        )
    ]


def _describe(plan: Plan, rounds: int, requests: int) -> str:
    answer = "streamed chat completions" if plan.streamed else "chat completions"
    return (
        f"Each subject gets {requests:,} requests in each round ({rounds} of them), on {plan.connections} connections "
        f"that are kept open. The proxy serves {answer} from the scripted upstream, as an SDK asks for them; the bare "
        "application gets a GET with few headers and answers with a few bytes. CPU time is that of all threads and "
        "children of the process, until the last request is settled; a database server's own is not in it. Each "
        "value is the median of the rounds, each ratio the median of the rounds' ratios."
    )


def _tabulate(subjects: list[Costed], ratios: Mapping[str, float]) -> Table:
    rows = [
        (
            subject.name,
            subject.median("cpu_us"),
            f"{min(subject.values('cpu_us')):.0f} to {max(subject.values('cpu_us')):.0f}",
            f"{ratios[subject.name]:.2f}",
            subject.median("rate"),
        )
        for subject in subjects
    ]
    columns = ("subject", "µs CPU per request", "lowest to highest", "ratio to the first", "requests/s")
    return Table(columns, rows)


def _plot(ratios: Mapping[str, float], kinds: Sequence[Kind]) -> Plot:
    levels = []
    for bound in sorted(set(CPU_RATIO.values())):
        names = [NAMES[kind] for kind in kinds if CPU_RATIO[kind] == bound]
        levels += [(bound, f"at most {bound:g} on {names[0] if len(names) == 1 else 'the servers'}")] if names else []
    return Plot(
        name="cpu-per-request",
        title="CPU time per request, against a bare app on stock Hypercorn",
        x="",
        y="ratio (lower is better)",
        series=[Series("ratio", list(ratios.items()))],
        kind="bars",
        levels=levels,
    )
