"""`llm-proxy ledger`: the proof that the books balance."""

from __future__ import annotations

from pathlib import Path

import click
from attrs import asdict

from db.queries import ledger as books
from db.queries.repair import repair
from llm_proxy.cli.configuration import database_options, load_settings
from llm_proxy.cli.database import change, look_at
from llm_proxy.cli.failures import ERROR
from llm_proxy.cli.output import Column, print_json, table
from llm_proxy.cli.program import Group

_COLUMNS = [
    Column("TOKEN"),
    Column("COUNTER", number=True),
    Column("SETTLED", number=True),
    Column("HOURLY SUMS", number=True),
    Column("IN FLIGHT", number=True),
]


@click.group(cls=Group)
def command() -> None:
    """Look after the ledger."""


@command.command()
@click.option("--repair", "mend", is_flag=True, help="Set hourly sums and counters right, as far as rows prove them.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@database_options
@click.pass_context
def verify(context: click.Context, *, db: str | None, config: Path | None, mend: bool, as_json: bool) -> None:
    """Prove that the books balance; exits 1 where they do not.

    For every token, its counter must be its settled requests + those in flight, and the same by the hourly sums.
    --repair raises sums that are too low to what the requests say, and sets the counter to what the sums and the
    requests in flight say; what differs after that is shown. Requests that are gone cannot be brought back. On SQLite,
    the server must be stopped if there is something to repair; it may run otherwise.
    """
    settings = load_settings(config, db)
    with look_at(settings, patiently=True) as database:
        differences = database.read_now(books.verify)
    found = len(differences)
    if mend and found:
        with change(settings, patiently=True) as database:
            for difference in differences:
                database.write_now(repair, difference.token_id)
            differences = database.read_now(books.verify)
    if as_json:
        print_json([asdict(difference) for difference in differences])
    elif differences:
        rows = [(d.token_id, d.counter, d.settled, d.rolled_up, d.in_flight) for d in differences]
        click.echo(table(_COLUMNS, rows))
    else:
        click.echo("The books balance: for every token, counter = settled + in flight = hourly sums + in flight.")
    if mend:
        click.echo(f"Tokens repaired: {found - len(differences)} of {found}", err=True)
    if differences:
        context.exit(ERROR)
