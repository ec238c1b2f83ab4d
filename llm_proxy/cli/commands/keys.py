"""`llm-proxy keys`."""

from __future__ import annotations

from pathlib import Path

import click
from attrs import asdict

from llm_proxy.cli.database import open_for_reading, open_for_writing
from llm_proxy.cli.failures import ERROR
from llm_proxy.cli.options import database_options, json_option, load_settings
from llm_proxy.cli.output import print_json, record, report_problem
from llm_proxy.cli.program import Group
from llm_proxy.config.database import open_keyring
from llm_proxy.secrets import keys


@click.group(cls=Group)
def command() -> None:
    """Rotate the keys that encrypt API keys."""


@command.command()
@click.option("--dry-run", is_flag=True, help="Print what would be done; write nothing.")
@json_option
@database_options
def rotate(*, dry_run: bool, as_json: bool, db: str | None, config: Path | None) -> None:
    """Encrypt all API keys again, under the first key of ENCRYPTION_KEY.

    Set ENCRYPTION_KEY to 'new,old' on every server, run this command, then remove the old key. Servers may run at the
    same time; on SQLite, stop the server first. An API key that cannot be decrypted is not changed; exits 1 if there is
    one.
    """
    settings = load_settings(config, db)
    with open_for_reading(settings) if dry_run else open_for_writing(settings) as database:
        # After the database is opened: the key may be in a file beside the SQLite file.
        ring = open_keyring(settings)
        done = keys.rotate(database, ring, dry_run=dry_run)
    if as_json:
        print_json({**asdict(done), "key": ring.key_ids[0] if ring.key_ids else None, "dry_run": dry_run})
    else:
        under = f"the key with the id {ring.key_ids[0]}" if ring.key_ids else "no key: they are in plain text"
        done_or_not = "would be re-encrypted" if dry_run else "re-encrypted"
        fields = {done_or_not: done.resealed, "current": done.current, "unreadable": len(done.unreadable)}
        click.echo(record({"under": under, **fields}))
        for one in done.unreadable:
            report_problem(f"{one.owner}: {one.reason}")
    if done.unreadable:
        raise click.exceptions.Exit(ERROR)
