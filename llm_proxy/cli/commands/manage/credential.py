"""`llm-proxy manage credential`."""

from __future__ import annotations

from typing import Any

import click

from llm_proxy.cli.client import ManagementClient, path, with_client
from llm_proxy.cli.commands.manage.api_keys import add_commands, api_key_option, last4, print_one, read_api_key, state
from llm_proxy.cli.output import print_table
from llm_proxy.cli.program import Group


@click.group("credential", cls=Group)
def command() -> None:
    """Manage credentials: API keys that projects share.

    ID is the credential's id, its name, or the last four characters of its key.
    """


@command.command("list")
@click.option("--provider", metavar="PROVIDER", help="List only credentials of this provider.")
@with_client
def list_(client: ManagementClient, provider: str | None, *, as_json: bool) -> None:
    """List credentials, the newest first."""
    found = list(client.list(path("credentials"), provider=provider))
    rows = [(c["id"], c["name"], c["provider"], last4(c), c["projects"], state(c)) for c in found]
    titles = ("ID", "NAME", "PROVIDER", "KEY", "PROJECTS", "STATE")
    print_table(found, titles, rows, numbers=("PROJECTS",), as_json=as_json)


@command.command()
@click.option("--name", required=True, metavar="NAME", help="Name of the credential; must be unique.")
@click.option("--provider", required=True, metavar="PROVIDER", help="Provider of the API key.")
@api_key_option
@with_client
def create(client: ManagementClient, api_key: str | None, *, as_json: bool, **fields: str) -> None:
    """Create a credential.

    Its API key is stored encrypted and is not shown again.
    """
    _show(client.post(path("credentials"), fields | {"api_key": read_api_key(api_key)}), as_json=as_json)


@command.command()
@click.argument("credential_id", metavar="ID")
@api_key_option
@with_client
def rotate(client: ManagementClient, credential_id: str, api_key: str | None, *, as_json: bool) -> None:
    """Replace the API key, for all projects that use it."""
    body = {"api_key": read_api_key(api_key)}
    _show(client.post(path("credentials", credential_id, "rotate"), body), as_json=as_json)


@command.command()
@click.argument("credential_id", metavar="ID")
@with_client
def get(client: ManagementClient, credential_id: str, *, as_json: bool) -> None:
    """Show a credential."""
    _show(client.get(path("credentials", credential_id)), as_json=as_json)


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    print_one(found, {"projects": found["projects"]}, as_json=as_json)


add_commands(
    command, "credential", _show, "requests that need it are accepted again", "requests that need it are rejected"
)
