"""`llm-proxy manage project`."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from llm_proxy.cli.client import ManagementClient, path, with_client
from llm_proxy.cli.commands.manage import limit
from llm_proxy.cli.commands.manage.api_keys import add_commands, api_key_option, last4, print_one, read_api_key, state
from llm_proxy.cli.failures import WrongUsage
from llm_proxy.cli.options import models_option
from llm_proxy.cli.output import print_table
from llm_proxy.cli.program import Group

_CREDENTIAL = "Credential that it uses, by ID or name; repeat it for several providers."
_stream_usage_option = click.option(
    "--stream-usage",
    type=click.Choice(["ask", "off", "default"]),
    help="Whether streams of chats are asked for their token usage; 'default' is the setting of the provider.",
)


@click.group("project", cls=Group)
def command() -> None:
    """Manage projects, which use API keys of providers.

    ID is the project's id or its name.
    """


@command.command("list")
@with_client
def list_(client: ManagementClient, *, as_json: bool) -> None:
    """List all projects, the newest first."""
    found = list(client.list(path("projects")))
    rows = [(p["id"], p["name"], p["provider"], last4(p), state(p)) for p in found]
    print_table(found, ("ID", "NAME", "PROVIDER", "KEY", "STATE"), rows, as_json=as_json)


@command.command()
@click.option("--name", required=True, metavar="NAME", help="Name of the project; must be unique.")
@api_key_option
@click.option("--credential", "credentials", multiple=True, metavar="ID", help=f"{_CREDENTIAL} Replaces --api-key.")
@click.option(
    "--provider",
    metavar="PROVIDER",
    help="Provider of the API key, e.g. gemini; with --credential, the default provider.  [default: the server's"
    " default]",
)
@_stream_usage_option
@models_option
@limit.limit_options
@with_client
def create(
    client: ManagementClient, api_key: str | None, credentials: tuple[str, ...], *, as_json: bool, **given: Any
) -> None:
    """Create a project, and its limits.

    Its API key is stored encrypted and is not shown again.
    """
    if credentials and api_key is not None:
        raise WrongUsage("give --api-key or --credential, not both")
    limits = limit.read_limits(given)
    fields = {name: value for name, value in given.items() if value not in (None, [])}
    if fields.get("stream_usage") == "default":
        del fields["stream_usage"]
    key = {"credentials": credentials} if credentials else {"api_key": read_api_key(api_key)}
    made = client.post(path("projects"), {**fields, **key})
    limit.create_limits(client, "project", made, limits, partial(_show, as_json=as_json))


@command.command()
@click.argument("project_id", metavar="ID")
@click.option("--name", metavar="NAME", help="New name; must be unique.")
@click.option("--api-key", metavar="KEY", help="New API key; '-' reads it from stdin.")
@click.option("--credential", "credentials", multiple=True, metavar="ID", help=f"{_CREDENTIAL} Replaces all of them.")
@click.option("--provider", metavar="PROVIDER", help="New default provider; requires a credential or --api-key.")
@click.option(
    "--allow-unknown-objects/--refuse-unknown-objects",
    default=None,
    help="Whether its tokens may name files, batches and other objects that no project has created.",
)
@click.option(
    "--allow-request-labels/--ignore-request-labels",
    default=None,
    help="Whether requests may have labels of their own, in headers.",
)
@_stream_usage_option
@models_option
@with_client
def update(client: ManagementClient, project_id: str, *, as_json: bool, **options: Any) -> None:
    """Change a project, from its next request on."""
    changes = {name: value for name, value in options.items() if value not in (None, ())}
    if "api_key" in changes:
        changes["api_key"] = read_api_key(changes["api_key"])
    if changes.get("stream_usage") == "default":
        changes["stream_usage"] = None
    if changes.get("models") == []:
        changes["models"] = None
    if not changes:
        raise WrongUsage("nothing to change; give what to change, e.g. --api-key, --credential or --models")
    _show(client.patch(path("projects", project_id), changes), as_json=as_json)


@command.command()
@click.argument("project_id", metavar="ID")
@with_client
def get(client: ManagementClient, project_id: str, *, as_json: bool) -> None:
    """Show a project, with its limits."""
    _show(limit.with_limits(client, "project", client.get(path("projects", project_id))), as_json=as_json)


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    names = ", ".join(f"{one['name']} ({one['provider']})" for one in found["credentials"])
    more: dict[str, object] = {"credentials": names or None, "models": ", ".join(found["models"] or ()) or "all"}
    if found["allow_request_labels"]:
        more["request labels"] = "allowed"
    if found["allow_unknown_objects"]:
        more["unknown objects"] = "allowed"
    if found["stream_usage"] is not None:
        more["stream usage"] = found["stream_usage"]
    more |= limit.described(found)
    print_one(found, more, as_json=as_json)


add_commands(
    command, "project", _show, "its tokens are accepted again", "its tokens are rejected until it is active again"
)
