"""`llm-proxy manage request`."""

from __future__ import annotations

import click

from llm_proxy.cli.client import ManagementClient
from llm_proxy.cli.commands.manage.connection import json_option, path, with_client
from llm_proxy.cli.output import moment, print_json, record
from llm_proxy.cli.program import Group


@click.group("request", cls=Group)
def command() -> None:
    """Requests that have ended: the rows of the ledger.

    `GET /manage/requests` of the HTTP API lists them.
    """


@command.command()
@click.argument("request_id", metavar="ID")
@json_option
@with_client
def get(client: ManagementClient, request_id: str, *, as_json: bool) -> None:
    """Show a request, by its own id or by the provider's.

    SDKs show the provider's. If several requests have it, the newest is shown.
    """
    found = client.get(path("requests", request_id))
    if as_json:
        print_json(found)
    else:
        click.echo(record(found | {name: moment(found[name]) for name in ("admitted_at", "settled_at")}))
