"""The price of each model: from the operator's file, else built in. It is resolved once, not for each request."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from attrs import define, field, frozen

from llm_proxy.prices import builtin, price_file
from llm_proxy.prices.price_file import PriceFile
from llm_proxy.prices.rates import FEMTO_PER_NANO, Levels, Rates, Usage, nanousd

#: Maximum number of resolved prices. Clients choose the names of models.
_RESOLVED: Final = 4096
#: Names of the standard tier in answers.
_STANDARD: Final = frozenset({"default", "standard", "on_demand", "auto"})
_FIRST: Final = datetime.min.replace(tzinfo=UTC)
_LAST: Final = datetime.max.replace(tzinfo=UTC)


@frozen
class Cost:
    """The cost of a request.

    Attributes:
        nanousd: in 10^-9 USD.
        version: of the prices; two if models of both sources share the bill.
    """

    nanousd: int
    version: str


@frozen(eq=False)
class ModelPrice:
    """The price of a model in a period.

    Attributes:
        version: of its source; empty if there is no price.
        levels: rates by the number of input tokens; empty if there is no price.
        since, until: the period; `until` is not part of it.
        pattern: the pattern of the file; empty if the price is built in.
    """

    version: str
    levels: Levels
    since: datetime
    until: datetime
    pattern: str = ""

    def rates(self, input_tokens: int) -> Rates | None:
        for above, rates in self.levels:
            if input_tokens > above:
                return rates
        return None


@define(eq=False)
class Prices:
    """Prices by provider and model.

    Attributes:
        vendors: the vendor of each provider in the built-in table; providers without one are not in it.
    """

    file: PriceFile
    vendors: Mapping[str, str]
    _resolved: dict[tuple[str, str, str, str], ModelPrice] = field(factory=dict)

    @classmethod
    def load(cls, path: Path | None, base_urls: Mapping[str, str], known: Collection[str] = ()) -> Self:
        """Load the file for providers with these base URLs; it may also contain the `known` ones.

        Raises `SettingsError` with all mistakes in the file.
        """
        found = {name: builtin.vendor_of(name, url) for name, url in base_urls.items()}
        vendors = {name: vendor for name, vendor in found.items() if vendor is not None}
        return cls(price_file.load(path, {*base_urls, *known}), vendors)

    def cost(self, provider: str, bill: Sequence[Usage], at: datetime, requested: str = "") -> Cost | None:
        """The cost of a request, as the sum over the models that share it; None if one has no price.

        The average length of the prompts decides whether a sum over several requests has the rates of long ones.
        `requested` is the model that the request named; an answer may not name its model.
        """
        total, versions = 0, ""
        for usage in bill:
            price = self.price(provider, usage.model, usage.service_tier, at, requested)
            rates = price.rates((usage.input_tokens or 0) // usage.requests)
            femto = None if rates is None else rates.femtousd(usage)
            if femto is None:
                return None
            total += femto
            if versions != price.version:
                versions = f"{versions}, {price.version}" if versions else price.version
        return Cost(nanousd(total), versions) if versions else None

    def highest(
        self, provider: str, model: str, tier: str, at: datetime, input_tokens: int, output_tokens: int
    ) -> int | None:
        """The most that a text of up to this length can cost in 10^-9 USD, rounded up; None if it has no price."""
        levels = self.price(provider, model, tier, at, model).levels
        costs = [rates.highest(input_tokens, output_tokens) for above, rates in levels if above < input_tokens]
        known = [cost for cost in costs if cost is not None]
        return -(-max(known) // FEMTO_PER_NANO) if known and len(known) == len(costs) else None

    def models(self, provider: str) -> Iterator[str]:
        """The models of a provider that have a price: patterns of the file first, then the built-in ones."""
        yield from (pattern.text for pattern in self.file.patterns.get(provider, ()))
        if vendor := self.vendors.get(provider):
            yield from builtin.models(vendor)

    def price(self, provider: str, model: str, tier: str, at: datetime, requested: str = "") -> ModelPrice:
        """The price of a model at a time; without levels if there is none."""
        key = provider, model, requested, tier
        found = self._resolved.get(key)
        if found is None or not found.since <= at < found.until:
            found = self._resolve(provider, model, requested, tier.lower(), at)
            if len(self._resolved) >= _RESOLVED:
                del self._resolved[next(iter(self._resolved))]
            self._resolved[key] = found
        return found

    def _resolve(self, provider: str, model: str, requested: str, tier: str, at: datetime) -> ModelPrice:
        changes: list[datetime] = []
        levels: Levels = ()
        version = text = ""
        if tier in _STANDARD:
            tier = ""
        for pattern in self.file.patterns.get(provider, ()):
            if pattern.matches(*filter(None, (model, requested))):
                changes += pattern.changes()
                if levels := pattern.levels(tier, at):
                    version, text = self.file.version, pattern.text
                    break
        vendor = self.vendors.get(provider)
        if not levels and vendor is not None:
            # Bedrock's own ids say where a model runs, which changes the price; its answers may lack that.
            name = (requested or model) if vendor == "aws" else (model or requested)
            changes += builtin.changes(vendor, name, at)
            levels = builtin.levels(vendor, name, tier, at)
            version = builtin.VERSION if levels else ""
        since = max((change for change in changes if change <= at), default=_FIRST)
        until = min((change for change in changes if change > at), default=_LAST)
        return ModelPrice(version, levels, since, until, text)
