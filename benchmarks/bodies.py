"""What bodies cost: from 1 KB to 10 MB, in requests alone and both ways, through the proxy and without it."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import msgspec
from attrs import frozen

from benchmarks.cpu import Costed
from benchmarks.databases import NAMES, Kind
from benchmarks.findings import Chapter, Plot, Series, Table
from benchmarks.load import CHAT as BODY
from benchmarks.rig import CHAT, KEY, Bench, Rig, Served, bottlenecks, put_load

_KB = 1000
_MB = 1_000_000
_ECHO = ("--header", "x-scripted-echo: 1")
_COLUMNS = ("long", "body", "", "requests/s", "MB/s", "CPU ms per request", "CPU ms per MB")
_WORDS = "The quick brown fox jumps over the lazy dog. "


@frozen
class Plan:
    """How much is sent.

    Attributes:
        rounds: of all.
        sizes: of the bodies, in bytes.
        volume: bytes of request bodies, of each subject and round; no more than `most` requests, and no less than
            `connections`.
        most: requests of each subject and round.
        connections: that they go over.
    """

    rounds: int
    sizes: Sequence[int] = (_KB, 100 * _KB, _MB, 10 * _MB)
    volume: int = 40 * _MB
    most: int = 500
    connections: int = 4

    @classmethod
    def at_scale(cls, bench: Bench) -> Plan:
        """Return the plan for this run."""
        if bench.scale >= 1:
            return cls(min(bench.rounds, 3))
        return cls(1, sizes=(_KB, 10 * _MB), volume=bench.scaled(40 * _MB))

    def requests(self, size: int) -> int:
        """Return how many requests with bodies of this size make one sample."""
        return max(self.connections, min(self.most, self.volume // size))


@frozen
class _Entry:
    """One size of bodies, one way, to one subject. `ways` is 2 if the answer has the same bytes as the request."""

    size: int
    ways: int
    subject: Costed

    @property
    def moved(self) -> float:
        """MB in each request's bodies and its answer's."""
        return self.size * self.ways / _MB

    def row(self) -> list[str | float]:
        rate = self.subject.median("rate")
        cost = self.subject.median("cpu_us") / 1000
        way = "request" if self.ways == 1 else "request and answer"
        return [way, f"{self.size / _KB:,.0f} KB", self.subject.name, rate, rate * self.moved, cost, cost / self.moved]


def body(size: int) -> bytes:
    """Return a chat completion's request of about that many bytes."""
    text = _WORDS * (size // len(_WORDS) + 1)
    return msgspec.json.encode(BODY | {"messages": [{"role": "user", "content": text[: max(0, size - 120)]}]})


def measure(bench: Bench, plan: Plan) -> Chapter:
    """Measure on one database. Raises LoadFailed and ProcessFailed."""
    kind = Kind.SQLITE if Kind.SQLITE in bench.kinds else bench.kinds[0]
    with Rig(bench, "bodies") as rig:
        upstream = rig.start_upstream()
        served = rig.serve(kind, upstream)
        proxy = served.proxies[0]
        direct = ("--url", upstream.url + CHAT, "--token", KEY)
        entries = []
        for size in plan.sizes:
            path = rig.directory / f"{size}.json"
            path.write_bytes(body(size))
            for ways, more in ((1, ()), (2, _ECHO)):
                options = ("--body", str(path), *more)
                through = Costed(f"LLM Proxy, {NAMES[kind]}", served.loads(*options), process=proxy.process)
                without = Costed("upstream, called directly", [(*direct, *options)], process=upstream.process)
                entries += [_Entry(size, ways, subject) for subject in (through, without)]
        for entry in entries:
            put_load(entry.subject, upstream, "--connections", "1", "--requests", "2")
        for number in range(1, plan.rounds + 1):
            for entry in entries:
                sample = entry.subject.measure(upstream, plan.connections, plan.requests(entry.size))
                entry.subject.samples.append(sample)
            bench.say(f"growth, round {number}: bodies of up to {plan.sizes[-1] / _MB:g} MB")
        problems = _problems(entries, served)
    return _tell(plan, entries, problems)


def _problems(entries: Sequence[_Entry], served: Served) -> list[str]:
    found = []
    for entry in entries:
        # If the upstream is called directly, it is the subject and may be the bottleneck.
        if entry.subject.process is served.proxies[0].process:
            found += [f"{entry.size:,} bytes: {words}" for words in bottlenecks(entry.subject)]
    return [*found, *served.verify_ledger()]


def _tell(plan: Plan, entries: Sequence[_Entry], problems: Sequence[str]) -> Chapter:
    lines = {
        (entry.subject.name, entry.ways): Series(
            f"{entry.subject.name}, {'request' if entry.ways == 1 else 'both ways'}",
            [
                (other.size / _KB, other.subject.median("rate") * other.moved)
                for other in entries
                if (other.subject.name, other.ways) == (entry.subject.name, entry.ways)
            ],
        )
        for entry in entries
    }
    return Chapter(
        title="Growth of the bodies",
        method=(
            f"{plan.rounds} interleaved rounds on {plan.connections} connections. A request is a chat completion with "
            f"a long message; its answer is short, or has the very bytes of the request, as JSON that is read for its "
            f"usage like any other. MB are those of request and answer together. CPU time is the proxy's; if the "
            f"upstream is called directly, the upstream's."
        ),
        tables=[Table(_COLUMNS, [entry.row() for entry in entries])],
        plots=[
            Plot(
                name="growth-bodies",
                title="MB per second as bodies grow",
                x="KB",
                y="MB/s",
                series=list(lines.values()),
                log_x=True,
                log_y=True,
            )
        ],
        problems=problems,
        raw={
            "plan": attrs.asdict(plan),
            "samples": [
                {"size": entry.size, "ways": entry.ways, "subject": entry.subject.name, "sample": attrs.asdict(sample)}
                for entry in entries
                for sample in entry.subject.samples
            ],
        },
    )
