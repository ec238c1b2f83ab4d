"""Loads the operator's prices (`PRICES_PATH`), which come before the built-in ones.

`docs/guides/costs.md` explains the keys. Unknown keys are refused, because a misspelt class would have no price.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from attrs import field, frozen

from llm_proxy.config import SettingsError, kinds
from llm_proxy.config.document import Document
from llm_proxy.config.kinds import Kind, did_you_mean
from llm_proxy.prices.rates import CLASSES, TOKENS, Levels, Rates

_ALLOWED: Final = "a price in USD such as 2.50, from 0 to 999999, with at most 9 digits after the point"


def _usd(text: str) -> Decimal:
    if not re.fullmatch(r"[0-9]{1,6}(?:\.[0-9]{1,9})?", text):
        raise ValueError
    return Decimal(text)


_Date = Annotated[date, Kind("date", "a date such as 2026-01-31", date.fromisoformat)]
_Tier = Annotated[
    str, Kind("text", "the name of a service tier such as batch or priority", kinds.line_of_text(1, 32).parse)
]
_Tokens = Annotated[int, kinds.integer(1, 1_000_000_000)]
_Usd = Annotated[Decimal, Kind("price", _ALLOWED, _usd)]

_Entry: Final = msgspec.defstruct(
    "_Entry",
    [
        ("from_", _Date | None, msgspec.field(default=None, name="from")),
        ("service_tier", _Tier | None, None),
        ("above", _Tokens | None, None),
        *((name, _Usd | None, None) for name in CLASSES),
    ],
    frozen=True,
)


class _File(msgspec.Struct, frozen=True):
    prices: dict[str, dict[str, tuple[_Entry, ...]]] | None = None  # type: ignore[valid-type]  # made of a table


@frozen
class Price:
    """Prices of the models of a pattern.

    Attributes:
        since: when they begin to apply; None: always.
        service_tier: the tier that they are for; empty: the standard one.
        above: they are for requests with more input tokens; -1: for all.
    """

    since: date | None
    service_tier: str
    above: int
    usd: Mapping[str, Decimal]


@frozen
class Pattern:
    """A pattern of models, and the prices of these models."""

    text: str
    prices: Sequence[Price]
    _compiled: re.Pattern[str] = field(init=False, repr=False)

    @_compiled.default
    def _compile(self) -> re.Pattern[str]:
        return re.compile(fnmatch.translate(self.text), re.IGNORECASE)

    def matches(self, *models: str) -> bool:
        return any(map(self._compiled.match, models))

    def levels(self, tier: str, at: datetime) -> Levels:
        """The rates at a time; empty if none of the prices applies."""
        day = at.astimezone(UTC).date()
        valid = [price for price in self.prices if price.service_tier == tier and (price.since or day) <= day]
        latest = max((price.since or date.min for price in valid), default=date.min)
        chosen = [price for price in valid if (price.since or date.min) == latest]
        return tuple((price.above, Rates(price.usd)) for price in sorted(chosen, key=_above, reverse=True))

    def changes(self) -> Iterator[datetime]:
        return (datetime.combine(price.since, time(), UTC) for price in self.prices if price.since)


@frozen
class PriceFile:
    """The prices of the file.

    Attributes:
        version: names the content; empty if there is no file.
        patterns: by provider, in the order of the file.
    """

    version: str = ""
    patterns: Mapping[str, Sequence[Pattern]] = field(factory=dict)


def load(path: Path | None, providers: Collection[str]) -> PriceFile:
    """Load the file; `providers` has all names that it may contain. Raises `SettingsError` with all mistakes."""
    if path is None:
        return PriceFile()
    document = Document(str(path))
    content = document.read(_File, "prices, with at least one provider")
    patterns: dict[str, list[Pattern]] = {}
    if content is not None and "prices" not in document.data:
        document.report((), "prices is missing; it must contain the prices of at least one provider")
    for provider, models in ((content and content.prices) or {}).items():
        place = "prices", provider
        if provider not in providers:
            hint = f"{did_you_mean(provider, providers)}; allowed: {', '.join(sorted(providers))}"
            document.report(place, f"{'.'.join(place)}: there is no such provider{hint}")
        for model, entries in (models or {}).items():
            found = [_price(msgspec.structs.asdict(entry)) for entry in entries or ()]
            if not document.is_wrong((*place, model)):
                for problem in _problems(found):
                    document.report((*place, model), f"{'.'.join(place)}.{model} {problem}")
            patterns.setdefault(provider, []).append(Pattern(model, found))
    if document.mistakes:
        raise SettingsError(document.mistakes)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return PriceFile(f"file {digest[:8]}", patterns)


def _price(entry: dict[str, Any]) -> Price:
    usd = {name: entry[name] for name in CLASSES if entry[name] is not None}
    above = -1 if entry["above"] is None else entry["above"]
    return Price(entry["from_"], (entry["service_tier"] or "").lower(), above, usd)


def _above(price: Price) -> int:
    return price.above


def _problems(prices: Sequence[Price]) -> Iterator[str]:
    for price in prices:
        if not price.usd:
            yield "has no price; set input and output"
        elif "input" not in price.usd and any(CLASSES[name] == TOKENS for name in price.usd):
            yield "has prices of tokens and no input; set input"
    keys = Counter((price.since, price.service_tier, price.above) for price in prices)
    if any(count > 1 for count in keys.values()):
        yield "has two prices with the same from, service_tier and above; remove one"
    if any((since, tier, -1) not in keys for since, tier, _ in keys):
        yield "has a price with above, and none for fewer tokens; add one with the same from and service_tier"
