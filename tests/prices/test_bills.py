"""Bills that were computed by hand from the vendors' price pages: each row shows the sum in USD."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

import pytest
from msgspec.structs import replace

from llm_proxy.gateway.usage import Usage
from llm_proxy.prices import Prices
from tests.prices.usage import used

#: A Sunday noon: outside of the hours in which some prices are higher.
NOON: Final = datetime(2026, 11, 15, 12, 0, tzinfo=UTC)

URLS: Final = {
    "openai": "https://api.openai.com",
    "azure": "https://my-resource.openai.azure.com/openai",
    "anthropic": "https://api.anthropic.com",
    "gemini": "https://generativelanguage.googleapis.com",
    "vertex": "https://us-central1-aiplatform.googleapis.com/v1/projects/p/locations/us-central1",
    "bedrock": "https://bedrock-runtime.us-east-1.amazonaws.com",
    "groq": "https://api.groq.com/openai",
    "mistral": "https://api.mistral.ai",
    "deepseek": "https://api.deepseek.com",
    "xai": "https://api.x.ai",
    "together": "https://api.together.xyz",
    "cohere": "https://api.cohere.com",
    "openrouter": "https://openrouter.ai/api",
    "local": "http://localhost:8000",
}

#: The realtime model hears 600 tokens of sound, 200 of them cached; 300 tokens are cached in all.
REALTIME: Final = {
    "input_audio_tokens": 600,
    "cached_audio_tokens": 200,
    "output_audio_tokens": 400,
}

BILLS: Final = [
    # OpenAI: https://platform.openai.com/docs/pricing
    # 1,000 x 2.50 + 500 x 10
    ("openai", "gpt-4o", used(1_000, 500), "0.0075"),
    # 600 x 2.50 + 400 x 1.25 + 500 x 10
    ("openai", "gpt-4o-2024-08-06", used(1_000, 500, cached=400), "0.007"),
    # 2,000 x 1.25 + 3,000 x 10: reasoning is output
    ("openai", "gpt-5", used(2_000, 3_000, reasoning=2_500), "0.0325"),
    # flex: 2,000 x 0.625 + 3,000 x 5
    ("openai", "gpt-5", used(2_000, 3_000, service_tier="flex"), "0.01625"),
    # priority: 2,000 x 2.50 + 3,000 x 20
    ("openai", "gpt-5", used(2_000, 3_000, service_tier="priority"), "0.065"),
    # batch: 1,000 x 1.25 + 500 x 5
    ("openai", "gpt-4o", used(1_000, 500, service_tier="batch"), "0.00375"),
    # up to 272,000 tokens of input: 272,000 x 2.50 + 1,000 x 15
    ("openai", "gpt-5.4", used(272_000, 1_000), "0.695"),
    # beyond, the whole request: 272,001 x 5 + 1,000 x 22.50
    ("openai", "gpt-5.4", used(272_001, 1_000), "1.382505"),
    # batch of four with 272,000 tokens each, which is no long context: 1,088,000 x 1.25 + 4,000 x 7.50
    ("openai", "gpt-5.4", used(1_088_000, 4_000, service_tier="batch", requests=4), "1.39"),
    # text 300 x 4, cached text 100 x 0.40, sound 400 x 32, cached sound 200 x 0.40, output 100 x 16, sound 400 x 64
    ("openai", "gpt-realtime", used(1_000, 500, cached=300, details=REALTIME), "0.04132"),
    # a transcription: text 20 x 2.50, sound 480 x 6, output 100 x 10
    ("openai", "gpt-4o-transcribe", used(500, 100, details={"input_audio_tokens": 480}), "0.00393"),
    # by duration: 90 s x 0.36 / hour
    ("openai", "whisper-1", used(None, None, details={"audio_ms": 90_000}), "0.009"),
    # 1,000 x 1.25 + 500 x 10 + 2 searches x 0.01
    ("openai", "gpt-5", used(1_000, 500, details={"web_searches": 2}), "0.02625"),
    # text 100 x 5, images 200 x 10, image output 1,000 x 40
    ("openai", "gpt-image-1", used(300, 1_000, details={"input_image_tokens": 200, "images": 1}), "0.0425"),
    # embeddings: 8 x 0.02
    ("openai", "text-embedding-3-small", used(8), "0.00000016"),
    # a fine-tuned model: 1,000 x 0.30 + 100 x 1.20
    ("openai", "ft:gpt-4o-mini-2024-07-18:acme::abc123", used(1_000, 100), "0.00042"),
    # Azure, a deployment of OpenAI's model: 1,000 x 2.50 + 500 x 10
    ("azure", "gpt-4o-2024-08-06", used(1_000, 500), "0.0075"),
    # Anthropic: https://platform.claude.com/docs/en/about-claude/pricing
    # fresh 3,000 x 3, read 5,000 x 0.30, written 3,000 x 3.75 and for an hour 1,000 x 6, output 800 x 15
    (
        "anthropic",
        "claude-sonnet-4-6",
        used(12_000, 800, cached=5_000, cache_write=4_000, cache_write_1h=1_000, service_tier="standard"),
        "0.03975",
    ),
    # 1,000 x 5 + 100 x 25 + 3 searches x 0.01; fetches cost only their tokens
    (
        "anthropic",
        "claude-opus-4-5-20251101",
        used(1_000, 100, details={"web_searches": 3, "web_fetches": 2}),
        "0.0375",
    ),
    # batch: fresh 500 x 0.50, read 500 x 0.05, output 200 x 2.50
    ("anthropic", "claude-haiku-4-5-20251001", used(1_000, 200, cached=500, service_tier="batch"), "0.000775"),
    # a long context, the whole request: written for an hour 100,000 x 1, fresh 1 x 0.50, output 10 x 2.50
    (
        "anthropic",
        "claude-haiku-5-5",
        used(100_001, 10, cache_write=100_000, cache_write_1h=100_000),
        "0.1000255",
    ),
    # Google: https://ai.google.dev/gemini-api/docs/pricing
    # up to 200,000 tokens: read 50,000 x 0.125, fresh 150,000 x 1.25, output 1,000 x 10
    ("gemini", "gemini-2.5-pro", used(200_000, 1_000, cached=50_000), "0.20375"),
    # beyond: read 50,000 x 0.25, fresh 150,001 x 2.50, output 1,000 x 15
    ("gemini", "models/gemini-2.5-pro", used(200_001, 1_000, cached=50_000), "0.4025025"),
    # text 100 x 0.30, sound 900 x 1, output 100 x 2.50
    ("gemini", "gemini-2.5-flash", used(1_000, 100, details={"input_audio_tokens": 900}), "0.00118"),
    # sound is not listed there, so it costs as much as text: 1,000 x 1.25 + 100 x 10
    ("gemini", "gemini-2.5-pro", used(1_000, 100, details={"input_audio_tokens": 900}), "0.00225"),
    # Vertex, Anthropic's model: 1,000 x 1 + 100 x 5
    ("vertex", "claude-haiku-4-5@20251001", used(1_000, 100), "0.0015"),
    ("vertex", "publishers/google/models/gemini-2.5-flash", used(1_000, 100), "0.00055"),
    # Bedrock, a regional profile, 10 % more: fresh 500 x 3.30, written 500 x 4.125, output 100 x 16.50
    (
        "bedrock",
        "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
        used(1_000, 100, cache_write=500),
        "0.0053625",
    ),
    # Groq: fresh 500 x 0.15, read 500 x 0.075, output 100 x 0.60; flex costs the same
    ("groq", "openai/gpt-oss-120b", used(1_000, 100, cached=500, service_tier="flex"), "0.0001725"),
    # Mistral: batch, 1,000 x 0.75 + 100 x 3.75
    ("mistral", "mistral-medium-latest", used(1_000, 100, service_tier="batch"), "0.001125"),
    # by duration, the tokens are not billed: 60 s x 0.18 / hour
    ("mistral", "voxtral-mini-latest", used(400, 50, details={"audio_ms": 60_000}), "0.003"),
    # a chat about sound: text 100 x 0.10, 36 s x 0.24 / hour, output 50 x 0.40
    (
        "mistral",
        "voxtral-small-latest",
        used(550, 50, details={"input_audio_tokens": 450, "audio_ms": 36_000}),
        "0.00243",
    ),
    # DeepSeek, outside of its busy hours: 900 x 0.15 + 100 x 0.003 + 100 x 0.60
    ("deepseek", "deepseek-v4-flash", used(1_000, 100, cached=100), "0.0001953"),
    # xAI: from 200,000 tokens on: 200,000 x 2.50 + 100 x 5
    ("xai", "grok-4.3", used(200_000, 100), "0.5005"),
    ("xai", "grok-4.3", used(199_999, 100), "0.25024875"),
    # Together: 1,000 x 0.88 + 100 x 0.88
    ("together", "meta-llama/Llama-3.3-70B-Instruct-Turbo", used(1_000, 100), "0.000968"),
    # Cohere: 1,000 x 2.50 + 100 x 10
    ("cohere", "command-a-03-2025", used(1_000, 100), "0.0035"),
    # OpenRouter: 1,000 x 2.50 + 100 x 10
    ("openrouter", "openai/gpt-4o", used(1_000, 100), "0.0035"),
]

UNPRICED: Final = [
    pytest.param("openai", "gpt-99", used(1_000, 100), id="unknown model"),
    pytest.param("openai", "ft:gpt-4.1-2025-04-14:acme::abc", used(1_000, 100), id="fine-tuned model without a price"),
    pytest.param("local", "gpt-4o", used(1_000, 100), id="provider that is no vendor"),
    pytest.param("nobody", "gpt-4o", used(1_000, 100), id="provider that does not exist"),
    pytest.param("openai", "", used(1_000, 100), id="no model"),
    pytest.param("openai", "gpt-4o", used(None, None), id="no tokens"),
    pytest.param("anthropic", "claude-sonnet-4-6", used(1_000, None), id="no output tokens"),
    pytest.param("openai", "gpt-4o", used(1_000, 100, cache_write=1), id="cache write without a price"),
    pytest.param(
        "openai", "gpt-4o-audio-preview", used(100, 9, details={"input_audio_tokens": 9}), id="audio without a price"
    ),
    pytest.param("cohere", "embed-v4.0", used(100, 0, details={"input_image_tokens": 9}), id="images without a price"),
    pytest.param("gemini", "gemini-3.1-pro-preview", used(9, 9, service_tier="priority"), id="tier without a price"),
    pytest.param("openai", "gpt-5", used(9, 9, service_tier="scale"), id="tier that is paid in advance"),
    pytest.param(
        "anthropic", "claude-sonnet-4-6", used(9, 9, details={"code_executions": 1}), id="tool without a price"
    ),
    pytest.param("mistral", "voxtral-small-latest", used(9, 9, details={"input_audio_tokens": 9}), id="no duration"),
    pytest.param("openai", "gpt-5", used(9, 9, details={"rockets": 1}), id="count of an unknown kind"),
    pytest.param("openai", "gpt-5", used(9, 9, details={"image_tool_tokens": 300}), id="images of another model"),
    pytest.param("anthropic", "claude-opus-4-6", used(9, 9, details={"us_inference": 1}), id="only in the US"),
    pytest.param("openai", "whisper-1", used(9, 9), id="duration is unknown"),
    pytest.param("openai", "tts-1", used(9, 9), id="paid by a unit that is not counted"),
]


@pytest.fixture(scope="module")
def prices() -> Prices:
    return Prices.load(None, URLS)


@pytest.mark.parametrize(("provider", "model", "usage", "usd"), BILLS)
def test_cost_of_a_bill_is_what_the_price_page_says(
    prices: Prices, provider: str, model: str, usage: Usage, usd: str
) -> None:
    cost = prices.cost(provider, [replace(usage, model=model)], NOON)
    assert cost is not None
    assert cost.nanousd == Decimal(usd) * 10**9
    assert cost.version.startswith("genai-prices ")


@pytest.mark.parametrize(("provider", "model", "usage"), UNPRICED)
def test_cost_is_unknown_if_a_price_is(prices: Prices, provider: str, model: str, usage: Usage) -> None:
    assert prices.cost(provider, [replace(usage, model=model)], NOON) is None
