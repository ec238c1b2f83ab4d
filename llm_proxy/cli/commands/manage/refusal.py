"""`llm-proxy manage refusal`."""

from __future__ import annotations

import click

from llm_proxy.cli.client import ManagementClient, path, with_client
from llm_proxy.cli.commands.manage.lists import first, list_options, print_csv
from llm_proxy.cli.output import print_table, timestamp
from llm_proxy.cli.program import Group


@click.group("refusal", cls=Group)
def command() -> None:
    """Show refused requests, recorded if RECORD_REFUSALS is set."""


@command.command("list")
@click.option("--project-id", metavar="ID", help="List only requests of this project.")
@click.option("--token-id", metavar="ID", help="List only requests with this token.")
@click.option("--code", metavar="CODE", help="List only requests with this error, e.g. request_limit_exceeded.")
@list_options("requests")
@with_client
def list_(client: ManagementClient, *, limit: int, as_csv: bool, as_json: bool, **query: str | None) -> None:
    """List refused requests, the newest first.

    TIME is a day in UTC like 2030-01-31, or a time like 2030-01-31T12:00:00Z. The ID of a project or a token can be its
    name.
    """
    if as_csv:
        print_csv(client, "refusals", query, as_json=as_json)
        return
    found = first(client, path("refusals"), limit, "refusals", f"newest {limit}", **query)
    names = ("id", "code", "status", "limit_id", "token_id", "model", "address", "method", "path")
    rows = [(timestamp(one["refused_at"]), *(one[name] or None for name in names)) for one in found]
    titles = ("TIME", "ID", "CODE", "STATUS", "LIMIT ID", "TOKEN ID", "MODEL", "ADDRESS", "METHOD", "PATH")
    print_table(found, titles, rows, numbers=("STATUS",), as_json=as_json)
