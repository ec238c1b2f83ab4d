"""`python -m benchmarks`: measure LLM Proxy on this machine."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click

from benchmarks import cpu as cpu_benchmark
from benchmarks import report
from benchmarks.processes import ProcessFailed
from benchmarks.proxy import clean_environment

_DRIVERS = {"sqlite": "sqlite", "postgres": "postgres", "mysql": "mysql", "mariadb": "mysql"}


@click.group(help=__doc__)
def main() -> None:
    """Measure LLM Proxy on this machine."""


@main.command()
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--connections", default=32, show_default=True, type=click.IntRange(1))
@click.option("--requests", default=10_000, show_default=True, type=click.IntRange(1), help="Per subject and round.")
@click.option("--target", default=1.0, show_default=True, help="The highest ratio that passes.")
@click.option("--db", type=click.Choice(sorted(_DRIVERS)), default="sqlite", show_default=True)
@click.option("--database-url", help="An empty database, for any --db but sqlite.")
@click.option("--answers", type=click.Choice(["plain", "scripted"]), default="plain", show_default=True)
@click.option("--stream", is_flag=True, help="Measure streamed completions of 20 chunks.")
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Keep databases and logs here.")
def cpu(  # noqa: PLR0913 - one for each option
    *,
    rounds: int,
    connections: int,
    requests: int,
    target: float,
    db: str,
    database_url: str | None,
    answers: str,
    stream: bool,
    keep: Path | None,
) -> None:
    """CPU time per request of the whole proxy, as a ratio to a bare application on stock Hypercorn.

    Exits with 1 when the ratio is above the target, or when the run itself went wrong.
    """
    env = {}
    if db != "sqlite":
        if not database_url:
            raise click.UsageError(f"--db {db} needs --database-url")
        env = {"DB_DRIVER": _DRIVERS[db], "DATABASE_URL": database_url}
    clean_environment()
    plan = cpu_benchmark.Plan(rounds, connections, requests, answers, streamed=stream, env=env)
    with tempfile.TemporaryDirectory(prefix="llm-proxy-benchmark-") as scratch:
        directory = keep or Path(scratch)
        directory.mkdir(parents=True, exist_ok=True)
        try:
            outcome = cpu_benchmark.run(plan, directory, lambda line: click.echo(line, err=True))
        except (cpu_benchmark.LoadFailed, ProcessFailed) as error:
            raise click.ClickException(str(error)) from None
    click.echo(report.table(outcome))
    click.echo(f"\nwritten to {report.save(outcome)}")
    for problem in outcome.problems:
        click.echo(f"FAILED: {problem}", err=True)
    if outcome.ratio > target:
        name = outcome.subjects[-1].name
        click.echo(f"FAILED: {name}: ratio {outcome.ratio:.2f} is above the target {target:.2f}", err=True)
    if outcome.problems or outcome.ratio > target:
        sys.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
