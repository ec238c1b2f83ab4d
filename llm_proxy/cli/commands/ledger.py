"""`llm-proxy ledger`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click
from attrs import asdict

from db.database import Database
from db.queries import counters
from db.queries.counters import CounterProof, UnprovenWindow, WrongCounter
from db.queries.proof import Proof, prove, sum_up_again
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
@click.option("--repair", "repairs", is_flag=True, help="Correct sums and counters from the request records.")
@json_option
@database_options
def verify(*, db: str | None, config: Path | None, repairs: bool, as_json: bool) -> None:
    """Verify counters, hourly sums and daily sums. Exits 1 if one is wrong.

    The counter of a token must be the number of its settled requests plus those in flight, and also the total of its
    hourly sums plus those in flight. The tokens and the cost of each hour must be those of its request records, and
    daily sums must be those of the hourly ones. Where request records were pruned, hourly sums can only be found too
    low.

    A repair raises hourly sums that are too low to the request records, sets tokens and cost from them if none is
    missing, sets each counter from the hourly sums and the requests in flight, and has a server make wrong daily sums
    again; it cannot restore request records. On SQLite, stop the server before a repair.

    Of a limit, what is used must be the opening amount plus what the request records were charged, and what is reserved
    must be what the requests in flight hold. A repair sets both. Where request records were pruned, what is used is
    only raised.
    """
    settings = load_settings(config, db)
    with open_for_reading(settings, patiently=True) as database:
        proof = before = database.read_now(prove)
        limits = wrong_limits = database.read_now(counters.prove, started_at)
    if repairs and (proof.differences or limits.wrong):
        with open_for_writing(settings, patiently=True) as database:
            for token_id in sorted(_tokens(proof)):
                database.write_now(repair, token_id)
            # Repaired hourly sums may make further days wrong.
            database.write_now(sum_up_again, {one.day for one in database.read_now(prove).days})
            proof = database.read_now(prove)
            limits = _repair_counters(database, limits)
    if as_json:
        found = [*proof.differences, *limits.wrong]
        print_json([asdict(difference, value_serializer=_as_json) for difference in found])
    elif proof.differences or limits.wrong:
        click.echo("\n\n".join(_tables(proof, limits.wrong)))
    else:
        click.echo("The ledger is correct: for every token, counter = settled + in flight = hourly sums + in flight.")
        click.echo("Tokens and cost: hourly sums = request records, daily sums = hourly sums.")
    _say_unproven(proof, limits.unproven)
    if repairs:
        _say_repaired("Tokens", _tokens(before), _tokens(proof))
        if before.days:
            _say_repaired("Days", {one.day for one in before.days}, {one.day for one in proof.days})
        if wrong_limits.wrong:
            _say_repaired(
                "Counters of limits", {one.key for one in wrong_limits.wrong}, {one.key for one in limits.wrong}
            )
    if proof.differences or limits.wrong:
        raise click.exceptions.Exit(ERROR)


def _tokens(proof: Proof) -> set[str]:
    return {one.token_id for one in proof.tokens} | {one.token_id for one in proof.hours}


def _as_json(_: object, __: object, value: object) -> object:
    return f"{value:%Y-%m-%dT%H:%M:%SZ}" if isinstance(value, datetime) else value


def _say_repaired(what: str, before: set[Any], after: set[Any]) -> None:
    click.echo(f"{what} repaired: {len(before - after)} of {len(before)}", err=True)


def _repair_counters(database: Database, found: CounterProof) -> CounterProof:
    keys = sorted({one.key for one in found.wrong})
    for start in range(0, len(keys), counters.REPAIRED):
        database.write_now(counters.repair, started_at, keys[start : start + counters.REPAIRED])
    return database.read_now(counters.prove, started_at)


def _tables(proof: Proof, wrong: Sequence[WrongCounter]) -> Iterator[str]:
    if proof.tokens:
        rows = [(d.token_id, d.counter, d.settled, d.rolled_up, d.in_flight) for d in proof.tokens]
        numbers = ("COUNTER", "SETTLED", "HOURLY SUMS", "IN FLIGHT")
        yield table(("TOKEN", *numbers), rows, numbers=numbers)
    numbers_ = ("EXPECTED", "FOUND")
    if proof.hours:
        hours = [(d.token_id, _window(d.hour), d.sum, d.expected, d.found) for d in proof.hours]
        yield table(("TOKEN", "HOUR", "SUM", *numbers_), hours, numbers=numbers_)
    if proof.days:
        days = [(f"{d.day:%Y-%m-%d}", d.scope or "-", d.series or "-", d.sum, d.expected, d.found) for d in proof.days]
        yield table(("DAY", "SCOPE", "SERIES", "SUM", *numbers_), days, numbers=numbers_)
    if wrong:
        rows_ = [(d.limit_id, _window(d.window), d.figure, d.expected, d.found) for d in wrong]
        yield table(("LIMIT", "WINDOW", "FIGURE", *numbers_), rows_, numbers=numbers_)


def _say_unproven(proof: Proof, windows: Sequence[UnprovenWindow]) -> None:
    if proof.unproven:
        click.echo(
            f"Not proven: tokens and cost of {proof.unproven} hours of tokens, because {proof.pruned} request records "
            "were pruned",
            err=True,
        )
    if not windows:
        return
    click.echo("Not proven, because request records were pruned: these windows of limits", err=True)
    for one in windows[:SHOWN]:
        click.echo(f"  {one.limit_id} {_window(one.window)}", err=True)
    if len(windows) > SHOWN:
        click.echo(f"  and {len(windows) - SHOWN} more", err=True)


def _window(start: datetime | None) -> str:
    return "total" if start is None else f"{start:%Y-%m-%dT%H:%MZ}"
