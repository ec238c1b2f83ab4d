"""`llm-proxy manage request`, and `refusal`: requests that were refused before their admission."""

from __future__ import annotations

from typing import Any, get_args

import click

from db.records import Outcome
from llm_proxy.cli.client import ManagementClient, path, with_client
from llm_proxy.cli.commands.manage.lists import first, label_filters, list_options, print_csv
from llm_proxy.cli.failures import CommandFailed, WrongUsage
from llm_proxy.cli.options import confirm, yes_option
from llm_proxy.cli.output import print_record, print_table, timestamp
from llm_proxy.cli.program import Group


@click.group("request", cls=Group)
def command() -> None:
    """Show requests that have ended: the rows of the ledger."""


@command.command("list")
@click.option("--project-id", metavar="ID", help="List only requests of this project.")
@click.option("--token-id", metavar="ID", help="List only requests with this token.")
@click.option("--model", metavar="NAME", help="List only requests that this model answered: its exact name.")
@click.option(
    "--status", type=click.IntRange(100, 999), metavar="N", help="List only requests whose response had this status."
)
@click.option("--outcome", type=click.Choice(get_args(Outcome)), help="List only requests that ended like this.")
@click.option("--provider-request-id", metavar="ID", help="List only requests to which the provider gave this ID.")
@click.option(
    "--label", "labels", metavar="KEY=VALUE", multiple=True, help="List only requests with this label; can be repeated."
)
@list_options("requests")
@with_client
def list_(
    client: ManagementClient,
    *,
    labels: tuple[str, ...],
    limit: int,
    as_csv: bool,
    as_json: bool,
    **query: str | int | None,
) -> None:
    """List requests, the newest first.

    TIME is a day in UTC, e.g. 2030-01-31, or a time, e.g. 2030-01-31T12:00:00Z. The ID of a project or a token can be
    its name.
    """
    parameters: dict[str, Any] = query | label_filters(labels)
    if as_csv:
        print_csv(client, "requests", parameters, as_json=as_json)
        return
    found = first(client, path("requests"), limit, "requests", f"newest {limit}", **parameters)
    rows = [
        (
            *(timestamp(one["admitted_at"]), one["id"], one["outcome"], one["status"]),
            *(one["model"] or one["requested_model"] or None, one["input_tokens"], one["output_tokens"]),
            *(one["cost"], None if one["duration_us"] is None else f"{one['duration_us'] / 1000:.1f}", one["token_id"]),
        )
        for one in found
    ]
    titles = ("TIME", "ID", "OUTCOME", "STATUS", "MODEL", "INPUT", "OUTPUT", "COST", "MS", "TOKEN ID")
    print_table(found, titles, rows, numbers=("STATUS", "INPUT", "OUTPUT", "COST", "MS"), as_json=as_json)


@command.command()
@click.argument("request_id", metavar="ID")
@with_client
def get(client: ManagementClient, request_id: str, *, as_json: bool) -> None:
    """Show a request, by its own ID or the provider's.

    SDKs show the provider's ID. If several requests have it, the newest is shown.
    """
    found = client.get(path("requests", request_id))
    shown = found | {name: timestamp(found[name]) for name in ("admitted_at", "settled_at")}
    for name in ("labels", "usage_details"):
        shown[name] = found[name] and ", ".join(f"{key}={value}" for key, value in found[name].items())
    print_record(found, shown, as_json=as_json)


@command.command()
@click.argument("request_id", metavar="[ID]", required=False)
@click.option(
    "--worker", metavar="ID", help="Resolve all such requests of this server process, except those with a cost."
)
@click.option("--cost", metavar="USD", help="What it cost, e.g. 0.12; with --worker, each of them.")
@click.option("--void", is_flag=True, help="Nothing was sent: the count is given back.")
@yes_option
@with_client
def resolve(
    client: ManagementClient,
    request_id: str | None,
    *,
    worker: str | None,
    cost: str | None,
    void: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Correct a request whose outcome is unknown, because its server died.

    Sums, counters and limits are corrected with it. Doing so again changes nothing. --worker asks for confirmation.
    """
    if (request_id is None) == (worker is None):
        raise WrongUsage("give either ID or --worker")
    if (cost is None) != void:
        raise WrongUsage("give either --cost or --void")
    body: dict[str, object] = {"void": True} if cost is None else {"cost": cost}
    if request_id is not None:
        found = [client.post(path("requests", request_id, "resolve"), body)]
    else:
        unknown = [one for one in client.list(path("requests"), outcome="unknown") if one["worker_id"] == worker]
        if not unknown:
            raise CommandFailed(
                f"no request of the worker {worker!r} has the outcome 'unknown'; 'llm-proxy manage request list"
                " --outcome unknown --json' shows those that have, with their worker_id"
            )
        # One that has a cost was resolved by its ID.
        ids = [one["id"] for one in unknown if one["cost"] is None]
        if ids:
            how = "void" if cost is None else f"a cost of {cost} USD each"
            what = f"{len(ids)} request{'s' * (len(ids) != 1)} of the worker {worker!r}"
            confirm(f"Resolve {what} as {how}? It cannot be undone.", yes=yes)
        found = [client.post(path("requests", one, "resolve"), body) for one in ids]
    rows = [(one["id"], one["outcome"], one["cost"]) for one in found]
    print_table(found, ("ID", "OUTCOME", "COST"), rows, numbers=("COST",), as_json=as_json)


@click.group("refusal", cls=Group)
def refusals() -> None:
    """Show refused requests, recorded if RECORD_REFUSALS is set."""


@refusals.command("list")
@click.option("--project-id", metavar="ID", help="List only requests of this project.")
@click.option("--token-id", metavar="ID", help="List only requests with this token.")
@click.option("--code", metavar="CODE", help="List only requests with this error, e.g. request_limit_exceeded.")
@list_options("requests")
@with_client
def list_refused(client: ManagementClient, *, limit: int, as_csv: bool, as_json: bool, **query: str | None) -> None:
    """List refused requests, the newest first.

    The server records them only if its setting RECORD_REFUSALS is true. TIME is a day in UTC, e.g. 2030-01-31, or a
    time, e.g. 2030-01-31T12:00:00Z. The ID of a project or a token can be its name.
    """
    if as_csv:
        print_csv(client, "refusals", query, as_json=as_json)
        return
    found = first(client, path("refusals"), limit, "refusals", f"newest {limit}", **query)
    if not found:
        click.echo("There are none. The server records refused requests only if RECORD_REFUSALS is true.", err=True)
    names = ("id", "code", "status", "limit_id", "token_id", "model", "address", "method", "path")
    rows = [(timestamp(one["refused_at"]), *(one[name] or None for name in names)) for one in found]
    titles = ("TIME", "ID", "CODE", "STATUS", "LIMIT ID", "TOKEN ID", "MODEL", "ADDRESS", "METHOD", "PATH")
    print_table(found, titles, rows, numbers=("STATUS",), as_json=as_json)
