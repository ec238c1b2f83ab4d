"""`llm-proxy manage`: projects, tokens and requests, over the management API of a running server."""

from __future__ import annotations

import click

from llm_proxy.cli.commands.manage import project, request, token
from llm_proxy.cli.program import Group


@click.group(cls=Group)
def command() -> None:
    """Manage projects, tokens and requests of a running server.

    The management token is found in --management-token, MANAGEMENT_TOKEN, the .env file, or, for a server on this
    machine that made its own, in the file beside its database.
    """


command.add_command(project.command)
command.add_command(request.command)
command.add_command(token.command)
