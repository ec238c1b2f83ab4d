"""The rates of a model, and the cost of a usage at these rates: decimal numbers once, integers for each request.

A class that was used and has no rate makes the cost unknown, so that no cost is silently too low. Some classes have the
rate of another one if they have none of their own, because that is never too low, or because the vendors document it:

- cached input costs as much as input, reasoning as much as output
- images and video cost as much as text, since most vendors list a rate of their own where it differs
- a cache write for one hour costs twice the input if one for five minutes costs 1.25 of it: Anthropic's rule,
  https://platform.claude.com/docs/en/build-with-claude/prompt-caching#pricing
- the tokens of audio that is paid by its duration cost nothing: https://mistral.ai/pricing
- cached audio or images cost as much as those that are not cached, if these have a rate of their own
- nothing that is part of the input costs anything if the input is free; the same holds for the output
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from typing import Final, NamedTuple, Protocol

from attrs import field, frozen

TOKENS: Final = "1M tokens"
HOUR: Final = "hour"
EACH: Final = "each"

#: Each class of a bill, and what its price in USD is for.
CLASSES: Final[Mapping[str, str]] = {
    "input": TOKENS,
    "cached_input": TOKENS,
    "cache_write": TOKENS,
    "cache_write_1h": TOKENS,
    "output": TOKENS,
    "reasoning": TOKENS,
    "input_audio": TOKENS,
    "cached_audio": TOKENS,
    "output_audio": TOKENS,
    "input_image": TOKENS,
    "cached_image": TOKENS,
    "output_image": TOKENS,
    "input_video": TOKENS,
    "cached_video": TOKENS,
    "output_video": TOKENS,
    "citation": TOKENS,
    "image_tool": TOKENS,
    "audio_hour": HOUR,
    "image": EACH,
    "page": EACH,
    "search_unit": EACH,
    "web_search": EACH,
    "file_search": EACH,
    "social_search": EACH,
    "code_execution": EACH,
    "other_tool": EACH,
    "request": EACH,
}

#: Kinds of tokens that cost as much as text if they have no price of their own.
AS_TEXT: Final = frozenset({"image", "video"})

#: Rates are in 10^-15 USD: a price per million tokens has up to nine digits after the point.
_SCALE: Final = {TOKENS: 10**9, HOUR: 10**15, EACH: 10**15}
FEMTO_PER_NANO: Final = 10**6
_MS_PER_HOUR: Final = 3_600_000

#: What is counted beside the tokens of input and output, and its class. A web fetch costs only its tokens:
#: https://platform.claude.com/docs/en/agents-and-tools/tool-use/web-fetch-tool#usage-and-pricing
_COUNTED: Final[Mapping[str, str | None]] = {
    "citation_tokens": "citation",
    "image_tool_tokens": "image_tool",
    "audio_ms": "audio_hour",
    "images": "image",
    "pages": "page",
    "search_units": "search_unit",
    "web_searches": "web_search",
    "file_searches": "file_search",
    "social_searches": "social_search",
    "code_executions": "code_execution",
    "other_tools": "other_tool",
    "web_fetches": None,
}
#: These are paid by their tokens if they have no rate.
_IN_TOKENS: Final = frozenset({"audio_ms", "images", "pages"})


class Usage(Protocol):
    """What is billed: a `gateway.usage.Usage`, which is above this layer, or sums of the ledger."""

    @property
    def model(self) -> str: ...
    @property
    def input_tokens(self) -> int | None: ...
    @property
    def cached_tokens(self) -> int | None: ...
    @property
    def cache_write_tokens(self) -> int | None: ...
    @property
    def cache_write_1h_tokens(self) -> int | None: ...
    @property
    def output_tokens(self) -> int | None: ...
    @property
    def reasoning_tokens(self) -> int | None: ...
    @property
    def details(self) -> Mapping[str, int] | None: ...
    @property
    def service_tier(self) -> str: ...
    @property
    def requests(self) -> int: ...


class _Modality(NamedTuple):
    """The names in `Usage.details`, and the rates."""

    cached_tokens: str
    input_tokens: str
    output_tokens: str
    cached: int | None
    input: int | None
    output: int | None


@frozen(eq=False)
class Rates:
    """What each class costs.

    Attributes:
        usd: the prices as they are given, by class.
        as_text: see `AS_TEXT`.
    """

    usd: Mapping[str, Decimal]
    as_text: frozenset[str] = AS_TEXT
    _tokens: tuple[int | None, ...] = field(init=False, repr=False)
    _modalities: tuple[_Modality, ...] = field(init=False, repr=False)
    _counted: Mapping[str, int | None] = field(init=False, repr=False)
    _request: int = field(init=False, repr=False)
    _uncounted: int | None = field(init=False, repr=False)

    @property
    def in_tokens(self) -> bool:
        """Whether tokens are billed at all: some models are paid by the hour, the page or the search."""
        return "input" in self.usd or "output" in self.usd

    @_tokens.default
    def _resolve_tokens(self) -> tuple[int | None, ...]:
        """The rates of uncached input, cached input, cache writes, those for an hour, output, and reasoning."""
        if not self.in_tokens:
            return (0,) * 6
        usd, free = self.usd, 0 if self.usd.get("input") == 0 else None
        hourly = _femto(usd, "cache_write_1h", free)
        if hourly is None and "input" in usd and usd.get("cache_write") == usd["input"] * Decimal("1.25"):
            hourly = 2 * (_femto(usd, "input") or 0)
        fresh, output = _femto(usd, "input"), _femto(usd, "output")
        read, written = _femto(usd, "cached_input", fresh), _femto(usd, "cache_write", free)
        return fresh, read, written, hourly, output, _femto(usd, "reasoning", output)

    @_modalities.default
    def _resolve_modalities(self) -> tuple[_Modality, ...]:
        return tuple(self._modality(name) for name in ("audio", "image", "video"))

    def _modality(self, name: str) -> _Modality:
        fresh, read, _, _, made, _ = self._tokens
        usd, cached = self.usd, read
        if name not in self.as_text:
            fresh, made = 0 if fresh == 0 else None, 0 if made == 0 else None
            cached = fresh
        fresh = _femto(usd, f"input_{name}", fresh)
        cached = _femto(usd, f"cached_{name}", fresh if f"input_{name}" in usd else cached)
        names = f"cached_{name}_tokens", f"input_{name}_tokens", f"output_{name}_tokens"
        return _Modality(*names, cached, fresh, _femto(usd, f"output_{name}", made))

    @_counted.default
    def _resolve_counted(self) -> Mapping[str, int | None]:
        return {
            name: 0 if rate is None else _femto(self.usd, rate, 0 if name in _IN_TOKENS and self.in_tokens else None)
            for name, rate in _COUNTED.items()
        }

    @_request.default
    def _resolve_request(self) -> int:
        return _femto(self.usd, "request") or 0

    @_uncounted.default
    def _resolve_uncounted(self) -> int | None:
        """The cost of a request if nobody says what it used."""
        if any(price for name, price in self.usd.items() if name != "request"):
            return None
        return self._request if "request" in self.usd or self.in_tokens else None

    def highest(self, input_tokens: int, output_tokens: int) -> int | None:
        """What this much text costs at most in 10^-15 USD, whatever classes it is billed as; None if it has no rate."""
        fresh, read, written, hourly, made, thought = self._tokens
        if not self.in_tokens or fresh is None or (made is None and output_tokens):
            return None
        inputs = fresh, read, written, hourly
        outputs = made, thought, *(kind.output for kind in self._modalities)
        dearest_input, dearest_output = (max(rate or 0 for rate in rates) for rates in (inputs, outputs))
        return input_tokens * dearest_input + output_tokens * dearest_output + self._request

    def femtousd(self, usage: Usage) -> int | None:
        """The cost in 10^-15 USD; None if something that was used has no rate, or if the usage is incomplete."""
        prompt, made = usage.input_tokens, usage.output_tokens
        if prompt is made is None and not usage.details:
            return self._uncounted
        if self.in_tokens and (prompt is None or made is None):
            return None
        read, written = usage.cached_tokens or 0, usage.cache_write_tokens or 0
        hourly, thought = usage.cache_write_1h_tokens or 0, usage.reasoning_tokens or 0
        counts = [(prompt or 0) - read - written, read, written - hourly, hourly, (made or 0) - thought, thought]
        total = self._request * usage.requests
        if usage.details:
            extra = self._details(usage.details, counts)
            if extra is None:
                return None
            total += extra
        elif not self.in_tokens and not total:
            return None
        for count, rate in zip(counts, self._tokens, strict=True):
            if count > 0:
                if rate is None:
                    return None
                total += count * rate
        return total

    def _details(self, details: Mapping[str, int], counts: list[int]) -> int | None:
        """The cost of what has a price of its own; its tokens are taken out of `counts`."""
        total = 0
        by_hour = bool(details.get("audio_ms") and self._counted["audio_ms"])
        for kind in self._modalities:
            cached = min(details.get(kind.cached_tokens, 0), counts[1])
            fresh = min(details.get(kind.input_tokens, 0) - cached, counts[0])
            made = min(details.get(kind.output_tokens, 0), counts[4])
            for index, count, rate in ((1, cached, kind.cached), (0, fresh, kind.input), (4, made, kind.output)):
                if count > 0:
                    if rate is None and not (by_hour and kind.input_tokens == "input_audio_tokens" and index == 0):
                        return None
                    counts[index] -= count
                    total += count * (rate or 0)
        billed = self.in_tokens or self._request > 0
        for name, count in details.items():
            if count > 0 and (name in _COUNTED or not name.endswith("_tokens")):
                rate = self._counted.get(name)
                if rate is None:
                    return None
                billed = True
                total += (count * rate + _MS_PER_HOUR // 2) // _MS_PER_HOUR if name == "audio_ms" else count * rate
        return total if billed else None


#: Rates from a number of input tokens on, exclusive; highest first. The whole request has these rates: so do Anthropic,
#: Google, OpenAI and xAI bill long contexts.
Levels = tuple[tuple[int, Rates], ...]


def nanousd(femto: int) -> int:
    """Round to 10^-9 USD, half up."""
    return (femto + FEMTO_PER_NANO // 2) // FEMTO_PER_NANO


def _femto(usd: Mapping[str, Decimal], name: str, default: int | None = None) -> int | None:
    price = usd.get(name)
    return default if price is None else int((price * _SCALE[CLASSES[name]]).to_integral_value(ROUND_HALF_UP))
