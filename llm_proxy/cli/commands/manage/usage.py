"""`llm-proxy manage usage`: reports, with bars for people."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import click

from llm_proxy.cli.client import ManagementClient, path, with_client
from llm_proxy.cli.commands.manage.lists import first, label_filters, print_csv
from llm_proxy.cli.output import print_json, table
from llm_proxy.cli.program import Command

_MILLIONTH = Decimal("0.000001")
_BAR_WIDTH = 20
#: The least width of a bar; without so much room there are no bars.
_LEAST_BAR_WIDTH = 4
#: Parts of a character cell, from the left.
_EIGHTHS = "▏▎▍▌▋▊▉█"
_TIMES = ("hour", "day", "month")
_NUMBERS = {
    "REQUESTS": "requests",
    "ERRORS": "errors",
    "INPUT": "input_tokens",
    "CACHED": "cached_tokens",
    "OUTPUT": "output_tokens",
    "UNPRICED": "unpriced",
    "ESTIMATED": "estimated",
}
#: Columns that are left out if they have only zeros, so that a report fits into a terminal.
_OFTEN_ZERO = ("ERRORS", "CACHED", "UNPRICED", "ESTIMATED")


@click.command("usage", cls=Command)
@click.option(
    "--group-by",
    metavar="LIST",
    default="project,model",
    show_default=True,
    help="What to group by: hour, day, month, project, token, provider, model, requested_model, label.KEY.",
)
@click.option("--from", metavar="TIME", help="Only requests at this time or later.  [default: 30 days ago]")
@click.option("--to", metavar="TIME", help="Only requests before this time.  [default: now]")
@click.option("--project-id", metavar="ID", help="Only requests of this project.")
@click.option("--token-id", metavar="ID", help="Only requests with this token.")
@click.option("--model", metavar="NAME", help="Only requests that this model answered: its exact name.")
@click.option("--provider", metavar="NAME", help="Only requests to this provider.")
@click.option(
    "--label", "labels", metavar="KEY=VALUE", multiple=True, help="Only requests with this label; can be repeated."
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    default=1000,
    show_default=True,
    help="Maximum number of groups.",
)
@click.option("--csv", "as_csv", is_flag=True, help="Print all groups as CSV, without a limit.")
@click.option(
    "--unbooked",
    is_flag=True,
    help="List background responses, runs and batches whose usage is not known yet; only --project-id selects.",
)
@with_client
def command(
    client: ManagementClient,
    *,
    group_by: str,
    labels: tuple[str, ...],
    limit: int,
    as_csv: bool,
    unbooked: bool,
    as_json: bool,
    **query: str | None,
) -> None:
    """Report what requests used and cost.

    TIME is a day in UTC, e.g. 2030-01-31, or a time, e.g. 2030-01-31T12:00:00Z; it is rounded to a full hour. ID can be
    a name. The groups with the highest cost are first, but hours, days and months stay in their order. A cost of - is
    unknown. If the terminal is wide enough, bars show the cost, or the number of requests if no cost is known.

    For example, who spent what in a week: --group-by label.user,model --from 2030-01-21 --to 2030-01-28
    """
    if unbooked:
        _list_unbooked(client, query["project_id"], limit, as_csv=as_csv, as_json=as_json)
        return
    selected = (*labels, *(value for name, value in query.items() if name not in ("from", "to")))
    parameters: dict[str, Any] = query | label_filters(labels) | {"group_by": group_by or None}
    if as_csv:
        print_csv(client, "usage", parameters, as_json=as_json)
        return
    found = first(client, path("usage"), limit, "groups", f"first {limit} by their ids", **parameters)
    if as_json:
        print_json(found)
    elif found:
        names = [name.strip() for name in group_by.split(",") if name.strip()]
        click.echo(report(found, names, shutil.get_terminal_size().columns))
    else:
        click.echo("No requests in this time match." if any(selected) else "No requests in this time.")


def _list_unbooked(
    client: ManagementClient, project_id: str | None, limit: int, *, as_csv: bool, as_json: bool
) -> None:
    query = {"project_id": project_id}
    if as_csv:
        print_csv(client, "usage/unbooked", query, as_json=as_json)
        return
    found = first(client, path("usage", "unbooked"), limit, "objects", f"oldest {limit}", **query)
    if as_json:
        print_json(found)
    elif found:
        names = ("object_id", "kind", "provider", "project_id", "token_id", "created_at")
        titles = ("OBJECT", "KIND", "PROVIDER", "PROJECT ID", "TOKEN ID", "SINCE", "LOST")
        rows = [(*(one[name] for name in names), "yes" if one["lost"] else "no") for one in found]
        click.echo(table(titles, rows))
    else:
        click.echo("The usage of all objects is known.")


def report(groups: list[dict[str, Any]], names: Sequence[str], width: int) -> str:
    """Format groups, with their total, and with bars if there is room for them."""
    costs = [Decimal(group["cost"]) for group in groups]
    sizes = costs if any(costs) else [Decimal(group["requests"]) for group in groups]
    places = list(range(len(groups)))
    if not set(names) & set(_TIMES):
        places.sort(key=lambda place: (-sizes[place], -groups[place]["requests"]))
    columns = {title: name for title, name in _NUMBERS.items() if title not in _OFTEN_ZERO or _total(groups, name)}
    rows = [
        (
            *(_named(groups[place], name) for name in names),
            *(f"{groups[place][name]:,}" for name in columns.values()),
            _dollars(costs[place], groups[place]["unpriced"]),
            *(groups[place]["p50_ms"], groups[place]["p95_ms"]),
        )
        for place in places
    ]
    if len(rows) > 1:
        totals = (f"{_total(groups, name):,}" for name in columns.values())
        first = ("total", *[""] * (len(names) - 1)) if names else ()
        rows.append((*first, *totals, _dollars(sum(costs, Decimal(0)), _total(groups, "unpriced")), "", ""))
    numbers = (*columns, "COST", "P50 MS", "P95 MS")
    lines = table((*(name.upper() for name in names), *numbers), rows, numbers=numbers).split("\n")
    return "\n".join(_with_bars(lines, [sizes[place] for place in places], width))


def _total(groups: list[dict[str, Any]], name: str) -> int:
    return sum(group[name] for group in groups)


def _named(group: dict[str, Any], name: str) -> str | None:
    """The value of a group; a token without a name has its id, and an empty model none."""
    return group[name] or group.get(f"{name}_id")


def _dollars(cost: Decimal, unpriced: int) -> str:
    """Show USD with as many digits as small costs need; `-` if no cost is known."""
    if unpriced and not cost:
        return "-"
    if cost >= 1 or not cost:
        return f"${cost:,.2f}"
    return f"${cost:.6f}" if cost >= _MILLIONTH else f"${cost:.9f}"


def _with_bars(lines: list[str], sizes: list[Decimal], width: int) -> list[str]:
    """Add a bar to each group; the first line has the titles."""
    begin = max(map(len, map(click.unstyle, lines))) + 2
    most = max(sizes)
    length = min(_BAR_WIDTH, width - begin)
    if length < _LEAST_BAR_WIDTH or not most:
        return lines
    bars = [_bar(size / most, length) for size in sizes]
    return [
        lines[0],
        *(f"{line.ljust(begin)}{bar}".rstrip() for line, bar in zip(lines[1:], bars, strict=False)),
        *lines[len(bars) + 1 :],
    ]


def _bar(share: Decimal, width: int) -> str:
    whole, rest = divmod(int(share * width * 8), 8)
    return "█" * whole + (_EIGHTHS[rest - 1] if rest else "")
