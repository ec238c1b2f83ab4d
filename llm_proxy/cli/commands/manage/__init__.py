"""`llm-proxy manage`, over the management API of a running server."""

from __future__ import annotations

import json
from typing import Any

import click

from llm_proxy.cli.client import ManagementClient, path, with_client
from llm_proxy.cli.commands.manage import credential, limit, lists, project, request, token, usage
from llm_proxy.cli.output import print_table, timestamp
from llm_proxy.cli.program import Group


@click.group(cls=Group)
def command() -> None:
    """Manage a running server: projects, tokens, requests, usage.

    The management token is read from --management-token, MANAGEMENT_TOKEN or the .env file. If a server on this machine
    has made its own token, it is read from the file beside the database.
    """


@command.command()
@click.option("--resource", metavar="KIND", help="List only calls on this kind of resource, e.g. project.")
@click.option("--resource-id", metavar="ID", help="List only calls on this resource, by its full id.")
@click.option("--operation", metavar="NAME", help="List only calls of this operation, e.g. updateToken.")
@click.option("--outcome", type=click.Choice(["accepted", "refused"]), help="List only calls with this outcome.")
@click.option("--actor", metavar="NAME", help="List only calls of this actor, e.g. 'management token'.")
@lists.list_options("calls")
@with_client
def audit(client: ManagementClient, *, limit: int, as_csv: bool, as_json: bool, **query: str | None) -> None:
    """List changes and refused calls, the newest first.

    TIME is a day in UTC, e.g. 2030-01-31, or a time, e.g. 2030-01-31T12:00:00Z.
    """
    if as_csv:
        lists.print_csv(client, "audit", query, as_json=as_json)
        return
    found = lists.first(client, path("audit"), limit, "entries", f"newest {limit}", **query)
    rows = [
        (
            *(timestamp(entry["occurred_at"]), entry["actor"] or None, entry["address"] or None),
            *(entry["operation"] or None, entry["resource_id"] or None),
            *(entry["outcome"], entry["status"], _changes(entry)),
        )
        for entry in found
    ]
    titles = ("TIME", "ACTOR", "ADDRESS", "OPERATION", "RESOURCE", "OUTCOME", "STATUS", "CHANGES")
    print_table(found, titles, rows, numbers=("STATUS",), as_json=as_json)


def _changes(entry: dict[str, Any]) -> str:
    """What changed, such as `active: true -> false`; of a refused call, the code of the error."""
    before, after = entry["before"] or {}, entry["after"] or {}
    if entry["outcome"] == "refused" and not after:
        return str(entry["error"])
    return ", ".join(
        f"{name}: " + " -> ".join(json.dumps(values[name]) for values in (before, after) if name in values)
        for name in after or before
    )


command.add_command(credential.command)
command.add_command(limit.command)
command.add_command(project.command)
command.add_command(request.command)
command.add_command(request.refusals)
command.add_command(token.command)
command.add_command(usage.command)
