"""`llm-proxy db`."""

from __future__ import annotations

import click

from llm_proxy.cli.commands.db import backup, check, copy
from llm_proxy.cli.program import Group


@click.group(cls=Group)
def command() -> None:
    """Check, copy and back up the database."""


command.add_command(check.command)
command.add_command(copy.command)
command.add_command(backup.command)
