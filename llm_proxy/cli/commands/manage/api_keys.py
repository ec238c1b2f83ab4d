"""What the commands of projects and credentials share: both have an API key, and are active or not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import click

from llm_proxy.cli.client import ManagementClient, path, with_client
from llm_proxy.cli.failures import WrongUsage
from llm_proxy.cli.output import print_record, timestamp

api_key_option = click.option(
    "--api-key",
    metavar="KEY",
    help="API key of the provider; '-' reads it from stdin.  [default: ask on a terminal, else read stdin]",
)


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


def add_commands(group: click.Group, kind: str, show: Callable[..., None], active: str, inactive: str) -> None:
    """Add `activate` and `deactivate`; the last two texts complete the help of the two commands."""

    def add(name: str, text: str, changes: dict[str, bool]) -> None:
        @group.command(name, help=text)
        @click.argument("identity", metavar="ID")
        @with_client
        def _(client: ManagementClient, identity: str, *, as_json: bool) -> None:
            show(client.patch(path(f"{kind}s", identity), changes), as_json=as_json)

    add("activate", f"Activate a {kind}: {active}.", {"active": True})
    add("deactivate", f"Deactivate a {kind}: {inactive}.", {"active": False})


def print_one(found: dict[str, Any], more: Mapping[str, object], *, as_json: bool) -> None:
    """Print a project or a credential; `more` has the fields that only one of them has."""
    first = {name: found[name] for name in ("id", "name", "provider")} | {"API key": last4(found)}
    times = {"created": timestamp(found["created_at"]), "changed": timestamp(found["updated_at"])}
    print_record(found, {**first, **more, "state": state(found), **times}, as_json=as_json)


def last4(found: dict[str, Any]) -> str | None:
    """The end of the API key; None for a document, of which nothing is shown."""
    return f"…{found['api_key_last4']}" if found["api_key_last4"] else None


def state(found: dict[str, Any]) -> str:
    return "active" if found["active"] else "inactive"
