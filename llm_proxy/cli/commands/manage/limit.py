"""`llm-proxy manage limit`, and the limits that a new token or project gets at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Any, TypeVar

import click

from llm_proxy.cli.client import ManagementClient, path, with_client
from llm_proxy.cli.failures import CommandFailed, WrongUsage
from llm_proxy.cli.options import confirm, yes_option
from llm_proxy.cli.output import print_record, print_table, timestamp
from llm_proxy.cli.program import Group

F = TypeVar("F", bound=Callable[..., Any])

_WINDOWS = ("total", "minute", "hour", "day", "week", "month")
_MONEY = re.compile(r"[0-9]{1,7}(\.[0-9]{1,9})?")
_METRICS = ("requests", "tokens", "input_tokens", "output_tokens", "cost", "concurrency")
#: The columns of a list that are left out if no limit has anything in them.
_OFTEN_EMPTY = ("UNKNOWN", "UNPRICED", "MODELS", "WARN AT")


@click.group("limit", cls=Group)
def command() -> None:
    """Manage limits: budgets, rates, concurrency.

    ID is the limit's id.
    """


_amount_option = partial(click.option, "--amount", metavar="AMOUNT")
_AMOUNT_HELP = "The limit: a number, or USD if the metric is cost, e.g. 50 or 50.00."
_POLICY_HELP = (
    "settled: count usage when the request ends (default); reserved: reserve the worst case before the request starts;"
    " warn: log only."
)
_wait_option = partial(click.option, "--wait", metavar="TIME")
_WAIT_HELP = (
    "Maximum time that a request waits for running requests, e.g. 5s; for the policy reserved and the metric"
    " concurrency."
)
_unpriced_option = partial(click.option, "--unpriced", type=click.Choice(["refuse", "allow"]))
_UNPRICED_HELP = "Whether models without a price are admitted; for the metric cost."


@command.command("set")
@click.option("--token-id", metavar="ID", help="Token that is limited: its ID, name or last four characters.")
@click.option("--project-id", metavar="ID", help="Project that is limited: its ID or name.")
@click.option("--metric", type=click.Choice(_METRICS), required=True, help="What is limited.")
@click.option("--window", type=click.Choice(_WINDOWS), help="Calendar period in UTC; not for the metric concurrency.")
@_amount_option(required=True, help=_AMOUNT_HELP)
@click.option(
    "--model", "models", metavar="PATTERN", multiple=True, help="Only requests for this model count; can be repeated."
)
@click.option("--policy", type=click.Choice(["settled", "reserved", "warn"]), help=_POLICY_HELP)
@_wait_option(help=f"{_WAIT_HELP}  [default: 0s; for concurrency 1s]")
@click.option(
    "--warn-at",
    type=click.IntRange(1, 100),
    metavar="PERCENT",
    help="Percentage at which a warning is logged.  [default: never]",
)
@_unpriced_option(help=f"{_UNPRICED_HELP}  [default: refuse]")
@click.option(
    "--backfill/--no-backfill", default=None, help="Whether earlier requests of this period count.  [default: backfill]"
)
@with_client
def set_(client: ManagementClient, *, as_json: bool, amount: str, models: tuple[str, ...], **given: Any) -> None:
    """Create a limit of a token, of a project, or of the whole proxy.

    Without --token-id and --project-id, all requests count. The next request on every server is judged by the limit.

    For example, 50 USD per month: --project-id website --metric cost --window month --amount 50
    """
    body = {"amount": _amount(amount)} | {name: value for name, value in given.items() if value is not None}
    if models:
        body["models"] = models
    _show(client, client.post(path("limits"), body), as_json=as_json)


@command.command()
@click.argument("limit_id", metavar="ID")
@_amount_option(help=_AMOUNT_HELP)
@_wait_option(help=_WAIT_HELP)
@click.option("--warn-at", metavar="PERCENT", help="Percentage at which a warning is logged; 'never': do not warn.")
@_unpriced_option(help=_UNPRICED_HELP)
@with_client
def update(
    client: ManagementClient, limit_id: str, *, as_json: bool, amount: str | None, warn_at: str | None, **given: Any
) -> None:
    """Change a limit, from the next request on. What it has counted stays.

    To change what it counts, delete it and create another one.
    """
    changes = {name: value for name, value in given.items() if value is not None}
    if amount is not None:
        changes["amount"] = _amount(amount)
    if warn_at is not None:
        changes["warn_at"] = None if warn_at == "never" else _amount(warn_at)
    if not changes:
        raise WrongUsage("nothing to change; give --amount, --wait, --warn-at or --unpriced")
    _show(client, client.patch(path("limits", limit_id), changes), as_json=as_json)


@command.command("list")
@click.option("--token-id", metavar="ID", help="List only limits of this token.")
@click.option("--project-id", metavar="ID", help="List only limits of this project and its tokens.")
@with_client
def list_(client: ManagementClient, *, as_json: bool, **query: str | None) -> None:
    """List limits, the newest first, with what is used of each."""
    found = list(client.list(path("limits"), **query))
    titles, rows = columns(found, {} if as_json else _scopes(client, found))
    print_table(
        found, titles, rows, numbers=("USED", "RESERVED", "UNKNOWN", "UNPRICED", "AMOUNT", "WARN AT"), as_json=as_json
    )


@command.command()
@click.argument("limit_id", metavar="ID")
@yes_option
@partial(with_client, prints_json=False)
def delete(client: ManagementClient, limit_id: str, *, yes: bool) -> None:
    """Delete a limit and what it has counted."""
    if not yes:
        found = client.get(path("limits", limit_id))
        whose = _scopes(client, [found]).get(_subject(found), "this proxy")
        confirm(f"Delete the limit of {_described(found)} of {whose}?", yes=False)
    client.delete(path("limits", limit_id))
    click.echo(f"Limit {limit_id} is deleted.")


def columns(
    found: Sequence[Mapping[str, Any]], scopes: Mapping[str, str]
) -> tuple[Sequence[str], list[tuple[object, ...]]]:
    """The titles and the rows of a list of limits; `scopes` has the names of tokens and projects by their ids."""
    rows = [
        {
            "ID": one["id"],
            "SCOPE": scopes.get(_subject(one), "proxy"),
            "METRIC": one["metric"],
            "WINDOW": None if one["metric"] == "concurrency" else one["window"],
            "MODELS": ", ".join(one["models"] or ()) or None,
            "POLICY": one["policy"],
            "USED": _shown(one, "used"),
            "RESERVED": _shown(one, "reserved"),
            "UNKNOWN": _shown(one, "unknown") if Decimal(one["unknown"]) else None,
            "UNPRICED": one["unpriced_requests"] or None,
            "AMOUNT": _shown(one, "amount"),
            "WARN AT": _percent(one["warn_at"]),
            "RESETS": timestamp(one["resets_at"]),
        }
        for one in found
    ]
    titles: tuple[str, ...] = ("ID", "SCOPE", "METRIC", "WINDOW", "MODELS", "POLICY")
    titles += ("USED", "RESERVED", "UNKNOWN", "UNPRICED", "AMOUNT", "WARN AT", "RESETS")
    empty = {title for title in _OFTEN_EMPTY if all(row[title] is None for row in rows)}
    if all(row["POLICY"] == "settled" for row in rows):
        empty.add("POLICY")
    shown = [title for title in titles if title not in empty]
    return shown, [tuple(row[title] for title in shown) for row in rows]


def _scopes(client: ManagementClient, found: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The tokens and projects of limits, by their ids."""
    scopes: dict[str, str] = {}
    for one in found:
        if one["project_id"] and one["project_id"] not in scopes:
            scopes[one["project_id"]] = f"project {client.get(path('projects', one['project_id']))['name']}"
        elif one["token_id"] and one["token_id"] not in scopes:
            token = client.get(path("tokens", one["token_id"]))
            scopes[one["token_id"]] = f"token {token['name'] or '…' + token['last4']}"
    return scopes


def _subject(found: Mapping[str, Any]) -> str:
    return str(found["token_id"] or found["project_id"])


def _show(client: ManagementClient, found: dict[str, Any], *, as_json: bool) -> None:
    fields: dict[str, object] = {
        "id": found["id"],
        "scope": None if as_json else _scopes(client, [found]).get(_subject(found), "proxy"),
        "limit": _described(found),
        "models": ", ".join(found["models"] or ()) or "all",
        "policy": found["policy"],
        "wait": found["wait"],
        "warn at": _percent(found["warn_at"]),
    }
    if found["metric"] == "cost":
        fields["unpriced"] = found["unpriced"]
    fields |= {name: _shown(found, name) for name in ("used", "reserved")}
    print_record(found, {**fields, "resets": timestamp(found["resets_at"])}, as_json=as_json)


def _described(found: Mapping[str, Any]) -> str:
    """A limit in a few words, such as `$50.00 per month`."""
    amount = _shown(found, "amount")
    if found["metric"] == "concurrency":
        return f"{amount} concurrent requests"
    what = amount if found["metric"] == "cost" else f"{amount} {found['metric'].replace('_', ' ')}"
    return f"{what} in total" if found["window"] == "total" else f"{what} per {found['window']}"


def _shown(found: Mapping[str, Any], name: str) -> object:
    if found["metric"] != "cost":
        return found[name]
    whole, _, fraction = str(found[name]).partition(".")
    return f"${int(whole):,}.{fraction.rstrip('0'):0<2}"


def _percent(number: int | None) -> str | None:
    return None if number is None else f"{number} %"


def _amount(text: str) -> int | str:
    """Whole numbers as such, which all metrics take; the API judges everything else."""
    return int(text) if text.isascii() and text.isdecimal() else text


def _budget(text: str) -> dict[str, object]:
    amount, slash, window = text.partition("/")
    if not _MONEY.fullmatch(amount) or (slash and window not in _WINDOWS):
        raise click.BadParameter(
            f"{text!r} is not a budget; give USD and a period, such as 50/month or 2.50/day (periods:"
            f" {', '.join(_WINDOWS)})"
        )
    return {"metric": "cost", "window": window or "total", "amount": amount}


_at_least_one = click.IntRange(min=1)


def limit_options(function: F) -> F:
    """Add the options of a new token's or project's limits, for `read_limits`."""
    for option in (
        click.option(
            "--concurrency", type=_at_least_one, metavar="N", help="Maximum number of concurrent requests, e.g. 4."
        ),
        click.option(
            "--tpm", type=_at_least_one, metavar="N", help="Maximum number of tokens per minute, e.g. 100000."
        ),
        click.option("--rpm", type=_at_least_one, metavar="N", help="Maximum number of requests per minute, e.g. 60."),
        click.option(
            "--budget",
            "budgets",
            type=_budget,
            multiple=True,
            metavar="USD/PERIOD",
            help="Maximum cost, e.g. 50/month; without a period in total; can be repeated.",
        ),
    ):
        function = option(function)
    return function


def read_limits(options: dict[str, Any]) -> list[dict[str, object]]:
    """Take the options of `limit_options` out of all options: the limits to create."""
    limits: list[dict[str, object]] = list(options.pop("budgets"))
    for option, fields in (
        ("rpm", {"metric": "requests", "window": "minute"}),
        ("tpm", {"metric": "tokens", "window": "minute"}),
        ("concurrency", {"metric": "concurrency"}),
    ):
        amount = options.pop(option)
        if amount is not None:
            limits.append({**fields, "amount": amount})
    return limits


def create_limits(
    client: ManagementClient,
    kind: str,
    found: dict[str, Any],
    limits: Sequence[dict[str, object]],
    show: Callable[[dict[str, Any]], None],
) -> None:
    """Create the limits of a new token or project, then show it: also if a limit could not be created."""
    made: list[dict[str, Any]] = []
    failure: CommandFailed | None = None
    for limit in limits:
        try:
            made.append(client.post(path("limits"), {f"{kind}_id": found["id"], **limit}))
        except CommandFailed as error:
            failure = error
            break
    show(found | {"limits": made} if limits else found)
    if failure is not None:
        missing = "; ".join(_described(limit) for limit in limits[len(made) :])
        raise CommandFailed(
            f"the {kind} {found['id']} was created, but not its limit of {missing}: {failure.message}; create what is"
            f" missing with 'llm-proxy manage limit set --{kind}-id {found['id']}'"
        )


def with_limits(client: ManagementClient, kind: str, found: dict[str, Any]) -> dict[str, Any]:
    """Add the limits of a token or a project, oldest first, if it has any; those of a project's tokens are left out."""
    listed = client.list(path("limits"), **{f"{kind}_id": found["id"]})
    own = [one for one in listed if one[f"{kind}_id"] == found["id"]]
    return found | {"limits": own[::-1]} if own else found


def described(found: Mapping[str, Any]) -> dict[str, str]:
    """The limits of a token or a project, for people."""
    return {"limits": ", ".join(map(_described, found["limits"])) or "none"} if "limits" in found else {}
