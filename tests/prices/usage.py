"""Usages to put a price on."""

from __future__ import annotations

from typing import Any

from llm_proxy.gateway.usage import Usage


def used(prompt: int | None, made: int | None = 0, **rest: Any) -> Usage:
    """A usage with `prompt` and `made` tokens; the names of other counts are those of `Usage`, without `_tokens`."""
    plain = {"model", "details", "service_tier", "requests"}
    named = {name if name in plain else f"{name}_tokens": rest[name] for name in rest}
    return Usage(input_tokens=prompt, output_tokens=made, **named)
