"""`llm-proxy db backup`: a copy of the SQLite file, beside a running server."""

from __future__ import annotations

from pathlib import Path

import click

from db import dsn, migrate
from db.database import opened
from db.dialects.sqlite.backup import back_up
from db.queries import ledger as books
from llm_proxy.cli.configuration import database_options, load_settings
from llm_proxy.cli.database import patient_options
from llm_proxy.cli.failures import ERROR, Failure, WrongUsage
from llm_proxy.cli.output import print_json, record
from llm_proxy.cli.program import Command
from llm_proxy.services import database_target, key_file

#: The tools that come with the servers, as their manuals have them for a consistent copy beside running clients.
_TOOLS = {
    "postgres": "pg_dump --format=custom --file=llm-proxy.dump 'URL'",
    "mysql": "mysqldump --single-transaction --no-tablespaces --hex-blob --result-file=llm-proxy.sql DATABASE",
}


@click.command(cls=Command, name="backup")
@click.argument("to", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Replace the file where there is one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@database_options
@click.pass_context
def command(
    context: click.Context, *, to: Path, force: bool, as_json: bool, db: str | None, config: Path | None
) -> None:
    """Copy the SQLite database to the file TO.

    A server may be using it meanwhile. The copy is checked: that the file is whole, and that its books balance; exits 1
    where they do not. PostgreSQL and MySQL have tools of their own, which this command names.
    """
    settings = load_settings(config, db)
    source = database_target(settings)
    if source.driver != "sqlite":
        raise WrongUsage(f"{source} is backed up with the server's own tool: {_TOOLS[source.driver]}")
    if source.path is None or not source.path.exists():
        raise Failure(f"there is no SQLite file {source.path}")
    size = back_up(source.path, to, overwrite=force)
    with opened(dsn.parse("sqlite", None, str(to)), patient_options(settings), exclusive=False) as copied:
        at_head = copied.read_now(migrate.is_at_head)
        differences = copied.read_now(books.verify) if at_head else []
    keys = key_file(settings)
    if as_json:
        print_json({"backup": str(to), "bytes": size, "books_balance": not differences, "key_file": _text(keys)})
    else:
        state = (
            "behind this version; not compared" if not at_head else "balance" if not differences else "DO NOT BALANCE"
        )
        click.echo(record({"backup": to, "size": f"{size:,} bytes", "file": "whole", "books": state}))
    if keys is not None and keys.exists():
        click.echo(
            f"The API keys in it are encrypted under the key in {keys}: keep a copy of that file too, in another place",
            err=True,
        )
    if differences:
        click.echo("run 'llm-proxy ledger verify' for the tokens that differ", err=True)
        context.exit(ERROR)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
