"""CPU time per request of the whole proxy, as a ratio to a bare ASGI application on stock Hypercorn.

The proxy is the real server process with everything on: durable ledger, exact request limit, usage metering, metrics,
a log line per request. It gets what an SDK sends; Hypercorn gets the cheapest request there is. Rounds are
interleaved, so that a slower or busier machine slows all alike; each subject's figure is the median of its rounds,
and the ratio the median of the rounds' ratios. Time of all threads and child processes counts, also what is spent
after the last answer (settlement); the time of a database server does not.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import attrs
from attrs import define, frozen

from benchmarks.bench import Bench
from benchmarks.databases import NAMES, Kind
from benchmarks.findings import Chapter, Check, Plot, Series, Table, ratio
from benchmarks.processes import Process, Upstream
from benchmarks.proxy import call, free_port
from benchmarks.rig import Rig, Sample, Served, Subject, bottlenecks, check_upstream, put_load
from benchmarks.targets import CPU_RATIO

#: Seconds for settlements to be written before the CPU time is read.
SETTLE = 0.5
_REQUESTS = 5000
_WARM_UP = 0.1
_REFERENCE = "bare app, stock Hypercorn"
_GET = ("--method", "GET", "--few-headers")


@frozen
class Plan:
    """How each subject is loaded. `requests` are those of one subject in one round, whatever the scale."""

    connections: int = 32
    requests: int | None = None
    answers: str = "plain"
    streamed: bool = False
    bounds: Mapping[Kind, float] = CPU_RATIO


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


def start_hypercorn(rig: Rig) -> Costed:
    """Start the bare application on stock Hypercorn, one trio worker."""
    address = f"127.0.0.1:{free_port()}"
    arguments = ("-k", "trio", "-w", "1", "-b", address, "benchmarks.hello:app")
    process = rig.stack.enter_context(
        Process.start_python("hypercorn", *arguments, stderr=rig.directory / "hypercorn.err"),
    )
    url = f"http://{address}/"
    deadline = time.monotonic() + 20
    while True:
        try:
            call("GET", url)
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    return Costed(_REFERENCE, [(*_GET, "--url", url)], process=process)


def start_own_server(rig: Rig) -> Costed:
    """Start the bare application on the proxy's own server."""
    process = rig.stack.enter_context(Process.start_python("benchmarks.hello", stderr=rig.directory / "hello.err"))
    url = process.read_json()["url"] + "/"
    return Costed("bare app, the proxy's own server", [(*_GET, "--url", url)], process=process)


def _start_proxies(rig: Rig, upstream: Upstream, plan: Plan) -> list[tuple[Served, Costed]]:
    found = []
    for kind in rig.bench.kinds:
        served = rig.serve(kind, upstream)
        loads = served.loads(*(("--stream",) if plan.streamed else ()))
        found.append((served, Costed(f"LLM Proxy, {NAMES[kind]}", loads, process=served.proxies[0].process)))
    return found


def run(bench: Bench, plan: Plan | None = None) -> list[Chapter]:
    """Measure all subjects in turn. Raises LoadFailed and ProcessFailed."""
    plan = plan or Plan()
    requests = plan.requests or bench.scaled(_REQUESTS, plan.connections)
    with Rig(bench, "cpu") as rig:
        upstream = rig.start_upstream("--answers", plan.answers)
        references = [start_hypercorn(rig), start_own_server(rig)]
        proxies = _start_proxies(rig, upstream, plan)
        subjects = [*references, *(subject for _, subject in proxies)]
        for subject in subjects:
            subject.measure(upstream, plan.connections, max(plan.connections, int(requests * _WARM_UP)))
        upstream.reset()
        for number in range(1, bench.rounds + 1):
            for subject in subjects:
                sample = subject.measure(upstream, plan.connections, requests)
                subject.samples.append(sample)
                figures = f"{sample.cpu_us:.0f} µs/request, {sample.rate:,.0f} requests/s"
                bench.say(f"cpu, round {number}: {subject.name}: {figures}")
        problems = check_upstream(upstream, (sample for _, subject in proxies for sample in subject.samples))
        for served, subject in proxies:
            problems += [*bottlenecks(subject), *served.check_books()]
    reference = references[0].figures("cpu_us")
    ratios = {subject.name: ratio(subject.figures("cpu_us"), reference) for subject in subjects}
    checks = [
        Check(
            f"CPU per request over bare Hypercorn, {NAMES[served.kind]}, {plan.connections} connections",
            ratios[subject.name],
            plan.bounds[served.kind],
            at_most=True,
            unit="x",
        )
        for served, subject in proxies
    ]
    return [
        Chapter(
            title="CPU time per request",
            method=_describe(plan, bench.rounds, requests),
            tables=[_tabulate(subjects, ratios)],
            plots=[_plot(ratios, bench.kinds, plan)],
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
        "figure is the median of the rounds, each ratio the median of the rounds' ratios."
    )


def _tabulate(subjects: list[Costed], ratios: Mapping[str, float]) -> Table:
    rows = [
        (
            subject.name,
            subject.median("cpu_us"),
            f"{min(subject.figures('cpu_us')):.0f} to {max(subject.figures('cpu_us')):.0f}",
            f"{ratios[subject.name]:.2f}",
            subject.median("rate"),
        )
        for subject in subjects
    ]
    columns = ("subject", "µs CPU per request", "lowest to highest", "ratio to the first", "requests/s")
    return Table(columns, rows)


def _plot(ratios: Mapping[str, float], kinds: Sequence[Kind], plan: Plan) -> Plot:
    levels = []
    for bound in sorted(set(plan.bounds.values())):
        names = [NAMES[kind] for kind in kinds if plan.bounds[kind] == bound]
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
