"""Common to all parts: load generators, an upstream, a proxy on a database, and the check of its ledger."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
from attrs import Factory, define, frozen

from benchmarks.databases import NAMES, Databases, Kind
from benchmarks.findings import write_number
from benchmarks.load import BUSY
from benchmarks.processes import ROOT, Stoppable, Upstream
from benchmarks.proxy import Proxy
from db.dsn import parse
from db.dsn.target import Target

#: The key that the upstream accepts and the proxy must put in place of the token.
KEY = "sk-upstream-real-key"
CHAT = "/v1/chat/completions"
#: A limit that is counted at each request, and never reached.
ENOUGH = 1_000_000_000


@frozen
class Bench:
    """The input of a part.

    Attributes:
        directory: for files of the run: databases, logs.
        databases: starts database servers, and makes databases that are dropped at the end.
        kinds: the databases to measure on.
        rounds: number of measurements of each subject; subjects are interleaved.
        scale: factor for numbers of requests and seconds; 1.0 for results to publish, less for a quick run.
        say: prints progress.
    """

    directory: Path
    databases: Databases
    kinds: Sequence[Kind]
    rounds: int
    scale: float
    say: Callable[[str], None]

    def scaled(self, number: int, least: int = 1) -> int:
        """Return a number at the scale of this run."""
        return max(least, round(number * self.scale))


class LoadFailed(Exception):
    """The load had errors, so that its results are useless."""


def generate_load(options: Sequence[str]) -> dict[str, Any]:
    """Run the load generator in its own process and return its report; raises LoadFailed on any error."""
    command = [sys.executable, "-m", "benchmarks.load", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)  # noqa: S603 - our own program
    if not done.stdout:
        raise LoadFailed(done.stderr.decode(errors="replace"))
    report: dict[str, Any] = msgspec.json.decode(done.stdout)
    if report["errors"]:
        # The message is written to a report, so it must not contain the token.
        said = (word for before, word in zip(("", *options), options, strict=False) if before != "--token")
        raise LoadFailed(f"{' '.join(said)}: {report['errors']}")
    return report


@frozen
class Sample:
    """The result of one load on one subject.

    Attributes:
        reports: of the load generators, one for each address.
        cpu_us: CPU time that the subject spent, in microseconds per request.
        upstream_share: how much of a core the upstream used.
    """

    reports: Sequence[dict[str, Any]]
    cpu_us: float = 0.0
    upstream_share: float = 0.0

    @property
    def requests(self) -> int:
        """How many were answered."""
        return sum(report["requests"] for report in self.reports)

    @property
    def rate(self) -> float:
        """Requests per second."""
        return sum(float(report["rate"]) for report in self.reports)

    @property
    def generator_share(self) -> float:
        """How much of a core the busiest generator used."""
        return max(float(report["cpu_share"]) for report in self.reports)

    @property
    def behind(self) -> bool:
        """Whether a generator could not keep the schedule of its open loop."""
        return any(report.get("behind") for report in self.reports)

    def ms(self, percentile: str, key: str = "latency_ms") -> float:
        """Return a percentile of the only generator's latencies, such as "p99", in milliseconds."""
        (report,) = self.reports
        return float(report[key][percentile])


@define
class Subject:
    """A target of load.

    Attributes:
        loads: the generator's options, for each address.
        samples: one for each round.
    """

    name: str
    loads: Sequence[tuple[str, ...]]
    samples: list[Sample] = Factory(list)

    def values(self, name: str) -> list[float]:
        """Return one value of all rounds, by the name of the sample's attribute."""
        return [float(getattr(sample, name)) for sample in self.samples]

    def median(self, name: str) -> float:
        """Return the median of one value over the rounds."""
        return statistics.median(self.values(name))

    def lowest_to_highest(self, name: str) -> str:
        """Return the range of one value over the rounds, as text."""
        return f"{write_number(min(self.values(name)))} to {write_number(max(self.values(name)))}"

    def measure_round(self, upstream: Upstream, *options: str) -> Sample:
        """Put load on all addresses at the same time, and keep the sample. Raises LoadFailed."""
        sample = put_load(self, upstream, *options)
        self.samples.append(sample)
        return sample


def put_load(subject: Subject, upstream: Upstream, *options: str) -> Sample:
    """Put load on all addresses of a subject at the same time. Raises LoadFailed."""
    before = upstream.process.cpu_seconds()
    with ThreadPoolExecutor(len(subject.loads)) as pool:
        reports = list(pool.map(lambda load: generate_load([*load, *options]), subject.loads))
    spent = upstream.process.cpu_seconds() - before
    return Sample(reports, upstream_share=spent / max(float(report["seconds"]) for report in reports))


def bottlenecks(subject: Subject) -> list[str]:
    """Return which other processes were the bottleneck, by the median of the rounds."""
    shares = {"load generator": subject.median("generator_share"), "upstream": subject.median("upstream_share")}
    found = [
        f"{subject.name}: the {name} was the bottleneck, with {share:.0%} of a core"
        for name, share in shares.items()
        if share > BUSY
    ]
    if subject.median("behind"):
        found.append(f"{subject.name}: the load generator was the bottleneck: it could not keep its schedule")
    return found


@define
class Served:
    """A proxy on its own database; several instances share that database.

    Attributes:
        kind: of database.
        proxies: the instances.
        token: accepted by all of them.
    """

    kind: Kind
    proxies: list[Proxy]
    token: str

    def loads(self, *options: str) -> list[tuple[str, ...]]:
        """Return the load generator's options for a chat completion, for each instance."""
        return [("--url", proxy.url + CHAT, "--token", self.token, *options) for proxy in self.proxies]

    def spread(self, tokens: Sequence[str], path: Path, *options: str) -> list[tuple[str, ...]]:
        """Return the same for requests with each of these tokens in turn, which are written to a file for it."""
        path.write_text("".join(f"{token}\n" for token in tokens))
        return [("--url", proxy.url + CHAT, "--tokens", str(path), *options) for proxy in self.proxies]

    @property
    def target(self) -> Target:
        """Where the database is."""
        env = self.proxies[0].env
        return parse(env["DB_DRIVER"], env.get("DATABASE_URL", ""), env["DATABASE_PATH"])

    def verify_ledger(self) -> list[str]:
        """Stop all instances, run `ledger verify`, and return the problems."""
        name = NAMES[self.kind]
        ends = [proxy.stop() for proxy in self.proxies]
        problems = [f"{name}: the server ended with status {status}" for status in ends if status]
        if self.proxies[0].run_command("ledger", "verify", timeout=300):
            problems.append(f"{name}: `llm-proxy ledger verify` found a difference, or failed")
        return problems


@define
class Rig(Stoppable):
    """The upstream and proxies of one part; the end of its `with` block stops them and drops the databases."""

    bench: Bench
    part: str
    stack: ExitStack = Factory(ExitStack)

    @property
    def directory(self) -> Path:
        """The folder of this part."""
        folder = self.bench.directory / self.part
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def start_upstream(self, *options: str) -> Upstream:
        """Start an upstream that accepts `KEY` and remembers nothing but counts."""
        more = options if "--answers" in options else ("--answers", "plain", *options)
        upstream = Upstream.start("--key", KEY, "--keep", "0", *more, stderr=self.directory / "upstream.err")
        return self.stack.enter_context(upstream)

    def serve(
        self,
        kind: Kind,
        upstream: Upstream,
        *,
        workers: int = 1,
        instances: int = 1,
        name: str = "",
        settings: Mapping[str, str] | None = None,
        under: Sequence[str] = (),
    ) -> Served:
        """Start a proxy with everything on, and give it a project and a token with a limit.

        Several on one kind of database have a `name` each. `settings` are further ones, `under` is as for `Proxy`.
        """
        database = self.stack.enter_context(self.bench.databases.empty(kind))
        env = {**database.env, "WORKERS": str(workers), **(settings or {})}
        proxies: list[Proxy] = []
        for number in range(1, instances + 1):
            folder = self.directory / (name or f"{kind}-{workers}-workers-{number}-of-{instances}")
            folder.mkdir(parents=True, exist_ok=True)
            proxy = self.stack.enter_context(Proxy.start(upstream.url, folder, env, under=under))
            # The others must read the same secrets.
            env |= {name: proxy.env[name] for name in ("ENCRYPTION_KEY", "MANAGEMENT_TOKEN")}
            proxies.append(proxy)
        token = proxies[0].create_token(proxies[0].create_project(KEY), max_requests=ENOUGH)["token"]
        return Served(kind, proxies, token)

    def stop(self) -> None:
        """Stop everything, the last first."""
        self.stack.close()


def check_upstream(upstream: Upstream, samples: Iterable[Sample]) -> list[str]:
    """Return a problem if the upstream's count of requests differs from the load's."""
    served, sent = upstream.counts()["requests"], sum(sample.requests for sample in samples)
    return [] if served == sent else [f"the upstream served {served} requests of {sent}"]
