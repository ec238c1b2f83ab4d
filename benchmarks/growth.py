"""What a request costs as things grow: rows in the ledger, tokens, connections, bodies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
from attrs import Factory, define, frozen

from benchmarks import bodies
from benchmarks.cpu import Costed
from benchmarks.databases import NAMES, Kind
from benchmarks.fill import Filled, Past, fill
from benchmarks.findings import Chapter, Check, Plot, Series, Table, at_least, at_most, ratio
from benchmarks.processes import Upstream
from benchmarks.proxy import Proxy
from benchmarks.rig import KEY, Bench, Rig, Served, bottlenecks, check_upstream, put_load
from benchmarks.targets import HOT_TOKEN, MANY_CONNECTIONS, MANY_ROWS


@frozen
class Plan:
    """How much is measured.

    Attributes:
        rounds: of each question.
        requests: of each subject in one round.
        rows: in the ledger of each database of the first question, ascending.
        owners: tokens of those rows and of the load.
        few_tokens, many_tokens: in the databases of the second question.
        spread: tokens of a load on many tokens.
        connections: of the third question; the last is compared with `usual`.
        each: minimum of requests on each connection, so that opening them does not dominate.
        usual: the connections of the other questions.
    """

    rounds: int
    requests: int = 4000
    rows: Sequence[int] = (1000, 100_000, 1_000_000)
    owners: int = 500
    few_tokens: int = 10
    many_tokens: int = 100_000
    spread: int = 1000
    connections: Sequence[int] = (1, 32, 128, 512)
    each: int = 25
    usual: int = 32

    @classmethod
    def at_scale(cls, bench: Bench) -> Plan:
        """Return the plan for this run. Less than 100 times as many rows would prove nothing."""
        if bench.scale >= 1:
            return cls(bench.rounds)
        return cls(
            min(bench.rounds, 3),
            requests=bench.scaled(2500, 1000),
            rows=(1000, bench.scaled(1_000_000, 100_000)),
            many_tokens=bench.scaled(100_000, 10_000),
            connections=(32, 512),
            each=12,
        )


@frozen
class Entry:
    """A subject and its load in each round. `grown` is the value that grows."""

    subject: Costed
    grown: int
    connections: int
    requests: int


@define
class Contest:
    """Interleaved subjects on one database."""

    kind: Kind
    entries: list[Entry]
    problems: list[str] = Factory(list)

    def ratio(self, value: str, ours: int = -1, theirs: int = 0) -> float:
        """Return the ratio of a value of two entries, by index."""
        return ratio(self.entries[ours].subject.values(value), self.entries[theirs].subject.values(value))

    def rows(self) -> list[list[str | float]]:
        """Return the table's rows: medians."""
        return [
            [NAMES[self.kind], entry.subject.name, *map(entry.subject.median, ("rate", "cpu_us"))]
            for entry in self.entries
        ]


def run(bench: Bench, plan: Plan | None = None, sizes: bodies.Plan | None = None) -> list[Chapter]:
    """Measure all questions on all databases; bodies on one, because they do not reach the database."""
    plan = plan or Plan.at_scale(bench)
    return [
        _tell_rows(plan, [_grow_rows(bench, kind, plan) for kind in bench.kinds]),
        _tell_tokens(plan, [_grow_tokens(bench, kind, plan) for kind in bench.kinds]),
        _tell_connections(plan, [_grow_connections(bench, kind, plan) for kind in bench.kinds]),
        bodies.measure(bench, sizes or bodies.Plan.at_scale(bench)),
    ]


def _filled(rig: Rig, kind: Kind, past: Past) -> Filled:
    rig.bench.say(f"growth: {NAMES[kind]}: filling in {past.tokens:,} tokens and {past.requests:,} requests")
    return fill(rig.stack.enter_context(rig.bench.databases.migrated(kind)), past, KEY)


def _serve(rig: Rig, filled: Filled, upstream: Upstream, name: str) -> Served:
    """Start a proxy on a database that was filled."""
    folder = rig.directory / f"{filled.scratch.kind}-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    env = {**filled.scratch.env, "ENCRYPTION_KEY": filled.encryption_key}
    proxy = rig.stack.enter_context(Proxy.start(upstream.url, folder, env))
    return Served(filled.scratch.kind, [proxy], filled.secrets[0])


def _take_turns(rig: Rig, upstream: Upstream, plan: Plan, contest: Contest) -> None:
    for entry in contest.entries:
        requests = max(entry.connections, entry.requests // 5)
        put_load(entry.subject, upstream, "--connections", str(entry.connections), "--requests", str(requests))
    upstream.reset()
    for number in range(1, plan.rounds + 1):
        for entry in contest.entries:
            sample = entry.subject.measure(upstream, entry.connections, entry.requests)
            entry.subject.samples.append(sample)
            rig.bench.say(
                f"growth, round {number}: {NAMES[contest.kind]}, {entry.subject.name}: "
                f"{sample.rate:,.0f} requests/s, {sample.cpu_us:.0f} µs/request"
            )
    samples = (sample for entry in contest.entries for sample in entry.subject.samples)
    contest.problems += check_upstream(upstream, samples)
    for entry in contest.entries:
        contest.problems += bottlenecks(entry.subject)


def _grow_rows(bench: Bench, kind: Kind, plan: Plan) -> Contest:
    with Rig(bench, "growth-rows") as rig:
        upstream = rig.start_upstream()
        all_served = []
        entries = []
        for rows in plan.rows:
            filled = _filled(rig, kind, Past(plan.owners, rows))
            served = _serve(rig, filled, upstream, f"{rows}-rows")
            loads = served.spread(filled.secrets, rig.directory / f"{kind}-{rows}-tokens")
            subject = Costed(f"{rows:,} rows", loads, process=served.proxies[0].process)
            entries.append(Entry(subject, rows, plan.usual, plan.requests))
            all_served.append(served)
        contest = Contest(kind, entries)
        _take_turns(rig, upstream, plan, contest)
        for served in all_served:
            contest.problems += served.verify_ledger()
    return contest


def _grow_tokens(bench: Bench, kind: Kind, plan: Plan) -> Contest:
    with Rig(bench, "growth-tokens") as rig:
        upstream = rig.start_upstream()
        few = _filled(rig, kind, Past(plan.few_tokens, 0))
        many = _filled(rig, kind, Past(plan.many_tokens, 0))
        small = _serve(rig, few, upstream, "few-tokens")
        large = _serve(rig, many, upstream, "many-tokens")
        spread = large.spread(many.secrets[: plan.spread], rig.directory / f"{kind}-tokens")
        loads = (
            (small, few, f"{plan.few_tokens:,} exist, load on one", small.loads()),
            (large, many, f"{plan.many_tokens:,} exist, load on {plan.spread:,}", spread),
            (large, many, f"{plan.many_tokens:,} exist, load on one", large.loads()),
        )
        entries = [
            Entry(Costed(name, load, process=served.proxies[0].process), len(filled.secrets), plan.usual, plan.requests)
            for served, filled, name, load in loads
        ]
        contest = Contest(kind, entries)
        _take_turns(rig, upstream, plan, contest)
        contest.problems += [*small.verify_ledger(), *large.verify_ledger()]
    return contest


def _grow_connections(bench: Bench, kind: Kind, plan: Plan) -> Contest:
    with Rig(bench, "growth-connections") as rig:
        upstream = rig.start_upstream()
        served = rig.serve(kind, upstream)
        entries = []
        for number in plan.connections:
            subject = Costed(f"{number} connections", served.loads(), process=served.proxies[0].process)
            # One connection waits for each commit and is slow; many are expensive to open.
            requests = max(plan.requests if number > 1 else plan.requests // 5, plan.each * number)
            entries.append(Entry(subject, number, number, requests))
        contest = Contest(kind, entries)
        _take_turns(rig, upstream, plan, contest)
        contest.problems += served.verify_ledger()
    return contest


_COLUMNS = ("database", "", "requests/s", "CPU µs per request")


def _chapter(
    contests: Sequence[Contest], title: str, method: str, plot: Plot, check: Callable[[Contest], Check]
) -> Chapter:
    return Chapter(
        title=title,
        method=method,
        tables=[Table(_COLUMNS, [row for contest in contests for row in contest.rows()])],
        plots=[plot],
        checks=[check(contest) for contest in contests],
        problems=[problem for contest in contests for problem in contest.problems],
        raw={str(contest.kind): _raw(contest) for contest in contests},
    )


def _raw(contest: Contest) -> dict[str, Any]:
    return {entry.subject.name: list(map(attrs.asdict, entry.subject.samples)) for entry in contest.entries}


def _lines(contests: Sequence[Contest], figure: str) -> list[Series]:
    return [
        Series(NAMES[contest.kind], [(entry.grown, entry.subject.median(figure)) for entry in contest.entries])
        for contest in contests
    ]


def _tell_rows(plan: Plan, contests: Sequence[Contest]) -> Chapter:
    fewest, most = plan.rows[0], plan.rows[-1]
    return _chapter(
        contests,
        title="Growth of the ledger",
        method=(
            f"Proxies on databases with different numbers of ledger rows take turns for {plan.rounds} rounds of "
            f"{plan.requests:,} requests on {plan.usual} connections. The rows belong to {plan.owners} tokens, and "
            f"load goes to all of these in turn, so that new rows go to as many places of the indices."
        ),
        plot=Plot(
            name="growth-rows",
            title="Requests per second as the ledger grows",
            x="ledger rows",
            y="requests/s",
            series=_lines(contests, "rate"),
            log_x=True,
        ),
        check=lambda contest: at_least(
            f"Requests/s with {most:,} ledger rows over those with {fewest:,}, {NAMES[contest.kind]}",
            contest.ratio("rate"),
            MANY_ROWS,
            "x",
        ),
    )


def _tell_tokens(plan: Plan, contests: Sequence[Contest]) -> Chapter:
    names = [entry.subject.name for entry in contests[0].entries]
    return _chapter(
        contests,
        title="Growth of the tokens",
        method=(
            f"{plan.rounds} interleaved rounds of {plan.requests:,} requests on {plan.usual} connections. Every token "
            f"has a request limit that is counted. Load on many goes to each of them in turn."
        ),
        plot=Plot(
            name="growth-tokens",
            title="Requests per second, one hot token and many",
            x="",
            y="requests/s",
            series=[
                Series(
                    NAMES[contest.kind],
                    [(name, entry.subject.median("rate")) for name, entry in zip(names, contest.entries, strict=True)],
                )
                for contest in contests
            ],
            kind="bars",
        ),
        check=lambda contest: at_least(
            f"Requests/s on one hot token over those on {plan.spread:,}, {NAMES[contest.kind]}",
            contest.ratio("rate", ours=-1, theirs=-2),
            HOT_TOKEN,
            "x",
        ),
    )


def _tell_connections(plan: Plan, contests: Sequence[Contest]) -> Chapter:
    most = plan.connections[-1]
    return _chapter(
        contests,
        title="Growth of the connections",
        method=(
            f"{plan.rounds} interleaved rounds of {plan.requests:,} requests on each number of connections, or "
            f"{plan.each} on each connection if that is more; of a fifth on one connection. Opening and closing the "
            f"connections is included."
        ),
        plot=Plot(
            name="growth-connections",
            title="CPU time per request as connections grow",
            x="connections",
            y="µs",
            series=_lines(contests, "cpu_us"),
            log_x=True,
        ),
        check=lambda contest: at_most(
            f"CPU per request at {most} connections over that at {plan.usual}, {NAMES[contest.kind]}",
            contest.ratio("cpu_us", theirs=list(plan.connections).index(plan.usual)),
            MANY_CONNECTIONS,
            "x",
        ),
    )
