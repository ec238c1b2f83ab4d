"""What an exchange has cost."""

from __future__ import annotations

import json
from typing import Any

import pytest

from db.records import Result
from tests.gateway.exchanges import ended
from tests.gateway.upstream.stage import answering

USAGE = {"prompt_tokens": 1000, "completion_tokens": 500}


async def result_of(answer: dict[str, Any], path: bytes = b"/v1/chat/completions", provider: str = "openai") -> Result:
    body = json.dumps(answer).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    return (await ended(answering(head + body), path=path, provider=provider)).result


async def test_cost_is_fixed_with_the_version_of_the_prices() -> None:
    result = await result_of({"model": "gpt-4o-2024-08-06", "usage": USAGE})
    assert result.cost_nanousd == 7_500_000
    assert result.cost_basis == "price"
    assert (result.price_version or "").startswith("genai-prices ")
    assert not result.unpriced


async def test_cost_that_the_provider_names_wins() -> None:
    result = await result_of({"model": "gpt-4o", "usage": {**USAGE, "cost": 0.0123}})
    assert (result.cost_nanousd, result.cost_basis, result.price_version) == (12_300_000, "provider", None)


@pytest.mark.parametrize("model", ["gpt-99", None])
async def test_request_without_a_price_is_unpriced_and_its_tokens_are_counted(model: str | None) -> None:
    result = await result_of({"model": model, "usage": USAGE})
    assert (result.cost_nanousd, result.cost_basis, result.price_version) == (None, None, None)
    assert result.input_tokens == 1000
    assert result.unpriced


async def test_model_in_the_path_has_the_price_if_the_answer_names_none() -> None:
    path = b"/model/global.anthropic.claude-haiku-4-5-20251001-v1%3A0/invoke"
    result = await result_of({"usage": {"input_tokens": 1000, "output_tokens": 100}}, path, "bedrock")
    assert result.cost_nanousd == 1_500_000
