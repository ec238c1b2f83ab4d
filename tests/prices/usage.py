"""Usages to put a price on."""

from __future__ import annotations

from typing import Any

from llm_proxy.gateway.usage import Usage


def used(prompt: int | None, made: int | None = 0, **rest: Any) -> Usage:
    """A usage with `prompt` and `made` tokens; the names of other counts are those of `Usage`, without `_tokens`."""
    named = {name if name in {"model", "details", "service_tier"} else f"{name}_tokens": rest[name] for name in rest}
    return Usage(input_tokens=prompt, output_tokens=made, **named)
