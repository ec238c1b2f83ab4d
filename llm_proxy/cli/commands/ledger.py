"""`llm-proxy ledger`."""

from __future__ import annotations

from pathlib import Path

import click
from attrs import asdict

from db.queries import ledger
from db.queries.repair import repair
from llm_proxy.cli.database import open_for_reading, open_for_writing
from llm_proxy.cli.failures import ERROR
from llm_proxy.cli.options import database_options, json_option, load_settings
from llm_proxy.cli.output import print_json, table
from llm_proxy.cli.program import Group


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
    """
    settings = load_settings(config, db)
    with open_for_reading(settings, patiently=True) as database:
        differences = database.read_now(ledger.verify)
    found = len(differences)
    if repairs and found:
        with open_for_writing(settings, patiently=True) as database:
            for difference in differences:
                database.write_now(repair, difference.token_id)
            differences = database.read_now(ledger.verify)
    if as_json:
        print_json([asdict(difference) for difference in differences])
    elif differences:
        rows = [(d.token_id, d.counter, d.settled, d.rolled_up, d.in_flight) for d in differences]
        numbers = ("COUNTER", "SETTLED", "HOURLY SUMS", "IN FLIGHT")
        click.echo(table(("TOKEN", *numbers), rows, numbers=numbers))
    else:
        click.echo("The ledger is correct: for every token, counter = settled + in flight = hourly sums + in flight.")
    if repairs:
        click.echo(f"Tokens repaired: {found - len(differences)} of {found}", err=True)
    if differences:
        raise click.exceptions.Exit(ERROR)
