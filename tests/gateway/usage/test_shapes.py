"""Each vendor's report, in the form that its page documents, with numbers made up here and added up by hand."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, ClassVar

import pytest
from msgspec.structs import replace

from db.records import DETAIL_SUMS
from llm_proxy.gateway.usage import Usage, meter_for
from llm_proxy.gateway.usage.shapes import DETAILS, SHAPES, TABLES, merged
from llm_proxy.prices import Prices
from tests.gateway.usage.metering import EVENTS, JSON, PACK, metered

CHAT: dict[str, Any] = {"id": "c", "object": "chat.completion", "model": "m", "choices": [{"index": 0}]}
MESSAGE: dict[str, Any] = {"id": "msg", "type": "message", "model": "m", "content": []}


def details(**counts: int) -> dict[str, int]:
    return counts


#: The shapes of `shapes.SHAPES` with their answers. The counts of a `Usage` are: input, output, cached, written to the
#: cache, of these for an hour, reasoning.
ANSWERS: list[tuple[str, dict[str, Any], Usage]] = [
    (
        "OpenAI chat completions, completions, embeddings",
        {
            **CHAT,
            "service_tier": "flex",
            "usage": {
                "prompt_tokens": 1200,
                "completion_tokens": 340,
                "total_tokens": 1540,
                "prompt_tokens_details": {"cached_tokens": 1024, "cache_write_tokens": 128, "audio_tokens": 30},
                "completion_tokens_details": {
                    "reasoning_tokens": 256,
                    "audio_tokens": 11,
                    "accepted_prediction_tokens": 5,
                    "rejected_prediction_tokens": 0,
                },
            },
        },
        Usage(
            "m", 1200, 340, 1024, 128, None, 256, details(input_audio_tokens=30, output_audio_tokens=11), "flex", None
        ),
    ),
    (
        "OpenAI chat completions, completions, embeddings",
        {
            "object": "list",
            "data": [{"embedding": [0.25]}],
            "model": "m",
            "usage": {"prompt_tokens": 8, "total_tokens": 8},
        },
        Usage("m", 8, 0),
    ),
    (
        "OpenAI chat completions, completions, embeddings",
        {**CHAT, "usage": {"prompt_tokens": 35, "completion_tokens": 12, "total_tokens": 109}},  # Gemini: 62 of thought
        Usage("m", 35, 74, reasoning_tokens=62),
    ),
    (
        "OpenAI chat completions, completions, embeddings",  # Alibaba
        {
            **CHAT,
            "usage": {
                "prompt_tokens": 1616,
                "completion_tokens": 10,
                "total_tokens": 1626,
                "prompt_tokens_details": {
                    "cached_tokens": 0,
                    "cache_creation": {"ephemeral_5m_input_tokens": 1605},
                    "cache_creation_input_tokens": 1605,
                    "cache_type": "ephemeral",
                },
            },
        },
        Usage("m", 1616, 10, 0, 1605),
    ),
    (
        "OpenAI chat completions, completions, embeddings",  # LiteLLM, with Claude behind it
        {
            **CHAT,
            "usage": {
                "prompt_tokens": 2100,
                "completion_tokens": 30,
                "total_tokens": 2130,
                "prompt_tokens_details": {
                    "cached_tokens": 0,
                    "cache_creation_tokens": 2000,
                    "cache_creation_token_details": {
                        "ephemeral_5m_input_tokens": 500,
                        "ephemeral_1h_input_tokens": 1500,
                    },
                },
                "cache_creation_input_tokens": 2000,
                "cache_read_input_tokens": 0,
            },
        },
        Usage("m", 2100, 30, 0, 2000, 1500),
    ),
    (
        "OpenAI chat completions, completions, embeddings",  # cached tokens beside the prompt
        {
            **CHAT,
            "usage": {
                "prompt_tokens": 368,
                "completion_tokens": 19,
                "total_tokens": 10923,
                "prompt_tokens_details": {"cached_tokens": 10536},
            },
        },
        Usage("m", 10904, 19, 10536),
    ),
    (
        "OpenAI assistants",
        {
            "object": "thread.run",
            "model": "m",
            "usage": {
                "prompt_tokens": 2100,
                "completion_tokens": 45,
                "total_tokens": 2145,
                "prompt_token_details": {"cached_tokens": 1792},
                "completion_tokens_details": {"reasoning_tokens": 0},
            },
        },
        Usage("m", 2100, 45, 1792, reasoning_tokens=0),
    ),
    (
        "OpenAI responses, images",
        {
            "object": "response",
            "model": "m",
            "service_tier": "priority",
            "usage": {
                "input_tokens": 75,
                "input_tokens_details": {"cached_tokens": 32, "cache_write_tokens": 16},
                "output_tokens": 1186,
                "output_tokens_details": {"reasoning_tokens": 1024},
                "total_tokens": 1261,
            },
        },
        Usage("m", 75, 1186, 32, 16, None, 1024, None, "priority"),
    ),
    (
        "OpenAI responses, images",
        {
            "created": 1,
            "data": [{"b64_json": "AAAA"}],
            "usage": {
                "total_tokens": 5000,
                "input_tokens": 840,
                "output_tokens": 4160,
                "input_tokens_details": {"text_tokens": 40, "image_tokens": 800},
                "output_tokens_details": {"text_tokens": 0, "image_tokens": 4160},
            },
        },
        Usage("", 840, 4160, details=details(input_image_tokens=800, output_image_tokens=4160)),
    ),
    (
        "OpenAI responses, tools",
        {
            "object": "response",
            "model": "m",
            "tool_usage": {"image_gen": {"input_tokens": 20, "total_tokens": 300}, "web_search": {"num_requests": 2}},
            "usage": {"input_tokens": 40, "output_tokens": 60, "total_tokens": 100},
        },
        Usage("m", 40, 60, details=details(web_searches=2, image_tool_tokens=300)),
    ),
    (
        "OpenAI responses, tools",  # of these, only searches cost anything
        {
            "object": "response",
            "model": "m",
            "output": [
                {"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "a"}},
                {"type": "web_search_call", "status": "completed", "action": {"type": "open_page", "url": "b"}},
                {"type": "web_search_call", "status": "completed"},
                {"type": "message", "content": [{"type": "output_text", "text": '"type":"web_search_call"'}]},
            ],
            "usage": {"input_tokens": 1000, "output_tokens": 500, "total_tokens": 1500},
        },
        Usage("m", 1000, 500, details=details(web_searches=2)),
    ),
    (
        "OpenAI realtime, audio by tokens",
        {
            "type": "response.done",
            "response": {
                "object": "realtime.response",
                "usage": {
                    "total_tokens": 253,
                    "input_tokens": 132,
                    "output_tokens": 121,
                    "input_token_details": {
                        "text_tokens": 100,
                        "audio_tokens": 32,
                        "cached_tokens": 64,
                        "cached_tokens_details": {"text_tokens": 40, "audio_tokens": 24},
                    },
                    "output_token_details": {"text_tokens": 30, "audio_tokens": 91},
                },
            },
        },
        Usage("", 132, 121, 64, details=details(input_audio_tokens=32, cached_audio_tokens=24, output_audio_tokens=91)),
    ),
    (
        "OpenAI realtime, audio by tokens",
        {
            "text": "Hello",
            "usage": {
                "type": "tokens",
                "input_tokens": 14,
                "input_token_details": {"text_tokens": 0, "audio_tokens": 14},
                "output_tokens": 45,
                "total_tokens": 59,
            },
        },
        Usage("", 14, 45, details=details(input_audio_tokens=14)),
    ),
    (
        "OpenAI audio by duration",
        {"text": "Hello", "usage": {"type": "duration", "seconds": 9.4}},
        Usage(details=details(audio_ms=9400)),
    ),
    (
        "Anthropic messages",
        {
            **MESSAGE,
            "usage": {
                "input_tokens": 50,
                "cache_read_input_tokens": 18000,
                "cache_creation_input_tokens": 248,
                "cache_creation": {"ephemeral_5m_input_tokens": 148, "ephemeral_1h_input_tokens": 100},
                "output_tokens": 503,
                "output_tokens_details": {"thinking_tokens": 400},
                "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 1, "code_execution_requests": 3},
                "service_tier": "standard",
                "inference_geo": "us",
            },
        },
        Usage(
            *("m", 18298, 503, 18000, 248, 100, 400),
            details(web_searches=2, web_fetches=1, code_executions=3, us_inference=1),
            "standard",
        ),
    ),
    (
        "Anthropic messages",
        {**MESSAGE, "usage": {"input_tokens": 7, "output_tokens": 9, "service_tier": "standard", "speed": "fast"}},
        Usage("m", 7, 9, service_tier="fast"),
    ),
    (
        "Gemini",
        {
            "candidates": [{"content": {}, "finishReason": "STOP"}],
            "usageMetadata": {
                "promptTokenCount": 264,
                "cachedContentTokenCount": 128,
                "candidatesTokenCount": 20,
                "toolUsePromptTokenCount": 70,
                "thoughtsTokenCount": 101,
                "totalTokenCount": 455,
                "promptTokensDetails": [
                    {"modality": "TEXT", "tokenCount": 6},
                    {"modality": "IMAGE", "tokenCount": 258},
                ],
                "cacheTokensDetails": [{"modality": "IMAGE", "tokenCount": 128}],
                "candidatesTokensDetails": [{"modality": "AUDIO", "tokenCount": 20}],
                "trafficType": "ON_DEMAND_FLEX",
            },
            "modelVersion": "m",
        },
        Usage(
            *("m", 334, 121, 128, None, None, 101),
            details(input_image_tokens=258, cached_image_tokens=128, output_audio_tokens=20),
            "flex",
        ),
    ),
    (
        "Gemini",
        {
            "candidates": [{"content": {}, "finishReason": 1}],
            "usageMetadata": {
                "promptTokenCount": 300,
                "candidatesTokenCount": 4,
                "totalTokenCount": 304,
                "trafficType": 1,
                "promptTokensDetails": [{"modality": 1, "tokenCount": 42}, {"modality": 2, "tokenCount": 258}],
            },
            "modelVersion": "m",
        },
        Usage("m", 300, 4, details=details(input_image_tokens=258)),
    ),
    (
        "Gemini",
        {"promptFeedback": {}, "usageMetadata": {"promptTokenCount": 9, "totalTokenCount": 9}, "modelVersion": "m"},
        Usage("m", 9, 0),
    ),
    (
        "Gemini interactions",
        {
            "object": "interaction",
            "model": "m",
            "usage": {
                "total_input_tokens": 40,
                "total_tool_use_tokens": 5,
                "total_cached_tokens": 8,
                "total_output_tokens": 30,
                "total_thought_tokens": 25,
                "total_tokens": 100,
                "input_tokens_by_modality": [{"modality": "audio", "tokens": 12}],
                "grounding_tool_count": [{"type": "google_search", "count": 2}],
            },
        },
        Usage("m", 45, 55, 8, None, None, 25, details(input_audio_tokens=12, web_searches=2)),
    ),
    (
        "Vertex AI chat completions",
        {
            **CHAT,
            "usage": {
                "completion_tokens": 45,
                "completion_tokens_details": {"reasoning_tokens": 504},
                "extra_properties": {"google": {"traffic_type": "PROVISIONED_THROUGHPUT"}},
                "prompt_tokens": 27,
                "total_tokens": 576,
            },
        },
        Usage("m", 27, 549, reasoning_tokens=504, service_tier="provisioned_throughput"),
    ),
    (
        "xAI",
        {
            **CHAT,
            "usage": {
                "prompt_tokens": 41,
                "completion_tokens": 9,
                "total_tokens": 550,
                "prompt_tokens_details": {"text_tokens": 41, "audio_tokens": 0, "image_tokens": 0, "cached_tokens": 4},
                "completion_tokens_details": {"reasoning_tokens": 500, "audio_tokens": 0},
                "num_sources_used": 3,
                "cost_in_usd_ticks": 37756004,
                "server_side_tool_usage_details": {
                    "web_search_calls": 2,
                    "x_search_calls": 1,
                    "code_interpreter_calls": 0,
                    "file_search_calls": 4,
                },
            },
        },
        Usage(
            *("m", 41, 509, 4, None, None, 500),
            details(search_sources=3, web_searches=2, social_searches=1, file_searches=4),
            "",
            3775600,
        ),
    ),
    (
        "xAI",
        {**CHAT, "usage": {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11, "cost_in_usd_ticks": 0}},
        Usage("m", 5, 6),
    ),
    (
        "OpenRouter",
        {
            **CHAT,
            "usage": {
                "prompt_tokens": 194,
                "completion_tokens": 2,
                "total_tokens": 196,
                "cost": 0.0009512,
                "cost_details": {"upstream_inference_cost": None},
                "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 100},
                "completion_tokens_details": {"reasoning_tokens": 0, "image_tokens": 0},
                "server_tool_use": {"web_search_requests": 1},
            },
        },
        Usage("m", 194, 2, 0, 100, None, 0, details(web_searches=1), "", 951200),
    ),
    (
        "OpenRouter",  # with a key of the client's own
        {
            **CHAT,
            "usage": {
                "prompt_tokens": 1396,
                "completion_tokens": 41,
                "total_tokens": 1437,
                "cost": 0.00001,
                "is_byok": True,
                "cost_details": {"upstream_inference_cost": 0.0001601},
            },
        },
        Usage("m", 1396, 41, cost_nanousd=170_100),
    ),
    (
        "OpenRouter",  # whose bill is not known
        {
            **CHAT,
            "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13, "cost": 0, "is_byok": True},
        },
        Usage("m", 9, 4),
    ),
    (
        "OpenRouter",
        {
            **CHAT,
            "usage": {
                "prompt_tokens": 9,
                "completion_tokens": 4,
                "total_tokens": 13,
                "cost": 0.0002,
                "is_byok": False,
                "cost_details": {"upstream_inference_cost": 0.0002},
            },
        },
        Usage("m", 9, 4, cost_nanousd=200_000),
    ),
    (
        "Vercel AI Gateway",
        {
            **CHAT,
            "model": "google/g",
            "usage": {
                "prompt_tokens": 50,
                "completion_tokens": 7,
                "total_tokens": 57,
                "cost": 0.0005,
                "market_cost": 0.0005,
                "completion_tokens_details": {"reasoning_tokens": 80},
            },
        },
        Usage("google/g", 50, 87, reasoning_tokens=80, cost_nanousd=500_000),
    ),
    (
        "Perplexity",
        {
            **CHAT,
            "usage": {
                "prompt_tokens": 33,
                "completion_tokens": 7000,
                "total_tokens": 7033,
                "citation_tokens": 2000,
                "num_search_queries": 18,
                "reasoning_tokens": 9000,
                "cost": {"input_tokens_cost": 0.0001, "total_cost": 0.25},
            },
        },
        Usage("m", 33, 16000, None, None, None, 9000, details(citation_tokens=2000, web_searches=18), "", 250_000_000),
    ),
    (
        "DeepSeek",
        {
            **CHAT,
            "usage": {
                "prompt_tokens": 120,
                "prompt_cache_hit_tokens": 64,
                "prompt_cache_miss_tokens": 56,
                "completion_tokens": 300,
                "total_tokens": 420,
                "completion_tokens_details": {"reasoning_tokens": 210},
            },
        },
        Usage("m", 120, 300, 64, reasoning_tokens=210),
    ),
    (
        "Moonshot",
        {**CHAT, "usage": {"prompt_tokens": 19, "completion_tokens": 21, "total_tokens": 40, "cached_tokens": 10}},
        Usage("m", 19, 21, 10),
    ),
    (
        "Mistral",
        {**CHAT, "usage": {"prompt_tokens": 90, "completion_tokens": 5, "total_tokens": 95, "num_cached_tokens": 64}},
        Usage("m", 90, 5, 64),
    ),
    (
        "Mistral audio",
        {
            "model": "m",
            "text": "Hello",
            "usage": {
                "prompt_tokens": 4,
                "completion_tokens": 600,
                "total_tokens": 3000,
                "prompt_audio_seconds": 200,
            },
        },
        Usage("m", 2400, 600, details=details(audio_ms=200_000, input_audio_tokens=2396)),
    ),
    (
        "Mistral audio",
        {
            **CHAT,
            "usage": {
                "prompt_tokens": 11,
                "completion_tokens": 70,
                "total_tokens": 481,
                "prompt_audio_seconds": 4,
                "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 400},
            },
        },
        Usage("m", 411, 70, 0, details=details(audio_ms=4000, input_audio_tokens=400)),
    ),
    (
        "Mistral conversations",
        {
            "object": "conversation.response",
            "outputs": [],
            "usage": {
                "prompt_tokens": 100,
                "completion_tokens": 50,
                "total_tokens": 900,
                "connector_tokens": 750,
                "connectors": {"web_search": 1, "image_generation": 2},
            },
        },
        Usage("", 850, 50, details=details(web_searches=1, other_tools=2)),
    ),
    (
        "Mistral OCR",
        {"model": "m", "pages": [], "usage_info": {"pages_processed": 3, "doc_size_bytes": None}},
        Usage("m", details=details(pages=3)),
    ),
    (
        "Cohere v2",
        {
            "id": "c",
            "message": {"role": "assistant"},
            "usage": {
                "billed_units": {"input_tokens": 5, "output_tokens": 418},
                "tokens": {"input_tokens": 71, "output_tokens": 420, "reasoning_tokens": 300},
                "cached_tokens": 2,
            },
        },
        Usage("", 5, 418, 2, reasoning_tokens=300),
    ),
    (
        "Cohere v2",
        {
            "id": "c",
            "usage": {
                "billed_units": {"input_tokens": 9, "output_tokens": 30},
                "tokens": {"input_tokens": 600, "output_tokens": 32},
                "cached_tokens": 512,
            },
        },
        Usage("", 9, 30),
    ),
    (
        "Cohere v1, embed, rerank",
        {
            "id": "c",
            "embeddings": [[0.5]],
            "meta": {"api_version": {"version": "1"}, "billed_units": {"input_tokens": 3.0}},
        },
        Usage("", 3, 0),
    ),
    (
        "Cohere v1, embed, rerank",
        {"embeddings": [[0.5]], "meta": {"billed_units": {"input_tokens": 10, "image_tokens": 5000}}},
        Usage("", 5010, 0, details=details(input_image_tokens=5000)),
    ),
    (
        "Cohere v1, embed, rerank",
        {"embeddings": [[0.5]], "meta": {"billed_units": {"image_tokens": 5000}}},
        Usage("", 5000, 0, details=details(input_image_tokens=5000)),
    ),
    (
        "Cohere v1, embed, rerank",
        {"results": [{"index": 0}], "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}},
        Usage(details=details(search_units=1)),
    ),
    (
        "Ollama",
        {"model": "m", "message": {"content": "Hi"}, "done": True, "prompt_eval_count": 26, "eval_count": 298},
        Usage("m", 26, 298),
    ),
    (
        "Bedrock Llama",
        {"generation": "Hi", "prompt_token_count": 21, "generation_token_count": 30, "stop_reason": "stop"},
        Usage("", 21, 30),
    ),
    ("Bedrock Titan embeddings", {"embedding": [0.5], "inputTextTokenCount": 6}, Usage("", 6, 0)),
    ("Ollama", {"model": "m", "embeddings": [[0.5]], "prompt_eval_count": 8}, Usage("m", 8, 0)),
    (
        "Bedrock Converse",
        {
            "output": {"message": {"content": []}},
            "usage": {
                "inputTokens": 30,
                "outputTokens": 628,
                "totalTokens": 2658,
                "cacheReadInputTokens": 1500,
                "cacheWriteInputTokens": 500,
                "cacheDetails": [{"ttl": "1h", "inputTokens": 200}, {"ttl": "5m", "inputTokens": 300}],
            },
            "serviceTier": {"type": "priority"},
        },
        Usage("", 2030, 628, 1500, 500, 200, None, None, "priority"),
    ),
    (
        "Bedrock InvokeModelWithResponseStream",
        {
            "type": "message_stop",
            "amazon-bedrock-invocationMetrics": {
                "inputTokenCount": 25,
                "outputTokenCount": 40,
                "cacheReadInputTokenCount": 10,
                "cacheWriteInputTokenCount": 0,
                "invocationLatency": 900,
            },
        },
        Usage("", 35, 40, 10, 0),
    ),
    (
        "Groq",
        {
            **CHAT,
            "usage": {"prompt_tokens": 30, "completion_tokens": 12, "total_tokens": 42, "queue_time": 0.01},
            "usage_breakdown": {
                "models": [
                    {"model": "a", "usage": {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}},
                    {"model": "b", "usage": {"prompt_tokens": 20, "completion_tokens": 8, "total_tokens": 28}},
                ]
            },
            "x_groq": {"id": "req", "usage": {"dram_cached_tokens": 7}},
        },
        Usage("m", 30, 12, parts=(Usage("a", 10, 4), Usage("b", 20, 8))),
    ),
    (
        "Groq",
        {
            **CHAT,
            "usage": {"prompt_tokens": 30, "completion_tokens": 12, "total_tokens": 42},
            "usage_breakdown": {
                "models": [
                    {"model": "a", "usage": {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}},
                    {"model": "a", "usage": {"prompt_tokens": 20, "completion_tokens": 8, "total_tokens": 28}},
                ]
            },
        },
        Usage("m", 30, 12, parts=(Usage("a", 10, 4), Usage("a", 20, 8))),
    ),
    ("Voyage, Jina", {"model": "m", "data": [], "usage": {"total_tokens": 10}}, Usage("m", 10, 0)),
]


def ids(answers: list[tuple[str, Any, Usage]]) -> list[str]:
    return [f"{index}-{name}" for index, (name, *_) in enumerate(answers)]


def assert_metered(headers: list[tuple[bytes, bytes]], body: bytes, expected: Usage) -> None:
    """Whole, cut at each byte, byte by byte, and compressed: the usage is the same, and nothing is unmetered."""
    for encoding, pack in ((b"identity", bytes), *PACK.items()):
        packed = pack(body)
        fields = [*headers, (b"content-encoding", encoding)]
        cuts = range(len(packed)) if encoding == b"identity" else (1, len(packed) // 2)
        for pieces in (
            [packed],
            [packed[at : at + 1] for at in range(len(packed))],
            *([packed[:at], packed[at:]] for at in cuts),
        ):
            meter = meter_for(200, fields)
            assert metered(meter, *pieces) == expected
            assert not meter.unmetered


@pytest.mark.parametrize(("name", "document", "expected"), ANSWERS, ids=ids(ANSWERS))
def test_a_documented_answer_is_metered(name: str, document: dict[str, Any], expected: Usage) -> None:
    assert_metered([JSON], json.dumps(document).encode(), expected)


@pytest.mark.parametrize(("name", "document", "expected"), ANSWERS, ids=ids(ANSWERS))
@pytest.mark.parametrize("last", [True, False])
def test_a_long_answer_has_the_same_usage(name: str, document: dict[str, Any], expected: Usage, *, last: bool) -> None:
    pad = {"pad": ['"},{"usage":{"prompt_tokens":9' * 2000]}
    text = json.dumps({**document, **pad} if last else {**pad, **document}, indent=1 if last else None).encode()
    for size in (len(text), 1000, 7):
        meter = meter_for(200, [JSON])
        assert metered(meter, *(text[at : at + size] for at in range(0, len(text), size))) == expected
        assert not meter.unmetered


@pytest.mark.parametrize(("name", "document", "expected"), ANSWERS, ids=ids(ANSWERS))
def test_an_event_with_the_same_members_is_metered(name: str, document: dict[str, Any], expected: Usage) -> None:
    if name.startswith(("Ollama", "Cohere v1", "Mistral OCR", "Bedrock")):
        return  # never sent as events
    body = b"data: " + json.dumps(document).encode() + b"\n\ndata: [DONE]\n\n"
    assert metered(meter_for(200, [EVENTS]), body) == expected


def test_each_shape_has_an_example() -> None:
    assert {shape.name for shape in SHAPES} - {name for name, *_ in ANSWERS} == {"Bedrock InvokeModel"}
    assert all(shape.source.startswith("https://") for shape in SHAPES)


def test_details_that_are_summed_are_read() -> None:
    assert DETAILS.issuperset(DETAIL_SUMS)


def test_rows_that_contradict_each_other_are_refused() -> None:
    assert merged([{"a": "input", "b": {"x": "cached"}}, {"b": {"y": "write"}}]) == {
        "a": "input",
        "b": {"x": "cached", "y": "write"},
    }
    for other in ({"a": "output"}, {"a": {"x": "input"}}):
        with pytest.raises(ValueError, match="a"):
            merged([{"a": "input"}, other])
    assert "prompt_tokens" in TABLES["usage"]


class TestAttempts:
    """Anthropic's `usage.iterations`, which say what is billed."""

    COMPACTION: ClassVar = {"type": "compaction", "input_tokens": 180_000, "output_tokens": 3500}
    ANSWER: ClassVar = {"type": "message", "input_tokens": 23_000, "output_tokens": 1000}

    @staticmethod
    def usage(iterations: object, **counts: Any) -> Usage:
        body = {**MESSAGE, "usage": {"input_tokens": 23_000, "output_tokens": 1000, "iterations": iterations, **counts}}
        streamed = [
            {"type": "message_start", "message": {**MESSAGE, "usage": {"input_tokens": 23_000, "output_tokens": 1}}},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": body["usage"]},
            {"type": "message_stop"},
        ]
        text = b"".join(b"event: x\ndata: " + json.dumps(event).encode() + b"\n\n" for event in streamed)
        found = metered(meter_for(200, [EVENTS]), text)
        assert metered(meter_for(200, [JSON]), json.dumps(body).encode()) == found
        return found

    def test_a_compaction_is_added(self) -> None:
        steps = Usage("m", 180_000, 3500), Usage("m", 23_000, 1000)
        assert self.usage([self.COMPACTION, self.ANSWER]) == Usage("m", 203_000, 4500, parts=steps)

    def test_each_step_has_the_price_of_its_own_length(self) -> None:
        """Prompts of more than 200,000 tokens have a higher one; the sum of the steps is no prompt."""
        prices = Prices.load(None, {"anthropic": "https://api.anthropic.com"})
        now = datetime(2026, 11, 1, tzinfo=UTC)
        found = self.usage([self.COMPACTION, self.ANSWER])
        cost, whole = (
            prices.cost("anthropic", [replace(one, model="claude-sonnet-4-5", parts=()) for one in bill], now)
            for bill in (found.parts, (found,))
        )
        assert cost is not None
        assert whole is not None
        # 203,000 x 3 USD/M + 4,500 x 15 USD/M
        assert (cost.nanousd, whole.nanousd > cost.nanousd) == (676_500_000, True)

    def test_an_advisor_is_a_part_with_its_own_model(self) -> None:
        found = self.usage(
            [
                {"type": "message", "input_tokens": 412, "cache_read_input_tokens": 0, "output_tokens": 89},
                {"type": "advisor_message", "model": "big", "input_tokens": 823, "output_tokens": 1612},
                {"type": "message", "input_tokens": 1348, "cache_read_input_tokens": 412, "output_tokens": 442},
            ],
            input_tokens=412,
            output_tokens=531,
            server_tool_use={"web_search_requests": 1},
            service_tier="standard",
        )
        last = Usage("m", 1760, 442, 412, None, None, None, details(web_searches=1), "standard")
        assert found == Usage(
            "m",
            2995,
            2143,
            412,
            None,
            None,
            None,
            details(web_searches=1),
            "standard",
            None,
            (Usage("m", 412, 89, 0), Usage("big", 823, 1612), last),
        )

    def test_cache_writes_keep_their_lifetimes(self) -> None:
        written = {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 70}
        first = {**self.COMPACTION, "cache_creation_input_tokens": 100, "cache_creation": written}
        steps = Usage("m", 180_100, 3500, 0, 100, 70), Usage("m", 23_000, 1000)
        assert self.usage([first, self.ANSWER]) == Usage("m", 203_100, 4500, 0, 100, 70, parts=steps)

    def test_only_attempts_with_output_are_billed_if_another_model_has_answered(self) -> None:
        declined = {"type": "message", "model": "first", "input_tokens": 23_000, "output_tokens": 0}
        partial = {"type": "message", "model": "second", "input_tokens": 23_000, "output_tokens": 50}
        answer = {**self.ANSWER, "type": "fallback_message", "model": "m"}
        assert self.usage([declined, answer]) == Usage("m", 23_000, 1000)
        assert self.usage([declined, partial, answer]) == Usage(
            "m", 46_000, 1050, parts=(Usage("second", 23_000, 50), Usage("m", 23_000, 1000))
        )

    def test_the_model_of_the_answer_is_that_which_did_not_decline(self) -> None:
        """A stream begins with the name of the first one."""
        declined = {"type": "message", "model": "m", "input_tokens": 23_000, "output_tokens": 0}
        answer = {**self.ANSWER, "type": "fallback_message", "model": "second"}
        assert self.usage([declined, answer]) == Usage("second", 23_000, 1000)
        partial = {**declined, "output_tokens": 50}
        steps = Usage("m", 23_000, 50), Usage("second", 23_000, 1000)
        assert self.usage([partial, answer]) == Usage("second", 46_000, 1050, parts=steps)

    @pytest.mark.parametrize("iterations", [None, [], {}, "x", [None], [3], [{"type": "message"}]])
    def test_the_usage_beside_them_counts_if_there_are_none(self, iterations: object) -> None:
        assert self.usage(iterations) == Usage("m", 23_000, 1000)

    def test_the_answer_counts_beside_an_advisor_alone(self) -> None:
        advisor = {"type": "advisor_message", "input_tokens": 5, "output_tokens": 6}
        assert self.usage([advisor]) == Usage("m", 23_005, 1006, parts=(Usage("m", 23_000, 1000), Usage("", 5, 6)))


class TestSums:
    """Where a report contradicts the usual rule, its total decides."""

    @pytest.mark.parametrize(
        ("counts", "expected"),
        [
            # A gateway that copies Anthropic's counts to OpenAI's names.
            (
                {
                    "prompt_tokens": 368,
                    "completion_tokens": 19,
                    "total_tokens": 10923,
                    "cache_read_input_tokens": 10536,
                },
                Usage("", 10904, 19, 10536),
            ),
            # The cache is inside.
            (
                {"input_tokens": 900, "output_tokens": 9, "total_tokens": 909, "cache_read_input_tokens": 800},
                Usage("", 900, 9, 800),
            ),
            # Only the total is known, or one count and the total.
            ({"total_tokens": 12}, Usage("", 12, 0)),
            ({"prompt_tokens": 5, "total_tokens": 12}, Usage("", 5, 7)),
            ({"completion_tokens": 5, "total_tokens": 12}, Usage("", 7, 5)),
            ({"completion_tokens": 15, "total_tokens": 12}, Usage("", None, 15)),
            ({"input_tokens": 5, "output_tokens": 1, "service_tier": "UNSPECIFIED"}, Usage("", 5, 1)),
            # A total that is too small says nothing.
            ({"prompt_tokens": 5, "completion_tokens": 15, "total_tokens": 12}, Usage("", 5, 15)),
            # What cannot be a part says nothing; all of the output may be reasoning.
            ({"prompt_tokens": 5, "completion_tokens": 1, "cached_tokens": 9}, Usage("", 5, 1)),
            (
                {
                    "prompt_tokens": 5,
                    "completion_tokens": 1,
                    "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 4},
                },
                Usage("", 5, 1, 4),
            ),
            (
                {"prompt_tokens": 5, "completion_tokens": 1, "completion_tokens_details": {"reasoning_tokens": 7}},
                Usage("", 5, 1, reasoning_tokens=1),
            ),
        ],
    )
    def test_counts_add_up(self, counts: dict[str, Any], expected: Usage) -> None:
        assert metered(meter_for(200, [JSON]), json.dumps({"usage": counts}).encode()) == expected

    @pytest.mark.parametrize(("traffic", "tier"), [(0, ""), (1, ""), (2, "2"), ("ON_DEMAND_PRIORITY", "priority")])
    def test_the_number_of_an_unusual_tier_is_kept(self, traffic: object, tier: str) -> None:
        body = {"usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 4, "trafficType": traffic}}
        assert metered(meter_for(200, [JSON]), json.dumps(body).encode()) == Usage("", 3, 4, service_tier=tier)

    def test_qwen_counts_cached_tokens_in_the_input(self) -> None:
        """DashScope's Anthropic API, against Anthropic's rule."""
        usage = {"input_tokens": 900, "output_tokens": 9, "cache_read_input_tokens": 800}
        for model, tokens in (("qwen3-max", 900), ("claude", 1700)):
            body = json.dumps({**MESSAGE, "model": model, "usage": usage}).encode()
            assert metered(meter_for(200, [JSON]), body).input_tokens == tokens

    @pytest.mark.parametrize(
        ("path", "tokens"),
        [
            (b"/model/openai.gpt-5.6/converse", 4995),
            (b"/model/us.openai.gpt-5.6/converse", 4995),
            (b"/model/anthropic.claude/converse", 9988),
        ],
    )
    def test_openai_models_on_bedrock_count_cache_writes_in_the_input(self, path: bytes, tokens: int) -> None:
        usage = {"inputTokens": 4995, "outputTokens": 19, "totalTokens": 10007, "cacheWriteInputTokens": 4993}
        assert (
            metered(meter_for(200, [JSON], "POST", path), json.dumps({"usage": usage}).encode()).input_tokens == tokens
        )

    def test_openai_models_on_bedrock_may_follow_the_rule(self) -> None:
        usage = {"inputTokens": 2, "outputTokens": 19, "cacheWriteInputTokens": 4993}
        meter = meter_for(200, [JSON], "POST", b"/model/openai.gpt-5.6/converse")
        assert metered(meter, json.dumps({"usage": usage}).encode()).input_tokens == 4995


class TestBedrockHeaders:
    HEADERS: ClassVar = [
        JSON,
        (b"X-Amzn-Bedrock-Input-Token-Count", b"12"),
        (b"X-Amzn-Bedrock-Output-Token-Count", b"34"),
        (b"x-amzn-bedrock-cache-read-input-token-count", b"5"),
        (b"x-amzn-bedrock-service-tier", b"flex"),
    ]
    PATH = b"/model/amazon.titan-text-express-v1/invoke"

    def test_the_headers_count_if_the_body_has_no_usage(self) -> None:
        found = metered(meter_for(200, self.HEADERS, "POST", self.PATH), b'{"results":[{"outputText":"Hi"}]}')
        assert found == Usage("", 17, 34, 5, service_tier="flex")

    def test_nothing_is_counted_twice(self) -> None:
        usage = {"input_tokens": 12, "cache_read_input_tokens": 5, "output_tokens": 34}
        body = json.dumps({**MESSAGE, "usage": usage}).encode()
        assert metered(meter_for(200, self.HEADERS, "POST", self.PATH), body) == Usage(
            "m", 17, 34, 5, service_tier="flex"
        )

    def test_embeddings_have_no_output(self) -> None:
        headers = [header for header in self.HEADERS if b"Output" not in header[0]]
        found = metered(meter_for(200, headers, "POST", self.PATH), b'{"embedding":[0.5]}')
        assert found == Usage("", 17, 0, 5, service_tier="flex")

    def test_other_providers_headers_are_not_read(self) -> None:
        assert metered(meter_for(200, self.HEADERS, "POST", b"/v1/chat/completions"), b"{}") == Usage()


@pytest.mark.parametrize(
    "path",
    [b"/v1/chat/completions/chatcmpl-1", b"/v1/threads/thread_1/runs/run_1", b"/openai/v1/chat/completions/chatcmpl-1"],
)
def test_a_post_that_changes_metadata_has_no_usage(path: bytes) -> None:
    body = json.dumps({**CHAT, "usage": {"prompt_tokens": 5, "completion_tokens": 6}}).encode()
    assert metered(meter_for(200, [JSON], "POST", path), body) == Usage()
    for other in (b"/v1/chat/completions", b"/v1/threads/thread_1/runs", b"/openai/deployments/d/chat/completions"):
        assert metered(meter_for(200, [JSON], "POST", other), body) == Usage("m", 5, 6)


@pytest.mark.parametrize("path", [b"/v1/images/generations", b"/openai/deployments/d/images/edits"])
@pytest.mark.parametrize("kind", [JSON, EVENTS])
def test_all_output_of_an_endpoint_for_images_is_images(path: bytes, kind: tuple[bytes, bytes]) -> None:
    """https://platform.openai.com/docs/api-reference/images-streaming: these events have no details of the output."""
    usage = {"total_tokens": 100, "input_tokens": 40, "output_tokens": 60, "input_tokens_details": {"image_tokens": 0}}
    text = json.dumps({"type": "image_generation.completed", "usage": usage}).encode()
    body = text if kind is JSON else b"data: " + text + b"\n\n"
    assert metered(meter_for(200, [kind], "POST", path), body).details == {"output_image_tokens": 60}
    assert metered(meter_for(200, [kind], "POST", b"/v1/responses"), body).details is None
