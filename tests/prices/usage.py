"""Usages to put a price on."""

from __future__ import annotations

from typing import Any

from attrs import frozen


@frozen(kw_only=True)
class Usage:
    model: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    reasoning_tokens: int | None = None
    details: dict[str, int] | None = None
    service_tier: str = ""


def used(prompt: int | None, made: int | None = 0, **rest: Any) -> Usage:
    """A usage with `prompt` and `made` tokens; the names of other counts are those of `Usage`, without `_tokens`."""
    named = {name if name in {"model", "details", "service_tier"} else f"{name}_tokens": rest[name] for name in rest}
    return Usage(input_tokens=prompt, output_tokens=made, **named)
