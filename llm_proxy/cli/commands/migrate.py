"""`llm-proxy migrate`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
from attrs import asdict

from db import migrate
from db.migrate import Revision, losses
from llm_proxy.cli.database import check_idle, open_for_reading, open_for_writing
from llm_proxy.cli.failures import ERROR
from llm_proxy.cli.options import confirm, database_options, json_option, load_settings, yes_option
from llm_proxy.cli.output import print_table, table
from llm_proxy.cli.program import Group


@click.group(cls=Group)
def command() -> None:
    """Migrate the schema of the database, or undo migrations.

    A server migrates the database when it starts. On SQLite, no other process may use the file during a migration.
    """


@command.command()
@database_options
def up(db: str | None, config: Path | None) -> None:
    """Apply all pending revisions."""
    with open_for_writing(load_settings(config, db)) as database:
        done = migrate.up(database, report=_print_revision("applied"), waiting=_print_error)
    if not done:
        click.echo(f"Nothing to do: the schema is at head ({migrate.revisions()[-1].id}).")


@command.command()
@click.option(
    "--to", metavar="REVISION", help="Revision to keep; 'base' undoes all.  [default: undo the newest revision]"
)
@click.option(
    "--allow-live", is_flag=True, help="Run while servers use the database; they may fail (PostgreSQL and MySQL only)."
)
@yes_option
@database_options
def down(*, to: str | None, allow_live: bool, yes: bool, db: str | None, config: Path | None) -> None:
    """Undo revisions, the newest first.

    Deletes their tables with all rows. Lists how many rows will be deleted, and asks for confirmation. Fails if a
    server uses the database, so stop all servers first.
    """
    settings = load_settings(config, db)
    with open_for_writing(settings, patiently=True) as database:
        deleted = losses(database, to)
        if deleted is None:
            click.echo("Nothing to do: no revision was applied after that one.")
            return
        if not allow_live:
            check_idle(database, settings)
        if deleted:
            rows = [(f"{one.table}.{one.column}" if one.column else one.table, f"{one.rows:,}") for one in deleted]
            click.echo(table(("TO BE DELETED", "ROWS"), rows, numbers=("ROWS",)), err=True)
            question = f"Delete this from {database.target}?"
        else:
            _, undone = database.write_now(migrate.steps_down, to)
            names = ", ".join(f"{revision.id} ({revision.title})" for revision in undone)
            question = f"Undo revision{'s' * (len(undone) != 1)} {names} in {database.target}? No rows are deleted."
        confirm(question, yes=yes)
        migrate.down(database, to, report=_print_revision("undone"), waiting=_print_error)


@command.command()
@json_option
@database_options
def status(*, db: str | None, config: Path | None, as_json: bool) -> None:
    """Show which revisions are applied. Exits 1 if some are pending."""
    with open_for_reading(load_settings(config, db), imagine=True) as database:
        found = database.read_now(migrate.status)
    pending = {revision.id for revision in found.pending}
    rows = [(one.id, "pending" if one.id in pending else "applied", one.title) for one in migrate.revisions()]
    value = asdict(found) | {"at_head": found.at_head}
    print_table(value, ("REVISION", "STATE", "TITLE"), rows, as_json=as_json)
    if not found.at_head:
        raise click.exceptions.Exit(ERROR)


@command.command()
@database_options
def version(db: str | None, config: Path | None) -> None:
    """Print the current revision of the database."""
    with open_for_reading(load_settings(config, db), imagine=True) as database:
        click.echo(database.read_now(migrate.version) or "base")


@command.command()
@database_options
def plan(db: str | None, config: Path | None) -> None:
    """Print the SQL that 'up' would run, if any."""
    with open_for_reading(load_settings(config, db), imagine=True) as database:
        click.echo(migrate.plan(database), nl=False)


_print_error = partial(click.echo, err=True)


def _print_revision(verb: str) -> Callable[[Revision], None]:
    return lambda revision: click.echo(f"{verb} {revision.id} {revision.title}")
