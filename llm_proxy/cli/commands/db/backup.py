"""`llm-proxy db backup`."""

from __future__ import annotations

from pathlib import Path

import click

from db import dsn, migrate
from db.database import opened
from db.dialects.sqlite.backup import back_up
from db.queries.proof import prove
from llm_proxy.cli.database import patient_options
from llm_proxy.cli.failures import ERROR, CommandFailed, WrongUsage
from llm_proxy.cli.options import database_options, json_option, load_settings
from llm_proxy.cli.output import print_json, record
from llm_proxy.cli.program import Command
from llm_proxy.config.database import database_target, key_file

#: Commands for a consistent copy while clients are connected, from the manuals of the servers.
_TOOLS = {
    "postgres": "pg_dump --format=custom --file=llm-proxy.dump DATABASE",
    "mysql": "mysqldump --single-transaction --no-tablespaces --hex-blob --result-file=llm-proxy.sql DATABASE",
}


@click.command(cls=Command, name="backup")
@click.argument("to", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@json_option
@database_options
def command(*, to: Path, force: bool, as_json: bool, db: str | None, config: Path | None) -> None:
    """Copy the SQLite database to the file TO.

    A server may use the database at the same time. The copy is verified: its pages, and its ledger as in
    'llm-proxy ledger verify'. Exits 1 if the ledger has a difference. For PostgreSQL and MySQL, prints the command to
    use instead.
    """
    settings = load_settings(config, db)
    source = database_target(settings)
    if source.driver != "sqlite":
        raise WrongUsage(f"{source} is backed up with the server's own tool: {_TOOLS[source.driver]}")
    if source.path is None or not source.path.exists():
        raise CommandFailed(f"there is no SQLite file {source.path}")
    size = back_up(source.path, to, overwrite=force)
    with opened(dsn.parse("sqlite", None, str(to)), patient_options(settings), exclusive=False) as copied:
        at_head = copied.read_now(migrate.is_at_head)
        differences = copied.read_now(prove).differences if at_head else []
    keys = key_file(settings)
    if as_json:
        keys_text = None if keys is None else str(keys)
        print_json({"backup": str(to), "bytes": size, "books_balance": not differences, "key_file": keys_text})
    else:
        state = "not verified: schema behind this version" if not at_head else "WRONG" if differences else "correct"
        click.echo(record({"backup": to, "size": f"{size:,} bytes", "file": "intact", "ledger": state}))
    if keys is not None and keys.exists():
        click.echo(
            f"The API keys in it are encrypted under the key in {keys}: keep a copy of that file too, in another place",
            err=True,
        )
    if differences:
        click.echo("run 'llm-proxy ledger verify' to see the differences", err=True)
        raise click.exceptions.Exit(ERROR)
