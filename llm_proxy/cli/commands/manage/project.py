"""`llm-proxy manage project`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from llm_proxy.cli.client import ManagementClient, path, with_client
from llm_proxy.cli.failures import WrongUsage
from llm_proxy.cli.options import json_option
from llm_proxy.cli.output import print_record, print_table, timestamp
from llm_proxy.cli.program import Group

F = TypeVar("F", bound=Callable[..., Any])


_CREDENTIAL = "Credential that it uses, by ID or name; repeat it for several providers."


def api_key_option(function: F) -> F:
    return click.option(
        "--api-key",
        metavar="KEY",
        help="API key of the provider; '-' reads it from stdin.  [default: ask on a terminal, else read stdin]",
    )(function)


def read_api_key(given: str | None) -> str:
    if given is not None and given != "-":
        return given
    asked = given is None and sys.stdin.isatty()
    key = click.prompt("API key", hide_input=True, err=True) if asked else sys.stdin.readline()
    if key.lstrip().startswith("{"):
        key += sys.stdin.read()
    if not key.strip():
        raise WrongUsage("no API key was given; pass it on stdin, or with --api-key")
    return key.strip()


@click.group("project", cls=Group)
def command() -> None:
    """Manage projects, which use API keys of providers.

    ID is the project's id or its name.
    """


@command.command("list")
@json_option
@with_client
def list_(client: ManagementClient, *, as_json: bool) -> None:
    """List all projects, the newest first."""
    found = list(client.list(path("projects")))
    rows = [(p["id"], p["name"], p["provider"], _key(p), _state(p)) for p in found]
    print_table(found, ("ID", "NAME", "PROVIDER", "KEY", "STATE"), rows, as_json=as_json)


@command.command()
@click.argument("project_id", metavar="ID")
@json_option
@with_client
def get(client: ManagementClient, project_id: str, *, as_json: bool) -> None:
    """Show a project."""
    _show(client.get(path("projects", project_id)), as_json=as_json)


@command.command()
@click.option("--name", required=True, metavar="NAME", help="Name of the project; must be unique.")
@api_key_option
@click.option("--credential", "credentials", multiple=True, metavar="ID", help=f"{_CREDENTIAL} Replaces --api-key.")
@click.option(
    "--provider", metavar="PROVIDER", help="Provider of the API key, e.g. gemini.  [default: the server's default]"
)
@json_option
@with_client
def create(
    client: ManagementClient,
    name: str,
    api_key: str | None,
    credentials: tuple[str, ...],
    provider: str | None,
    *,
    as_json: bool,
) -> None:
    """Create a project.

    Its API key is stored encrypted and is not shown again.
    """
    if credentials and api_key is not None:
        raise WrongUsage("give --api-key or --credential, not both")
    body: dict[str, object] = {"name": name}
    body |= {"credentials": credentials} if credentials else {"api_key": read_api_key(api_key)}
    body |= {} if provider is None else {"provider": provider}
    _show(client.post(path("projects"), body), as_json=as_json)


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
@json_option
@with_client
def update(client: ManagementClient, project_id: str, *, as_json: bool, **options: Any) -> None:
    """Change a project, from its next request on."""
    changes = {name: value for name, value in options.items() if value not in (None, ())}
    if "api_key" in changes:
        changes["api_key"] = read_api_key(changes["api_key"])
    if not changes:
        raise WrongUsage("nothing to change; give --name, --api-key, --credential or --provider")
    _show(client.patch(path("projects", project_id), changes), as_json=as_json)


@command.command()
@click.argument("project_id", metavar="ID")
@json_option
@with_client
def activate(client: ManagementClient, project_id: str, *, as_json: bool) -> None:
    """Activate a project: its tokens are accepted again."""
    _show(client.patch(path("projects", project_id), {"active": True}), as_json=as_json)


@command.command()
@click.argument("project_id", metavar="ID")
@json_option
@with_client
def deactivate(client: ManagementClient, project_id: str, *, as_json: bool) -> None:
    """Deactivate a project: its tokens are rejected until it is active again."""
    _show(client.patch(path("projects", project_id), {"active": False}), as_json=as_json)


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    fields = {
        "id": found["id"],
        "name": found["name"],
        "provider": found["provider"],
        "API key": _key(found),
        "credentials": ", ".join(f"{one['name']} ({one['provider']})" for one in found["credentials"]) or None,
        "state": _state(found),
        "created": timestamp(found["created_at"]),
        "changed": timestamp(found["updated_at"]),
    }
    print_record(found, fields, as_json=as_json)


def _key(found: dict[str, Any]) -> str:
    return f"…{found['api_key_last4']}"


def _state(found: dict[str, Any]) -> str:
    return "active" if found["active"] else "inactive"
