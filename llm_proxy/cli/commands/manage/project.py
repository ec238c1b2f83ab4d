"""`llm-proxy manage project`."""

from __future__ import annotations

import sys
from typing import Any

import click

from llm_proxy.cli.client import ManagementClient
from llm_proxy.cli.commands.manage.connection import entries, json_option, path, with_client
from llm_proxy.cli.failures import WrongUsage
from llm_proxy.cli.output import Column, moment, print_json, record, table
from llm_proxy.cli.program import Group

_COLUMNS = [
    Column("ID"),
    Column("NAME"),
    Column("PROVIDER"),
    Column("KEY"),
    Column("STATE"),
]


@click.group("project", cls=Group)
def command() -> None:
    """Projects, which hold a provider's API key."""


@command.command("list")
@json_option
@with_client
def list_(client: ManagementClient, *, as_json: bool) -> None:
    """List all projects, the newest first."""
    found = list(entries(client, path("projects")))
    if as_json:
        print_json(found)
    else:
        rows = [(p["id"], p["name"], p["provider"], _key(p), _state(p)) for p in found]
        click.echo(table(_COLUMNS, rows))


@command.command()
@click.argument("project_id", metavar="ID")
@json_option
@with_client
def get(client: ManagementClient, project_id: str, *, as_json: bool) -> None:
    """Show a project."""
    _show(client.get(path("projects", project_id)), as_json=as_json)


@command.command()
@click.option("--name", required=True, metavar="NAME", help="Unique among all projects.")
@click.option(
    "--api-key",
    metavar="KEY",
    help="The provider's API key; '-' reads it from stdin.  [default: asks for it, or reads stdin]",
)
@click.option("--provider", metavar="PROVIDER", help="Whose key it is.  [default: the server's default provider]")
@json_option
@with_client
def create(client: ManagementClient, name: str, api_key: str | None, provider: str | None, *, as_json: bool) -> None:
    """Create a project. Its API key is stored encrypted, and never shown again."""
    body = {"name": name, "api_key": _api_key(api_key)} | ({} if provider is None else {"provider": provider})
    _show(client.post(path("projects"), body), as_json=as_json)


@command.command()
@click.argument("project_id", metavar="ID")
@click.option("--name", metavar="NAME", help="A new name.")
@click.option("--api-key", metavar="KEY", help="A new API key; '-' reads it from stdin.")
@click.option("--provider", metavar="PROVIDER", help="Another provider; needs --api-key as well.")
@json_option
@with_client
def update(
    client: ManagementClient,
    project_id: str,
    name: str | None,
    api_key: str | None,
    provider: str | None,
    *,
    as_json: bool,
) -> None:
    """Change a project; it holds from the next request on."""
    body = {"name": name, "api_key": None if api_key is None else _api_key(api_key), "provider": provider}
    changes = {key: value for key, value in body.items() if value is not None}
    if not changes:
        raise WrongUsage("nothing to change; give --name, --api-key or --provider")
    _show(client.patch(path("projects", project_id), changes), as_json=as_json)


@command.command()
@click.argument("project_id", metavar="ID")
@json_option
@with_client
def activate(client: ManagementClient, project_id: str, *, as_json: bool) -> None:
    """Let a project's tokens open requests again."""
    _show(client.patch(path("projects", project_id), {"active": True}), as_json=as_json)


@command.command()
@click.argument("project_id", metavar="ID")
@json_option
@with_client
def deactivate(client: ManagementClient, project_id: str, *, as_json: bool) -> None:
    """Stop all of a project's tokens, until it is activated again."""
    _show(client.patch(path("projects", project_id), {"active": False}), as_json=as_json)


def _api_key(given: str | None) -> str:
    """Take the key from the option, from whoever sits at the terminal, or from a pipe."""
    if given is not None and given != "-":
        return given
    asked = given is None and sys.stdin.isatty()
    key = click.prompt("API key", hide_input=True, err=True) if asked else sys.stdin.readline()
    if not key.strip():
        raise WrongUsage("no API key was given; pass it on stdin, or with --api-key")
    return key.strip()


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    fields = {
        "id": found["id"],
        "name": found["name"],
        "provider": found["provider"],
        "API key": _key(found),
        "state": _state(found),
        "created": moment(found["created_at"]),
        "changed": moment(found["updated_at"]),
    }
    click.echo(record(fields))


def _key(found: dict[str, Any]) -> str:
    return f"…{found['api_key_last4']}"


def _state(found: dict[str, Any]) -> str:
    return "active" if found["active"] else "inactive"
