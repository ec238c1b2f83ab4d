"""`llm-proxy migrate`: the schema's history, up and down."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
from attrs import asdict

from db import migrate
from db.losses import losses
from db.migrate import Revision
from llm_proxy.cli.configuration import database_options, load_settings
from llm_proxy.cli.confirmation import confirm, yes_option
from llm_proxy.cli.database import change, check_idle, look_at_or_imagine
from llm_proxy.cli.failures import ERROR
from llm_proxy.cli.output import Column, print_json, table
from llm_proxy.cli.program import Group


@click.group(cls=Group)
def command() -> None:
    """Bring the database's schema to this version, or back.

    A server migrates by itself when it starts. On SQLite nothing else may use the file meanwhile.
    """


@command.command()
@database_options
def up(db: str | None, config: Path | None) -> None:
    """Run the revisions that the database does not have yet."""
    with change(load_settings(config, db)) as database:
        done = migrate.up(database, report=_tell("applied"), waiting=_say)
    if not done:
        click.echo(f"Nothing to do: the schema is at head ({migrate.revisions()[-1].id}).")


@command.command()
@click.option(
    "--to", metavar="REVISION", help="Go back to this revision; 'base' is before the first.  [default: one back]"
)
@click.option(
    "--allow-live",
    is_flag=True,
    help="Go on beside running servers, which cannot serve without what they need (PostgreSQL and MySQL only).",
)
@yes_option
@database_options
def down(*, to: str | None, allow_live: bool, yes: bool, db: str | None, config: Path | None) -> None:
    """Undo revisions, the newest first. Their tables are deleted, with all rows.

    Lists first how many rows are lost, and asks. Stop the servers before: it refuses to run beside one.
    """
    settings = load_settings(config, db)
    with change(settings, patiently=True) as database:
        deleted = losses(database, to)
        if deleted is None:
            click.echo("Nothing to do: no revision was applied after that one.")
            return
        if not allow_live:
            check_idle(database, settings)
        if deleted:
            rows = [(f"{one.table}.{one.column}" if one.column else one.table, f"{one.rows:,}") for one in deleted]
            click.echo(table([Column("TO BE DELETED"), Column("ROWS", number=True)], rows), err=True)
            question = f"Delete this from {database.target}?"
        else:
            _, undone = database.write_now(migrate.steps_down, to)
            names = ", ".join(f"{revision.id} ({revision.title})" for revision in undone)
            question = f"Undo revision{'s' * (len(undone) != 1)} {names} in {database.target}? No rows are deleted."
        confirm(question, yes=yes)
        migrate.down(database, to, report=_tell("undone"), waiting=_say)


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@database_options
@click.pass_context
def status(context: click.Context, *, db: str | None, config: Path | None, as_json: bool) -> None:
    """Show which revisions are applied.

    Exits 1 when some are pending.
    """
    with look_at_or_imagine(load_settings(config, db)) as database:
        found = database.read_now(migrate.status)
    pending = {revision.id for revision in found.pending}
    if as_json:
        print_json(asdict(found) | {"at_head": found.at_head})
    else:
        rows = [
            (revision.id, "pending" if revision.id in pending else "applied", revision.title)
            for revision in migrate.revisions()
        ]
        click.echo(table([Column("REVISION"), Column("STATE"), Column("TITLE")], rows))
    if not found.at_head:
        context.exit(ERROR)


@command.command()
@database_options
def version(db: str | None, config: Path | None) -> None:
    """Print the revision that the database is at."""
    with look_at_or_imagine(load_settings(config, db)) as database:
        click.echo(database.read_now(migrate.version) or "base")


@command.command()
@database_options
def plan(db: str | None, config: Path | None) -> None:
    """Print the SQL that 'up' would run.

    Nothing when the schema is at head.
    """
    with look_at_or_imagine(load_settings(config, db)) as database:
        click.echo(migrate.plan(database), nl=False)


def _say(words: str) -> None:
    click.echo(words, err=True)


def _tell(verb: str) -> Callable[[Revision], None]:
    def tell(revision: Revision) -> None:
        click.echo(f"{verb} {revision.id} {revision.title}")

    return tell
