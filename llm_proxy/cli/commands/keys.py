"""`llm-proxy keys`: the keys under which the projects' API keys are encrypted."""

from __future__ import annotations

from pathlib import Path

import click
from attrs import asdict

from llm_proxy.cli.configuration import database_options, load_settings
from llm_proxy.cli.database import change, look_at
from llm_proxy.cli.failures import ERROR
from llm_proxy.cli.output import print_json, record
from llm_proxy.cli.program import Group
from llm_proxy.secrets import keys
from llm_proxy.services import open_keyring


@click.group(cls=Group)
def command() -> None:
    """Look after the keys that encrypt API keys."""


@command.command()
@click.option("--dry-run", is_flag=True, help="Say what would be done, and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@database_options
@click.pass_context
def rotate(context: click.Context, *, dry_run: bool, as_json: bool, db: str | None, config: Path | None) -> None:
    """Encrypt all API keys under the first key of ENCRYPTION_KEY.

    First give every server 'new,old' as its ENCRYPTION_KEY, then run this, then take the old key away. Servers go on
    meanwhile; on SQLite, where the file belongs to one process, the server must be stopped for it. Exits 1 where a key
    cannot be read: such a one stays as it is.
    """
    settings = load_settings(config, db)
    with look_at(settings) if dry_run else change(settings) as database:
        # After the file is opened: on SQLite the key may be in a file beside it.
        ring = open_keyring(settings)
        done = keys.rotate(database, ring, dry_run=dry_run)
    if as_json:
        print_json({**asdict(done), "key": ring.key_ids[0] if ring.key_ids else None, "dry_run": dry_run})
    else:
        under = f"the key with the id {ring.key_ids[0]}" if ring.key_ids else "no key: they are in plain text"
        click.echo(
            record(
                {
                    "under": under,
                    "would be re-encrypted" if dry_run else "re-encrypted": done.resealed,
                    "current": done.current,
                    "unreadable": len(done.unreadable),
                }
            )
        )
        for one in done.unreadable:
            click.echo(f"{click.style('problem:', fg='yellow', bold=True)} {one.project_id}: {one.reason}", err=True)
    if done.unreadable:
        context.exit(ERROR)
