"""`llm-proxy ledger`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import click
from attrs import asdict

from db.database import Database
from db.queries import counters, ledger
from db.queries.counters import CounterProof, UnprovenWindow, WrongCounter
from db.queries.ledger import Imbalance
from db.queries.repair import repair
from llm_proxy.cli.database import open_for_reading, open_for_writing
from llm_proxy.cli.failures import ERROR
from llm_proxy.cli.options import database_options, json_option, load_settings
from llm_proxy.cli.output import print_json, table
from llm_proxy.cli.program import Group
from llm_proxy.limits import started_at

#: Unproven windows that are listed.
SHOWN: Final = 20


@click.group(cls=Group)
def command() -> None:
    """Verify the ledger."""


@command.command()
@click.option("--repair", "repairs", is_flag=True, help="Correct hourly sums and counters from the request records.")
@json_option
@database_options
def verify(*, db: str | None, config: Path | None, repairs: bool, as_json: bool) -> None:
    """Verify the counters of all tokens. Exits 1 if one is wrong.

    The counter of a token must be the number of its settled requests plus those in flight, and also the total of its
    hourly sums plus those in flight. A repair raises hourly sums that are too low to the number of request records, and
    sets each counter from the hourly sums and the requests in flight; it cannot restore request records. On SQLite,
    stop the server before a repair.

    Of a limit, what is used must be the opening amount plus what the request records were charged, and what is reserved
    must be what the requests in flight hold. A repair sets both. Where request records were pruned, what is used is
    only raised.
    """
    settings = load_settings(config, db)
    with open_for_reading(settings, patiently=True) as database:
        differences = database.read_now(ledger.verify)
        limits = wrong_limits = database.read_now(counters.prove, started_at)
    found = len(differences)
    if repairs and (found or limits.wrong):
        with open_for_writing(settings, patiently=True) as database:
            for difference in differences:
                database.write_now(repair, difference.token_id)
            differences = database.read_now(ledger.verify)
            limits = _repair_counters(database, limits)
    if as_json:
        print_json([*map(asdict, differences), *map(asdict, limits.wrong)])
    elif differences or limits.wrong:
        click.echo("\n\n".join(_tables(differences, limits.wrong)))
    else:
        click.echo("The ledger is correct: for every token, counter = settled + in flight = hourly sums + in flight.")
    _say_unproven(limits.unproven)
    if repairs:
        click.echo(f"Tokens repaired: {found - len(differences)} of {found}", err=True)
        if wrong := {one.key for one in wrong_limits.wrong}:
            left = {one.key for one in limits.wrong}
            click.echo(f"Counters of limits repaired: {len(wrong - left)} of {len(wrong)}", err=True)
    if differences or limits.wrong:
        raise click.exceptions.Exit(ERROR)


def _repair_counters(database: Database, found: CounterProof) -> CounterProof:
    keys = sorted({one.key for one in found.wrong})
    for start in range(0, len(keys), counters.REPAIRED):
        database.write_now(counters.repair, started_at, keys[start : start + counters.REPAIRED])
    return database.read_now(counters.prove, started_at)


def _tables(differences: Sequence[Imbalance], wrong: Sequence[WrongCounter]) -> Iterator[str]:
    if differences:
        rows = [(d.token_id, d.counter, d.settled, d.rolled_up, d.in_flight) for d in differences]
        numbers = ("COUNTER", "SETTLED", "HOURLY SUMS", "IN FLIGHT")
        yield table(("TOKEN", *numbers), rows, numbers=numbers)
    if wrong:
        rows_ = [(d.limit_id, _window(d.window), d.figure, d.expected, d.found) for d in wrong]
        numbers_ = ("EXPECTED", "FOUND")
        yield table(("LIMIT", "WINDOW", "FIGURE", *numbers_), rows_, numbers=numbers_)


def _say_unproven(windows: Sequence[UnprovenWindow]) -> None:
    if not windows:
        return
    click.echo("Not proven, because request records were pruned: these windows of limits", err=True)
    for one in windows[:SHOWN]:
        click.echo(f"  {one.limit_id} {_window(one.window)}", err=True)
    if len(windows) > SHOWN:
        click.echo(f"  and {len(windows) - SHOWN} more", err=True)


def _window(start: datetime | None) -> str:
    return "total" if start is None else f"{start:%Y-%m-%dT%H:%MZ}"
