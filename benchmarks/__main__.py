"""`python -m benchmarks`: measure LLM Proxy on this machine.

Progress goes to stderr, tables to stdout, and everything to files. Exits with 1 when a target was missed, or when
an error makes the results unreliable.
"""

from __future__ import annotations

import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import attrs
import click
import msgspec

from benchmarks import machine, report
from benchmarks.databases import NAMES, Databases, Kind, describe, find
from benchmarks.findings import Chapter
from benchmarks.proxy import clean_environment
from benchmarks.report import Report
from benchmarks.rig import Bench

#: In the order of the report. Each is a module of that name, with `run(bench) -> list[Chapter]`.
PARTS = {
    "cpu": "CPU time per request, over that of a bare application on stock Hypercorn.",
    "lone": "One request at a time: CPU time and added latency, over a bare application on stock Hypercorn.",
    "throughput": "Capacity: requests per second with one worker, two, and two instances.",
    "sqlite": "SQLite's upper bound: commits that last or may not, a fast disk and a slow one.",
    "latency": "Added latency, over the upstream called directly.",
    "streaming": "Streams: time to the first byte, cost of a chunk, and how many are held.",
    "growth": "Cost as ledger, tokens, connections and bodies grow.",
    "limits": "Limits: CPU time per request, and capacity, with three limits of money and without.",
    "scaling": "Many processes on one database: costs, a model of fleets, and a check with eight.",
    "reports": "Reports and lists with a million requests: rows that are read, times, memory.",
    "memory": "Memory after many requests.",
    "peers": "Other gateways side by side, on the same upstream.",
}
#: Only by name: these install other programs, or need the machine for minutes.
_NOT_IN_ALL = ("peers", "scaling", "reports")
#: All parts together then take less than ten minutes on two cores and four databases.
_SCALE_OF_ALL = 0.25

Run = Callable[[Bench], Sequence[Chapter]]


@click.group(help=__doc__)
def main() -> None:
    """Measure LLM Proxy on this machine."""


def options(scale: float) -> list[click.Parameter]:
    """Return the options that all parts have."""
    return [
        click.Option(
            ["--db", "kinds"],
            type=click.Choice([kind.value for kind in Kind]),
            multiple=True,
            help="Database to measure on; repeatable (default: all on this machine).",
        ),
        click.Option(["--rounds"], default=5, show_default=True, type=click.IntRange(1)),
        click.Option(
            ["--scale"],
            default=scale,
            show_default=True,
            type=click.FloatRange(0, min_open=True),
            help="Factor for numbers of requests and seconds; 1 for results to publish.",
        ),
        click.Option(
            ["--keep"],
            type=click.Path(path_type=Path, file_okay=False),
            help="Folder for the servers' logs (default: deleted).",
        ),
        click.Option(
            ["--results"],
            type=click.Path(path_type=Path, file_okay=False),
            default=report.RESULTS,
            help="Folder for page, JSON and plots.  [default: benchmarks/results]",
        ),
    ]


def _tell(line: str) -> None:
    click.echo(line, err=True)


def measure(
    name: str,
    parts: dict[str, Run | None],
    *,
    kinds: Sequence[str],
    rounds: int,
    scale: float,
    keep: Path | None,
    results: Path,
) -> None:
    """Run parts, print and write the results, and exit with 1 if a target was missed.

    `parts` have the function of each part, or None for the module of that name.
    """
    clean_environment()
    with ExitStack() as stack:
        databases = Databases(durable=True)
        stack.callback(databases.close)
        try:
            found, missing = find(databases, list(map(Kind, kinds)) or list(Kind))
        except RuntimeError as error:
            raise click.ClickException(str(error)) from None
        for kind, reason in missing.items():
            _tell(f"NOT MEASURED: {NAMES[kind]}: {reason}")
        if missing and kinds:
            raise click.ClickException("a database of --db is missing")
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="llm-proxy-benchmark-"))
        directory = (keep or Path(scratch)).absolute()
        bench = Bench(directory, databases, found, rounds, scale, _tell)
        outcome = Report(
            name,
            time.strftime("%Y-%m-%d %H:%M"),
            rounds,
            scale,
            machine.describe(),
            describe(databases, found),
            {NAMES[kind]: reason for kind, reason in missing.items()},
        )
        chapters: list[Chapter] = []
        for part, run in parts.items():
            chapters += _run_part(part, run, bench)
    outcome = attrs.evolve(outcome, chapters=chapters)
    page = report.save(outcome, results)
    click.echo(f"## Targets\n\n{report.write_targets(chapters)}\n\nwritten to {page}")
    failures = list(outcome.failures())
    for line in failures:
        _tell(line)
    if failures:
        sys.exit(1)


def _run_part(name: str, run: Run | None, bench: Bench) -> Sequence[Chapter]:
    """Run one part and print its tables. An error becomes a problem of this part and does not stop the others."""
    began = time.monotonic()
    try:
        found = (run or import_module(f"benchmarks.{name}").run)(bench)
    except Exception as error:  # noqa: BLE001 - any error is reported, and the run fails
        _tell(traceback.format_exc())
        found = [Chapter(name.capitalize(), "", problems=[f"the part failed: {type(error).__name__}: {error}"])]
    _tell(f"{name}: {time.monotonic() - began:.0f} s")
    for chapter in found:
        click.echo("\n\n".join([f"## {chapter.title}", *map(report.write_table, chapter.tables)]) + "\n")
    return list(found)


def _measure_all(**given: Any) -> None:
    measure("all", dict.fromkeys(name for name in PARTS if name not in _NOT_IN_ALL), **given)


def _measure_cpu(*, connections: int, requests: int | None, stream: bool, **given: Any) -> None:
    from benchmarks import cpu  # noqa: PLC0415 - imported late: one broken part must not break the others

    measure("cpu", {"cpu": partial(cpu.run, plan=cpu.Plan(connections, requests, stream))}, **given)


_CPU_OPTIONS: list[click.Parameter] = [
    click.Option(["--connections"], default=32, show_default=True, type=click.IntRange(1)),
    click.Option(["--requests"], type=click.IntRange(1), help="Requests per subject and round (default: by scale)."),
    click.Option(["--stream"], is_flag=True, help="Measure streamed completions of 20 chunks."),
]


def _add_commands() -> None:
    for name, about in PARTS.items():
        callback, more = (_measure_cpu, _CPU_OPTIONS) if name == "cpu" else (partial(measure, name, {name: None}), [])
        main.add_command(click.Command(name, callback=callback, params=[*options(1.0), *more], help=about))
    about = f"Every part but {' and '.join(_NOT_IN_ALL)}, in ten minutes."
    main.add_command(click.Command("all", callback=_measure_all, params=options(_SCALE_OF_ALL), help=about))


_add_commands()


@main.command("report")
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--to", "page", required=True, type=click.Path(path_type=Path, dir_okay=False), help="PAGE.md")
def write_report(results: tuple[Path, ...], page: Path) -> None:
    """Write the page of the documentation from the JSON of one run or several."""
    try:
        report.publish(report.join(list(map(report.load, results))), page)
    except (msgspec.DecodeError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"written to {page}")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
