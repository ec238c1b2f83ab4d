"""What was measured and what follows from it, as chapters of the report."""

from __future__ import annotations

import os
from collections.abc import Sequence

import attrs

from benchmarks.bench import Bench
from benchmarks.databases import NAMES
from benchmarks.findings import Chapter, Check, Plot, Series, Table
from benchmarks.scaling.measurement import CONNECTIONS, PROCESSES, TOKENS, Contest, Load, seconds_of
from benchmarks.scaling.sizes import fleets, hot_tokens
from benchmarks.targets import MODEL_ERROR

#: Columns: the parameters of a database, and what else its replicas take.
PARAMETERS = (
    *("database", "proxy, µs a transaction", "and a request", "database, µs a transaction", "and a request"),
    *("ms a transaction", "and a request", "sharing, of the connections", "cores in use", "connections of a process"),
)


def _predictions(contest: Contest) -> list[tuple[Load, float, float]]:
    """Return what was not measured for the model: each load, what the model says of it, and what was measured."""
    found = contest.parameters
    many, one = Load(PROCESSES, CONNECTIONS), Load(PROCESSES, CONNECTIONS, one_token=True)
    machine = found.on_one_machine(os.cpu_count() or 1, CONNECTIONS, PROCESSES)
    row = min(machine, found.on_one_token(CONNECTIONS, PROCESSES))
    return [(many, machine, contest.runs[many].median("rate")), (one, row, contest.runs[one].median("rate"))]


def tell(bench: Bench, contests: Sequence[Contest]) -> Chapter:
    """Write what was measured, the parameters that it gives, and what the model makes of them."""
    checks = [
        Check(
            f"What the model says of {load.name} is off by, {NAMES[contest.kind]}",
            max(said, measured) / min(said, measured) - 1,
            MODEL_ERROR,
            at_most=True,
            unit="of it",
        )
        for contest in contests
        for load, said, measured in _predictions(contest)
    ]
    return Chapter(
        title="Many processes on one database",
        method=(
            f"Each load lasts {seconds_of(bench):g} s in each round ({bench.rounds} of them); the loads take turns, "
            f"and a figure is the median of its rounds. Processes are workers of one server. Many tokens are {TOKENS}, "
            f"used in turn. CPU time is that of all processes of the proxy, of the database server, and of the load "
            f"generator with the provider. What one and two processes cost gives the parameters of the model, and the "
            f"model says what eight do here, where all of them share {os.cpu_count()} cores with everybody else."
        ),
        tables=[_table_of_loads(contests), _table_of_parameters(contests), _table_of_predictions(contests)],
        plots=[
            Plot(
                name="scaling",
                title="Cost of a request, by how many share a transaction",
                x="requests in a transaction",
                y="µs of CPU time per request, proxy and database",
                series=[
                    Series(
                        NAMES[contest.kind],
                        sorted((run.median("n"), run.median("proxy_us") + run.median("database_us")) for run in single),
                    )
                    for contest in contests
                    for single in [[run for load, run in contest.runs.items() if load.processes == 1]]
                ],
                log_x=True,
                log_y=True,
            )
        ],
        checks=checks,
        problems=[problem for contest in contests for problem in contest.problems],
        raw={
            str(contest.kind): {
                "parameters": attrs.asdict(contest.parameters),
                "readings": {load.name: list(map(attrs.asdict, run.readings)) for load, run in contest.runs.items()},
            }
            for contest in contests
        },
    )


def _table_of_loads(contests: Sequence[Contest]) -> Table:
    figures = ("rate", "n", "seconds", "commits", "proxy_us", "database_us", "others_us")
    rows: list[Sequence[str | float]] = []
    for contest in contests:
        for load, each in contest.runs.items():
            rate, n, seconds, *others = map(each.median, figures)
            rows.append((NAMES[contest.kind], load.name, rate, n, seconds * 1000, *others))
    columns = (
        *("database", "load", "requests/s", "requests in a transaction", "ms a transaction", "transactions/s"),
        *("µs per request: proxy", "database", "load and provider"),
    )
    return Table(columns, rows)


def _table_of_parameters(contests: Sequence[Contest]) -> Table:
    rows = []
    for contest in contests:
        found = contest.parameters
        rows.append(
            (
                NAMES[contest.kind],
                *(found.proxy.fixed, found.proxy.each, found.database.fixed, found.database.each),
                *(found.seconds.fixed * 1000, found.seconds.each * 1000, found.shared, found.busy),
                contest.connections / PROCESSES,
            )
        )
    return Table(PARAMETERS, rows)


def _table_of_predictions(contests: Sequence[Contest]) -> Table:
    rows = [
        (NAMES[contest.kind], load.name, said, measured, f"{measured / said:.2f}")
        for contest in contests
        for load, said, measured in _predictions(contest)
    ]
    return Table(("database", "load", "the model, requests/s", "measured", "measured over the model"), rows)


def size(contests: Sequence[Contest]) -> Chapter:
    """Write what fleets of several sizes take, by the model."""
    found = {NAMES[contest.kind]: contest.parameters for contest in contests}
    return Chapter(
        title="Sizes of fleets",
        method=(
            "Worked out by the model from the parameters above, for cores like those of this machine, and short "
            "answers of one kind. The first table has the cores that are busy where the load is spread over the "
            "replicas and over many tokens; the second has one token that all replicas serve, whose transactions "
            "take turns."
        ),
        tables=[fleets(found), hot_tokens(found)],
    )
