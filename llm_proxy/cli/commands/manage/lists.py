"""What the commands that list something share: their options, filters by label, CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, TypeVar

import click

from llm_proxy.cli.client import ManagementClient, path
from llm_proxy.cli.failures import WrongUsage
from llm_proxy.cli.output import printable, warn

F = TypeVar("F", bound=Callable[..., Any])


def list_options(names: str) -> Callable[[F], F]:
    """Add `--from`, `--to`, `--limit` and `--csv` to a command that lists what `names` says, the newest first."""
    options = (
        click.option("--csv", "as_csv", is_flag=True, help=f"Print all {names} as CSV, without a limit."),
        click.option(
            "--limit",
            type=click.IntRange(min=1),
            metavar="N",
            default=100,
            show_default=True,
            help=f"Maximum number of {names}.",
        ),
        click.option("--to", metavar="TIME", help=f"List only {names} before this time."),
        click.option("--from", metavar="TIME", help=f"List only {names} at this time or later."),
    )

    def add(function: F) -> F:
        for option in options:
            function = option(function)
        return function

    return add


def read_labels(pairs: Sequence[str]) -> dict[str, str]:
    """Read labels such as `team=search`; raises `WrongUsage`."""
    labels: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise WrongUsage(f"--label {printable(pair)!r} is not KEY=VALUE, such as team=search")
        if key in labels:
            raise WrongUsage(f"the label {printable(key)!r} is given more than once")
        labels[key] = value
    return labels


def label_filters(pairs: Sequence[str]) -> dict[str, str]:
    """Read labels, as parameters of the API that select by them."""
    return {f"label.{key}": value for key, value in read_labels(pairs).items()}


def first(
    client: ManagementClient, place: str, limit: int, names: str, which: str, **query: object
) -> list[dict[str, Any]]:
    """GET the first entries of a list, and warn if there are more; `names` and `which` are for the warning."""
    entries = client.list(place, **query)
    found = list(islice(entries, limit))
    if next(entries, None) is not None:
        warn(f"there are more {names}; these are the {which}. Give a higher --limit, or --csv for all")
    return found


def print_csv(client: ManagementClient, name: str, query: dict[str, Any], *, as_json: bool) -> None:
    """Print a whole list as CSV."""
    if as_json:
        raise WrongUsage("only one of --csv and --json can be given")
    for text in client.csv(path(*name.split("/")), **query):
        click.echo(text, nl=False)
