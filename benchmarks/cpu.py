"""CPU time per request of the whole proxy, as a ratio to a bare ASGI application on stock Hypercorn.

The proxy is the real server process with everything on: durable ledger, exact request limit, usage metering, metrics,
a log line per request. It gets what an SDK sends; Hypercorn gets the cheapest request there is. Rounds are
interleaved, so that a slower or busier machine slows all alike; each subject's figure is the median of its rounds,
and the ratio the median of the rounds' ratios. Time of all threads and child processes counts, also what is spent
after the last answer (settlement); the time of a database server does not.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
from attrs import Factory, define, field, frozen

from benchmarks.processes import ROOT, Process, Upstream
from benchmarks.proxy import Proxy, call, free_port

#: The key that the upstream accepts and the proxy must put in place of the token.
KEY = "sk-upstream-real-key"
#: Seconds for settlements to be written before the CPU time is read.
SETTLE = 0.5
_WARM_UP = 0.1


@frozen
class Plan:
    """How much is measured."""

    rounds: int = 5
    connections: int = 32
    requests: int = 10_000
    answers: str = "plain"
    streamed: bool = False
    env: dict[str, str] = Factory(dict)


@frozen
class Sample:
    """One subject in one round."""

    cpu_us: float
    rate: float
    p50_ms: float
    p99_ms: float
    first_byte_p50_ms: float
    generator_busy: bool


@define
class Subject:
    """A server under load: its process, and the load's options."""

    name: str
    process: Process
    load: tuple[str, ...]
    samples: list[Sample] = field(factory=list)

    def median(self, read: Callable[[Sample], float]) -> float:
        """Return the median of one figure over the rounds."""
        return statistics.median(map(read, self.samples))


class LoadFailed(Exception):
    """The load met errors, so that its figures mean nothing."""


def generate_load(options: Sequence[str]) -> dict[str, Any]:
    """Run the load generator in its own process and return its report; raises LoadFailed on any error."""
    command = [sys.executable, "-m", "benchmarks.load", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)  # noqa: S603 - our own program
    if not done.stdout:
        raise LoadFailed(done.stderr.decode(errors="replace"))
    report: dict[str, Any] = msgspec.json.decode(done.stdout)
    if report["errors"]:
        raise LoadFailed(f"{' '.join(options)}: {report['errors']}")
    return report


def measure(subject: Subject, plan: Plan, requests: int) -> Sample:
    """Put load on a subject and return its CPU time per request."""
    before = subject.process.cpu_seconds()
    report = generate_load(
        [*subject.load, "--connections", str(plan.connections), "--requests", str(requests)],
    )
    time.sleep(SETTLE)
    spent = subject.process.cpu_seconds() - before
    return Sample(
        cpu_us=spent / report["requests"] * 1e6,
        rate=report["rate"],
        p50_ms=report["latency_ms"]["p50"],
        p99_ms=report["latency_ms"]["p99"],
        first_byte_p50_ms=report["first_byte_ms"]["p50"],
        generator_busy=report["is_bottleneck"],
    )


def start_hypercorn(stack: ExitStack, directory: Path) -> Subject:
    """Start the bare application on stock Hypercorn, one trio worker."""
    address = f"127.0.0.1:{free_port()}"
    arguments = ("-k", "trio", "-w", "1", "-b", address, "benchmarks.hello:app")
    process = stack.enter_context(
        Process.start_python("hypercorn", *arguments, stderr=directory / "hypercorn.err"),
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
    return Subject("hypercorn -k trio, bare hello", process, ("--method", "GET", "--few-headers", "--url", url))


def start_own_server(stack: ExitStack, directory: Path) -> Subject:
    """Start the bare application on the proxy's own server."""
    process = stack.enter_context(Process.start_python("benchmarks.hello", stderr=directory / "hello.err"))
    url = process.read_json()["url"] + "/"
    return Subject("own server, bare hello", process, ("--method", "GET", "--few-headers", "--url", url))


def start_proxy(stack: ExitStack, directory: Path, upstream: Upstream, plan: Plan) -> tuple[Subject, Proxy]:
    """Start the proxy, and give it a project and a token with a limit that is counted but never reached."""
    proxy = stack.enter_context(Proxy.start(upstream.url, directory, plan.env))
    project = proxy.create_project(KEY)
    token = proxy.create_token(project, max_requests=1_000_000_000)["token"]
    load = ("--url", f"{proxy.url}/v1/chat/completions", "--token", token)
    name = "llm-proxy, streamed chat completion" if plan.streamed else "llm-proxy, chat completion"
    return Subject(name, proxy.process, (*load, "--stream") if plan.streamed else load), proxy


@frozen
class Outcome:
    """What a run found. `ratio` is the proxy's CPU time per request over Hypercorn's, the median of the rounds'."""

    plan: Plan
    subjects: tuple[Subject, ...]
    ratio: float
    ratios: tuple[float, ...]
    problems: tuple[str, ...]


def run(plan: Plan, directory: Path, say: Callable[[str], None]) -> Outcome:
    """Measure; `say` is told of each sample. Raises LoadFailed and ProcessFailed."""
    problems = []
    with ExitStack() as stack:
        upstream = stack.enter_context(
            Upstream.start("--answers", plan.answers, "--key", KEY, "--keep", "0", stderr=directory / "upstream.err")
        )
        hypercorn = start_hypercorn(stack, directory)
        own = start_own_server(stack, directory)
        proxied, proxy = start_proxy(stack, directory, upstream, plan)
        subjects = (hypercorn, own, proxied)
        for subject in subjects:
            measure(subject, plan, max(plan.connections, int(plan.requests * _WARM_UP)))
        upstream.reset()
        for number in range(1, plan.rounds + 1):
            for subject in subjects:
                sample = measure(subject, plan, plan.requests)
                subject.samples.append(sample)
                say(f"round {number}: {subject.name}: {sample.cpu_us:.0f} µs/request, {sample.rate:.0f} requests/s")
                if sample.generator_busy and subject is proxied:
                    problems.append(f"round {number}: the load generator was the bottleneck")
        served, sent = upstream.counts()["requests"], plan.rounds * plan.requests
        if served != sent:
            problems.append(f"the upstream served {served} requests of {sent}")
        proxy.stop()
        if proxy.run_command("ledger", "verify") != 0:
            problems.append("`llm-proxy ledger verify` found the books out of balance, or failed")
    pairs = zip(proxied.samples, hypercorn.samples, strict=True)
    ratios = tuple(ours.cpu_us / theirs.cpu_us for ours, theirs in pairs)
    return Outcome(plan, subjects, statistics.median(ratios), ratios, tuple(problems))
