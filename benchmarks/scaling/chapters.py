"""The measurements and the results of the model, as chapters of the report."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

import attrs

from benchmarks.databases import NAMES
from benchmarks.findings import Chapter, Plot, Series, Table, at_most, write_number
from benchmarks.rig import Bench
from benchmarks.scaling.measurement import CONNECTIONS, PROCESSES, TOKENS, Contest, Load, seconds_of
from benchmarks.scaling.model import Fleet, HotToken, Parameters
from benchmarks.targets import MODEL_ERROR

#: Replicas, and requests per second of all together.
_FLEETS = ((1, 100), (2, 100), (2, 1000), (10, 100), (10, 1000), (10, 5000), (100, 1000), (100, 5000), (100, 20_000))
#: Replicas that all serve one token, and requests per second on it.
_ON_ONE_TOKEN = ((2, 100), (10, 100), (10, 500), (100, 100), (100, 500))
#: Columns: the parameters of a database, and what else its replicas take.
PARAMETERS = (
    *("database", "proxy: µs per transaction", "plus µs per request", "database: µs per transaction"),
    *("plus µs per request", "ms per transaction", "plus ms per request", "requests per transaction and connection"),
    *("part of the cores in use", "connections per process"),
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
        at_most(
            f"What the model says of {load.name} is off by, {NAMES[contest.kind]}",
            max(said, measured) / min(said, measured) - 1,
            MODEL_ERROR,
            "of it",
        )
        for contest in contests
        for load, said, measured in _predictions(contest)
    ]
    return Chapter(
        title="Many processes on one database",
        method=(
            f"Each load lasts {seconds_of(bench):g} s in each round ({bench.rounds} of them); the loads take turns, "
            f"and a value is the median of its rounds. Processes are workers of one server. Many tokens are {TOKENS}, "
            f"used in turn. CPU time is that of all processes of the proxy, of the database server, and of the load "
            f"generator with the provider. What one and two processes cost gives the parameters of the model, and the "
            f"model says what eight do here, on {os.cpu_count()} cores, together with load and database."
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
    values = ("rate", "n", "seconds", "commits", "proxy_us", "database_us", "others_us")
    rows: list[Sequence[str | float]] = []
    for contest in contests:
        for load, each in contest.runs.items():
            rate, n, seconds, *others = map(each.median, values)
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


def fleets(found: Mapping[str, Parameters]) -> Table:
    """Return the cores that are busy, of the proxies and of the database, by databases' names."""
    rows = []
    for replicas, rate in _FLEETS:
        sized = [Fleet.sized(parameters, replicas, rate) for parameters in found.values()]
        cores = [f"{write_number(one.proxy_cores)} + {write_number(one.database_cores)}" for one in sized]
        rows.append((f"{replicas:,}", f"{rate:,}", *cores))
    columns = ("replicas", "requests/s of all", *(f"cores of proxies + {name}" for name in found))
    return Table(columns, rows)


def hot_tokens(found: Mapping[str, Parameters]) -> Table:
    """Return how long a transaction takes that waits for its turn at the token's row, by databases' names."""
    rows = []
    for replicas, rate in _ON_ONE_TOKEN:
        sized = [HotToken.sized(parameters, replicas, rate) for parameters in found.values()]
        times = ["cannot be had" if math.isinf(one.n) else f"{write_number(one.seconds * 1000)} ms" for one in sized]
        rows.append((f"{replicas:,}", f"{rate:,}", *times))
    columns = ("replicas", "requests/s on the token", *(f"{name}, a transaction" for name in found))
    return Table(columns, rows)
