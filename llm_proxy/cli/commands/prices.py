"""`llm-proxy prices`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import click
from attrs import asdict, frozen

from db.queries import usage
from db.queries.usage import UnpricedModel
from llm_proxy.cli.database import open_for_reading
from llm_proxy.cli.failures import ERROR, CommandFailed, WrongUsage
from llm_proxy.cli.options import config_option, database_options, json_option, load_settings
from llm_proxy.cli.output import print_json, print_table, table
from llm_proxy.cli.program import Group
from llm_proxy.config.kinds import did_you_mean
from llm_proxy.prices import Prices
from llm_proxy.prices.rates import CLASSES
from llm_proxy.prices.table import ModelPrice
from llm_proxy.services import load_files

#: The service tiers of which vendors publish prices; the first one is the standard tier.
_TIERS: Final = ("", "batch", "flex", "priority", "fast")
#: Classes with a column of their own.
_COLUMNS: Final = ("input", "cached_input", "cache_write", "cache_write_1h", "output")
_DAYS: Final = 30


@frozen
class _Row:
    provider: str
    model: str
    service_tier: str | None
    above: int | None
    prices: dict[str, str]
    version: str
    pattern: str | None


@click.group(cls=Group)
def command() -> None:
    """Show what models cost, and find models without a price.

    Prices are built in, and those of the file PRICES_PATH come before them.
    """


@command.command()
@click.argument("model", required=False)
@click.option("--provider", metavar="NAME", help="Show the prices at this provider only.")
@json_option
@config_option
def show(model: str | None, provider: str | None, config: Path | None, *, as_json: bool) -> None:
    """Show the current price of MODEL, or of all models.

    Prices are in USD: for one million tokens, or for one unit of what is named under OTHER. ABOVE is the number of
    input tokens above which a price applies to the whole request. The prices of service tiers, such as batch, are shown
    for one MODEL only. Exits 1 if MODEL has no price.
    """
    providers, prices = load_files(load_settings(config))
    names = list(dict.fromkeys([*providers.by_name, *prices.file.patterns]))
    if provider is not None and provider not in names:
        raise WrongUsage(f"provider {provider!r} is not configured{did_you_mean(provider, names)}; see API_CONFIG_PATH")
    rows = list(_rows(prices, [provider] if provider else names, model))
    if model is not None and not rows:
        where = f"at the provider {provider}" if provider else "at any configured provider"
        raise CommandFailed(f"{model!r} has no price {where}; add one to the file PRICES_PATH")
    titles = ("PROVIDER", "MODEL", "TIER", "ABOVE", *(name.replace("_", " ").upper() for name in _COLUMNS))
    print_table(
        [asdict(row) for row in rows],
        (*titles, "OTHER", "VERSION"),
        [
            (
                row.provider,
                row.model,
                row.service_tier,
                row.above,
                *(row.prices.get(name) for name in _COLUMNS),
                ", ".join(f"{name} {usd}" for name, usd in row.prices.items() if name not in _COLUMNS) or None,
                row.version,
            )
            for row in rows
        ],
        numbers=titles[3:],
        as_json=as_json,
    )


@command.command()
@json_option
@database_options
def check(*, db: str | None, config: Path | None, as_json: bool) -> None:
    """Find the models of the last 30 days that have no price. Exits 1 if there are any.

    A model is found if requests for it have no cost, and the current prices have none for what they used. Prices of
    service tiers are not checked. If you add a price, later requests have a cost. A server may use the database at the
    same time.
    """
    settings = load_settings(config, db)
    _, prices = load_files(settings)
    now = datetime.now(UTC)
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    with open_for_reading(settings, patiently=True) as database:
        try:
            used, until = database.read_now(usage.unpriced_models, today - timedelta(days=_DAYS), now)
        except usage.TooManyRows:
            raise CommandFailed(
                f"the requests of the last {_DAYS} days are too many to check, because not all days are summed up yet;"
                " try again when a server has run for some hours"
            ) from None
    if until < now:
        click.echo(f"Not checked: requests since {until:%Y-%m-%d}, which is not summed up yet.", err=True)
    found = [(model, why) for model in used if (why := _missing(prices, model, now))]
    if as_json:
        counts = ("requests", "unpriced", "input_tokens", "output_tokens")
        names = ("provider", "model", "requested_model", *counts)
        print_json([{**{name: getattr(model, name) for name in names}, "missing": why} for model, why in found])
    elif found:
        numbers = ("UNPRICED", "INPUT TOKENS", "OUTPUT TOKENS")
        rows = [
            (
                model.provider,
                model.model or None,
                model.requested_model or None,
                model.unpriced,
                model.input_tokens,
                model.output_tokens,
                why,
            )
            for model, why in found
        ]
        click.echo(table(("PROVIDER", "MODEL", "REQUESTED", *numbers, "MISSING"), rows, numbers=numbers))
    else:
        click.echo(f"Every model that was used in the last {_DAYS} days has a price.")
    if found:
        raise click.exceptions.Exit(ERROR)


def _missing(prices: Prices, used: UnpricedModel, now: datetime) -> str:
    """What has no price; empty if everything has one."""
    if not prices.price(used.provider, used.model, "", now, used.requested_model).levels:
        return "the model"
    if prices.cost(used.provider, [used], now, used.requested_model):
        return ""
    return "a fee for each request" if used.input_tokens is None else "a class that was used"


def _rows(prices: Prices, providers: list[str], model: str | None) -> Iterator[_Row]:
    now = datetime.now(UTC)
    for provider in providers:
        names = prices.models(provider) if model is None else (model,)
        for name in dict.fromkeys(names):
            for tier in _TIERS if model is not None else _TIERS[:1]:
                yield from _levels(provider, name, tier, prices.price(provider, name, tier, now))


def _levels(provider: str, model: str, tier: str, price: ModelPrice) -> Iterator[_Row]:
    for above, rates in reversed(price.levels):
        usd = {name: f"{rates.usd[name].normalize():f}" for name in CLASSES if name in rates.usd}
        more = above if above >= 0 else None
        yield _Row(provider, model, tier or None, more, usd, price.version, price.pattern or None)
