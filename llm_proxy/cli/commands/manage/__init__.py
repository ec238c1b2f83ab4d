"""`llm-proxy manage`, over the management API of a running server."""

from __future__ import annotations

import click

from llm_proxy.cli.client import ManagementClient, path, with_client
from llm_proxy.cli.commands.manage import project, token
from llm_proxy.cli.options import json_option
from llm_proxy.cli.output import print_record, timestamp
from llm_proxy.cli.program import Group


@click.group(cls=Group)
def command() -> None:
    """Manage projects, tokens and requests of a running server.

    The management token is read from --management-token, MANAGEMENT_TOKEN or the .env file. If a server on this machine
    has made its own token, it is read from the file beside the database.
    """


@command.group()
def request() -> None:
    """Show requests that have ended: the rows of the ledger.

    GET /manage/requests of the HTTP API lists them.
    """


@request.command("get")
@click.argument("request_id", metavar="ID")
@json_option
@with_client
def get_request(client: ManagementClient, request_id: str, *, as_json: bool) -> None:
    """Show a request, by its own ID or the provider's.

    SDKs show the provider's ID. If several requests have it, the newest is shown.
    """
    found = client.get(path("requests", request_id))
    times = {name: timestamp(found[name]) for name in ("admitted_at", "settled_at")}
    print_record(found, found | times, as_json=as_json)


command.add_command(project.command)
command.add_command(token.command)
