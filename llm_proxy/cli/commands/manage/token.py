"""`llm-proxy manage token`."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from functools import partial
from typing import Any

import click

from llm_proxy.cli.client import ManagementClient, path, with_client
from llm_proxy.cli.commands.manage import limit
from llm_proxy.cli.commands.manage.lists import read_labels
from llm_proxy.cli.failures import WrongUsage
from llm_proxy.cli.options import confirm, models_option, yes_option
from llm_proxy.cli.output import print_json, print_record, print_table, printable, timestamp
from llm_proxy.cli.program import Group
from llm_proxy.config import parse_duration

#: Seconds. The API has the same limit; its own constant is not imported, because that imports the web framework.
_LONGEST_LIFE = 3653 * 86400


def _minutes(text: str) -> int:
    """Parse a token's lifetime, rounded up to whole minutes."""
    try:
        seconds = parse_duration(text)
    except ValueError:
        seconds = 0.0
    if not 60 <= seconds <= _LONGEST_LIFE:
        raise click.BadParameter(f"{text!r} is not a duration from a minute to ten years, such as 30d, 12h or 90m")
    return math.ceil(seconds / 60)


def _number(text: str) -> int:
    """Parse a number of requests; 0 for 'unlimited'."""
    if text == "unlimited":
        return 0
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise click.BadParameter(f"{text!r} is not allowed; give 1 or more, or 'unlimited'")
    return number


_DURATION_HELP = "Lifetime from now on, from 1m to ten years, e.g. 30d, 12h or 90m."
_EXPIRES_HELP = "Time of expiry, e.g. 2030-01-31T12:00:00Z."
_LABEL_HELP = "Label of its requests, KEY=VALUE, e.g. team=search; can be repeated."
_LIMIT_HELP = "Maximum number of requests, e.g. 1000, or 'unlimited'."


@click.group("token", cls=Group)
def command() -> None:
    """Manage tokens, which give access to a project's provider.

    A token is accepted until it expires, is used up, or is revoked. ID is the token's id, its name, or the last four
    characters of its secret.
    """


@command.command()
@click.option("--project-id", required=True, metavar="ID", help="Project whose API key is used.")
@click.option("--name", metavar="NAME", help="Name of the token; need not be unique.")
@click.option("--duration", type=_minutes, metavar="TIME", help=f"{_DURATION_HELP}  [default: 30d]")
@click.option("--expires-at", metavar="TIME", help=_EXPIRES_HELP)
@click.option("--max-requests", type=_number, metavar="N", help=f"{_LIMIT_HELP}  [default: unlimited]")
@click.option("--label", "labels", multiple=True, metavar="LABEL", help=_LABEL_HELP)
@models_option
@limit.limit_options
@with_client
def generate(client: ManagementClient, project_id: str, *, as_json: bool, **options: Any) -> None:
    """Create a token, and its limits. Its secret is shown only once."""
    limits = limit.read_limits(options)
    made = client.post(path("tokens"), {"project_id": project_id} | _body(**options))
    limit.create_limits(client, "token", made, limits, partial(_show, as_json=as_json))


@command.command("list")
@click.option("--project-id", metavar="ID", help="List only tokens of this project.")
@click.option("--active-only", is_flag=True, help="Leave out tokens that are revoked, expired or used up.")
@with_client
def list_(client: ManagementClient, project_id: str | None, *, active_only: bool, as_json: bool) -> None:
    """List tokens, the newest first."""
    query = {"project_id": project_id, "active_only": "true" if active_only else None}
    found = list(client.list(path("tokens"), **query))
    of_all = project_id is None
    projects = {p["id"]: p["name"] for p in client.list(path("projects"))} if of_all and not as_json else {}
    rows = [
        (
            *(t["id"], t["name"] or None, f"…{t['last4']}"),
            *([projects.get(t["project_id"])] if of_all else []),
            *(t["request_count"], _limit(t)),
            *(timestamp(t["expires_at"]), _state(t)),
        )
        for t in found
    ]
    titles = ("ID", "NAME", "TOKEN", *(["PROJECT"] if of_all else []), "USED", "LIMIT", "EXPIRES", "STATE")
    print_table(found, titles, rows, numbers=("USED", "LIMIT"), as_json=as_json)


@command.command()
@click.argument("token_id", metavar="ID")
@with_client
def get(client: ManagementClient, token_id: str, *, as_json: bool) -> None:
    """Show a token, its limits, and how its secret ends."""
    _show(limit.with_limits(client, "token", client.get(path("tokens", token_id))), as_json=as_json)


@command.command()
@click.argument("token_id", metavar="ID")
@click.option("--name", metavar="NAME", help="New name.")
@click.option("--duration", type=_minutes, metavar="TIME", help=_DURATION_HELP)
@click.option("--expires-at", metavar="TIME", help=_EXPIRES_HELP)
@click.option("--max-requests", type=_number, metavar="N", help=_LIMIT_HELP)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="LABEL",
    help=f"{_LABEL_HELP} Replaces all; 'none': no label.",
)
@models_option
@with_client
def update(client: ManagementClient, token_id: str, *, as_json: bool, **options: Any) -> None:
    """Change a token, from its next request on."""
    changes = _body(**options)
    if not changes:
        raise WrongUsage(
            "nothing to change; give --name, --duration, --expires-at, --max-requests, --label or --models"
        )
    _show(client.patch(path("tokens", token_id), changes), as_json=as_json)


@command.command()
@click.argument("token_id", metavar="ID")
@partial(with_client, prints_json=False)
def revoke(client: ManagementClient, token_id: str) -> None:
    """Revoke a token: its next request is rejected."""
    client.delete(path("tokens", token_id))
    click.echo(f"Token {token_id} is revoked.")


@command.command("revoke-all")
@click.argument("project_id", metavar="PROJECT_ID")
@yes_option
@with_client
def revoke_all(client: ManagementClient, project_id: str, *, yes: bool, as_json: bool) -> None:
    """Revoke every active token of a project."""
    if not yes:
        project = client.get(path("projects", project_id))
        active = sum(token["active"] for token in client.list(path("tokens"), project_id=project_id))
        confirm(f"Revoke {active} token{'s' * (active != 1)} of the project {printable(project['name'])}?", yes=False)
    answer = client.post(path("projects", project_id, "tokens", "revoke"))
    if as_json:
        print_json(answer)
    else:
        click.echo(f"Tokens revoked: {answer['revoked']}")


@command.command()
@click.argument("token_id", metavar="ID")
@with_client
def rotate(client: ManagementClient, token_id: str, *, as_json: bool) -> None:
    """Replace the secret of a token.

    The new secret is shown only once. The old one is rejected from now on.
    """
    _show(client.post(path("tokens", token_id, "rotate")), as_json=as_json)


def _body(
    name: str | None,
    duration: int | None,
    expires_at: str | None,
    max_requests: int | None,
    labels: tuple[str, ...],
    models: list[str] | None,
) -> dict[str, object]:
    if duration is not None and expires_at is not None:
        raise WrongUsage("--duration and --expires-at cannot be used together; give one of them")
    body = {"name": name, "duration_minutes": duration, "expires_at": expires_at, "max_requests": max_requests}
    given: dict[str, object] = {key: value for key, value in body.items() if value is not None}
    if labels:
        given["labels"] = {} if labels == ("none",) else read_labels(labels)
    if models is not None:
        given["models"] = models or None
    return given | ({"max_requests": None} if max_requests == 0 else {})


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    """Print a token, with its secret if the response has it."""
    secret = {"token": found["token"]} if "token" in found else {}
    fields = {
        "id": found["id"],
        "project": found["project_id"],
        "name": found["name"] or None,
        "ends in": found["last4"],
        "state": _state(found),
        "labels": ", ".join(f"{key}={value}" for key, value in found["labels"].items()) or None,
        "models": ", ".join(found["models"] or ()) or "all",
        "requests": f"{found['request_count']} of {_limit(found)}",
        "expires": timestamp(found["expires_at"]),
        "created": timestamp(found["created_at"]),
        "last used": timestamp(found["last_used_at"]),
        "revoked": timestamp(found["revoked_at"]),
        **limit.described(found),
    }
    print_record(found, secret | fields, as_json=as_json)
    if secret and not as_json:
        click.echo("The token is shown only once; only its digest is stored.", err=True)


def _limit(found: dict[str, Any]) -> object:
    return "unlimited" if found["max_requests"] is None else found["max_requests"]


def _state(found: dict[str, Any]) -> str:
    if not found["active"]:
        return "revoked"
    if found["expires_at"] is not None and datetime.fromisoformat(found["expires_at"]) <= datetime.now(UTC):
        return "expired"
    if found["max_requests"] is not None and found["request_count"] >= found["max_requests"]:
        return "used up"
    return "active"
