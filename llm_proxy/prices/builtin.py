"""The built-in prices: the table of `genai-prices` as it was installed. Nothing here fetches a newer one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from typing import Final

from genai_prices import __version__
from genai_prices.data import providers as _VENDORS  # noqa: N812 (a constant)
from genai_prices.types import (
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    PriceVariant,
    StartDateConstraint,
    TieredPrices,
    TimeOfDateConstraint,
)

from llm_proxy.prices.rates import AS_TEXT, Levels, Rates

VERSION: Final = f"genai-prices {__version__}"

#: Vendors of the providers whose base URL does not tell, by the names of the built-in providers.
_BY_NAME: Final[Mapping[str, str]] = {
    "openai": "openai",
    "azure": "azure",
    "anthropic": "anthropic",
    "gemini": "google",
    "vertex": "google",
    "bedrock": "aws",
    "groq": "groq",
    "mistral": "mistral",
    "deepseek": "deepseek",
    "xai": "x-ai",
    "together": "together",
    "cohere": "cohere",
    "openrouter": "openrouter",
}

_BY_ID: Final = {vendor.id: vendor for vendor in _VENDORS}

_THOUSAND: Final = Decimal(1000)

#: The table's keys, our class for each, and how many of ours its price is for.
_CLASSES: Final[Mapping[str, tuple[str, Decimal]]] = {
    "input_mtok": ("input", Decimal(1)),
    "cache_read_mtok": ("cached_input", Decimal(1)),
    "cache_write_mtok": ("cache_write", Decimal(1)),
    "cache_write_1h_mtok": ("cache_write_1h", Decimal(1)),
    "output_mtok": ("output", Decimal(1)),
    "output_reasoning_mtok": ("reasoning", Decimal(1)),
    "input_audio_mtok": ("input_audio", Decimal(1)),
    "cache_audio_read_mtok": ("cached_audio", Decimal(1)),
    "output_audio_mtok": ("output_audio", Decimal(1)),
    "input_image_mtok": ("input_image", Decimal(1)),
    "cache_image_read_mtok": ("cached_image", Decimal(1)),
    "output_image_mtok": ("output_image", Decimal(1)),
    "input_video_mtok": ("input_video", Decimal(1)),
    "cache_video_read_mtok": ("cached_video", Decimal(1)),
    "output_video_mtok": ("output_video", Decimal(1)),
    "output_citation_mtok": ("citation", Decimal(1)),
    "audio_hours": ("audio_hour", Decimal(1)),
    "input_audio_hours": ("audio_hour", Decimal(1)),
    "input_document_kpages": ("page", _THOUSAND),
    "rerank_searches_kcount": ("search_unit", _THOUSAND),
    "web_searches_kcount": ("web_search", _THOUSAND),
    "storage_searches_kcount": ("file_search", _THOUSAND),
    "social_searches_kcount": ("social_search", _THOUSAND),
    "code_executions_kcount": ("code_execution", _THOUSAND),
    "requests_kcount": ("request", _THOUSAND),
}

#: Vendors and their tiers with the standard price: https://console.groq.com/docs/flex-processing
_AS_STANDARD: Final = frozenset({("groq", "flex")})

#: Vendors with other rules than `rates.AS_TEXT`: Google lists the price of audio where it differs
#: (https://ai.google.dev/gemini-api/docs/pricing), and the table has no price of Cohere's for images, which is higher
#: (https://cohere.com/pricing).
_AS_TEXT: Final[Mapping[str, frozenset[str]]] = {"google": AS_TEXT | {"audio"}, "cohere": AS_TEXT - {"image"}}


def vendor_of(name: str, base_url: str) -> str | None:
    """The vendor in the table that a provider belongs to: by its base URL, else by its name; None if there is none."""
    for vendor in _VENDORS:
        if re.match(vendor.api_pattern, base_url):
            return vendor.id
    return _BY_NAME.get(name)


def models(vendor: str) -> Iterator[str]:
    """The models in the table of a vendor."""
    return (model.id for model in _BY_ID[vendor].models)


def levels(vendor: str, model: str, tier: str, at: datetime) -> Levels:
    """The rates of a model at a time; empty if the table does not know them."""
    found = _find(vendor, model)
    if found is None:
        return ()
    standard = not tier or (vendor, tier) in _AS_STANDARD
    context = {} if standard else {"processing": tier, "service_tier": tier, "speed": tier}
    if not standard and not any(_applies(variant, context, at) for variant in found.price_variants or ()):
        return ()
    price = found.get_prices(at, context)
    given = {name: value for name, value in price.__dict__.items() if value is not None}
    # What cannot be counted here cannot be billed either.
    if given.keys() - _CLASSES.keys() or not given:
        return ()
    starts = {tier.start for value in given.values() if isinstance(value, TieredPrices) for tier in value.tiers}
    return tuple(
        (
            above,
            Rates(
                {_CLASSES[name][0]: _at(value, above) / _CLASSES[name][1] for name, value in given.items()},
                _AS_TEXT.get(vendor, AS_TEXT),
            ),
        )
        for above in sorted({-1, *starts}, reverse=True)
    )


def changes(vendor: str, model: str, at: datetime) -> Iterator[datetime]:
    """Times around `at` at which the rates of a model can change: all dates, and the times of these days."""
    found = _find(vendor, model)
    if found is None:
        return
    conditions: list[ConditionalPrice | PriceVariant] = [*(found.price_variants or ())]
    if not isinstance(found.prices, ModelPrice):
        conditions += found.prices
    for condition in conditions:
        match condition.constraint:
            case StartDateConstraint(start_date=start):
                yield datetime.combine(start, time(), UTC)
            case TimeOfDateConstraint(start_time=start_time, end_time=end_time):
                for days in (-1, 0, 1):
                    day = (at + timedelta(days)).date()
                    yield datetime.combine(day, start_time.replace(tzinfo=start_time.tzinfo or UTC))
                    yield datetime.combine(day, end_time.replace(tzinfo=end_time.tzinfo or UTC))


def _find(vendor: str, model: str) -> ModelInfo | None:
    """Find a model; Google's names may be paths, as in `publishers/google/models/gemini-2.5-pro`."""
    name = model.rpartition("/")[2] if vendor == "google" else model
    return _BY_ID[vendor].find_model(name, all_providers=_VENDORS)


def _applies(variant: PriceVariant, context: Mapping[str, str], at: datetime) -> bool:
    if variant.constraint is not None and not variant.constraint.active(at):
        return False
    return all(context.get(key) == value for key, value in variant.when.items())


def _at(value: Decimal | TieredPrices, above: int) -> Decimal:
    """The price above a number of input tokens."""
    if not isinstance(value, TieredPrices):
        return value
    return next((tier.price for tier in reversed(value.tiers) if tier.start <= above), value.base)
