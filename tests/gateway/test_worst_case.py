"""The most that a request can use, and what is refused because that cannot be computed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from textwrap import dedent
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.errors import CostUnbounded
from llm_proxy.gateway.usage import Usage
from llm_proxy.gateway.worst_case import ENDPOINTS, is_free, worst_case
from llm_proxy.limits import Bound
from llm_proxy.prices import Prices

CHAT: Final = b"/v1/chat/completions"
COMPLETION: Final = b"/v1/completions"
EMBEDDING: Final = b"/v1/embeddings"
RESPONSE: Final = b"/v1/responses"
MESSAGE: Final = b"/v1/messages"
PROVIDERS: Final = {
    "openai": "https://api.openai.com",
    "anthropic": "https://api.anthropic.com",
    "deepseek": "https://api.deepseek.com",
    "gemini": "https://generativelanguage.googleapis.com",
    "openrouter": "https://openrouter.ai/api",
    "local": "http://localhost:8000",
}
#: A small request of each endpoint.
SMALLEST: Final[dict[bytes, dict[str, Any]]] = {
    CHAT: {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 10},
    COMPLETION: {"model": "m", "prompt": "Hi", "max_tokens": 10},
    EMBEDDING: {"model": "m", "input": "Hi"},
    RESPONSE: {"model": "m", "input": "Hi", "max_output_tokens": 10},
    MESSAGE: {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 10},
}


@pytest.fixture(scope="module")
def prices(tmp_path_factory: pytest.TempPathFactory) -> Prices:
    path = tmp_path_factory.mktemp("prices") / "prices.yaml"
    path.write_text(
        dedent("""
        prices:
          openai:
            m:
              - {input: 1, cached_input: 0.1, output: 4}
              - {input: 2, cached_input: 0.2, output: 8, service_tier: priority}
            long:
              - {input: 1, output: 4}
              - {input: 2, output: 6, above: 2000}
            cheap: {input: 0.0001, output: 0.0001}
            free: {input: 0, output: 0}
            speaks: {input: 1, output: 2, output_audio: 20}
          anthropic:
            m: {input: 4, cached_input: 0.4, cache_write: 5, output: 20}
          deepseek:
            m: {input: 0.5, output: 2}
          local:
            m: {input: 1, output: 1, request: 0.01}
        """)
    )
    return Prices.load(path, PROVIDERS)


def bound(prices: Prices, path: bytes, body: dict[str, Any] | bytes, provider: str = "", model: str = "m") -> Bound:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return worst_case(path, raw, [model], provider or ("anthropic" if path == MESSAGE else "openai"), prices)


def refused(prices: Prices, path: bytes, body: dict[str, Any] | bytes, provider: str = "", model: str = "m") -> str:
    with pytest.raises(CostUnbounded) as caught:
        bound(prices, path, body, provider, model)
    param = caught.value.param
    assert param is None or f"'{param}'" in caught.value.message
    return param or caught.value.message


#: Values that the rules allow, where it is not any value.
VALUES: Final[dict[Any, Any]] = {
    (COMPLETION, "prompt"): "Hi",
    (CHAT, "tools"): [{"type": "function", "function": {"name": "f"}}],
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of"), 2),
    "modalities": ["text"],
    "service_tier": "flex",
    "background": False,
    "speed": "standard",
    "inference_geo": "global",
    "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
    "tools": [{"name": "f"}],
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    **dict.fromkeys(("previous_response_id", "conversation", "prompt"), None),
    "reasoning": {"effort": "high"},
    "output_config": {"effort": "high"},
    **dict.fromkeys(("input", "system"), "text"),
}
FIELDS: Final = [
    (path, name)
    for path in SMALLEST
    for endpoint in ENDPOINTS
    if endpoint.path.fullmatch(path)
    for name in endpoint.members
]


@pytest.mark.parametrize(("path", "name"), FIELDS)
def test_a_field_of_the_table_has_a_bound(prices: Prices, path: bytes, name: str) -> None:
    value = VALUES.get((path, name), VALUES.get(name, "any"))
    assert bound(prices, path, {**SMALLEST[path], name: value}).cost


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        *((path, {"extra": 1}, "extra") for path in SMALLEST),
        *((path, {"Max_Tokens": 1}, "Max_Tokens") for path in SMALLEST),
        (CHAT, {"audio": {"voice": "alloy"}}, "audio"),
        (CHAT, {"modalities": ["text", "audio"]}, "modalities"),
        (CHAT, {"prediction": {"type": "content", "content": "x"}}, "prediction"),
        (CHAT, {"web_search_options": {}}, "web_search_options"),
        (CHAT, {"service_tier": "scale"}, "service_tier"),
        (CHAT, {"service_tier": ["flex"]}, "service_tier"),
        (CHAT, {"tools": [{"type": "web_search"}]}, "tools.type"),
        (CHAT, {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}, "messages.audio"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.content.type"),
        (CHAT, {"messages": [{"role": "user", "content": [{"image_url": {}}]}]}, "messages.content.image_url"),
        (CHAT, {"messages": [{"role": "user", "content": [{"input_audio": {}}]}]}, "messages.content.input_audio"),
        (CHAT, {"messages": [{"role": "user", "content": [{"file": {"file_id": "f"}}]}]}, "messages.content.file"),
        (COMPLETION, {"echo": True}, "echo"),
        (EMBEDDING, {"input": [{"image": "x"}]}, "input.image"),
        (RESPONSE, {"background": True}, "background"),
        (RESPONSE, {"previous_response_id": "resp_1"}, "previous_response_id"),
        (RESPONSE, {"conversation": "conv_1"}, "conversation"),
        (RESPONSE, {"prompt": {"id": "pmpt_1"}}, "prompt"),
        (RESPONSE, {"reasoning": {"mode": "pro"}}, "reasoning.mode"),
        (RESPONSE, {"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.type"),
        (RESPONSE, {"input": [{"id": "msg_1"}]}, "input.type"),
        (RESPONSE, {"input": [{"type": None, "id": "msg_1"}]}, "input.type"),
        (RESPONSE, {"input": [{"type": "reasoning", "id": "rs_1"}]}, "input.type"),
        (RESPONSE, {"input": [{"content": [{"type": "input_image"}]}]}, "input.content.type"),
        (RESPONSE, {"input": [{"content": [{"file_id": "f"}]}]}, "input.content.file_id"),
        (RESPONSE, {"input": [{"output": [{"type": "input_file"}]}]}, "input.output.type"),
        *(
            (RESPONSE, {"tools": [{"type": kind}]}, "tools.type")
            for kind in ("web_search", "file_search", "code_interpreter", "mcp", "image_generation", "computer")
        ),
        (MESSAGE, {"container": "c"}, "container"),
        (MESSAGE, {"mcp_servers": []}, "mcp_servers"),
        (MESSAGE, {"fallbacks": []}, "fallbacks"),
        (MESSAGE, {"speed": "fast"}, "speed"),
        (MESSAGE, {"inference_geo": "us"}, "inference_geo"),
        (MESSAGE, {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.type"),
        (MESSAGE, {"context_management": {"edits": [{"type": "compact_20260112"}]}}, "context_management.edits.type"),
        (MESSAGE, {"messages": [{"content": [{"type": "image"}]}]}, "messages.content.type"),
        (MESSAGE, {"messages": [{"content": [{"source": {"type": "file"}}]}]}, "messages.content.source"),
        (
            MESSAGE,
            {"messages": [{"content": [{"type": "tool_result", "content": [{"type": "document"}]}]}]},
            "messages.content.content.type",
        ),
    ],
)
def test_a_field_outside_of_the_table_is_refused_by_its_name(
    prices: Prices, path: bytes, fields: dict[str, Any], param: str
) -> None:
    assert refused(prices, path, {**SMALLEST[path], **fields}) == param


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"model":"m","max_tokens":1,"max_tokens":100000}', "max_tokens"),
        (b'{"max_tokens":1,"messages":[{"content":[{"text":"a","te\\u0078t":"b"}]}]}', "text"),
        (b'{"max_tokens":1', "must be a JSON object"),
        (b'{"max_tokens":1}{}', "must be a JSON object"),
        (b'{"max_tokens":NaN}', "must be a JSON object"),
        (b'\xef\xbb\xbf{"max_tokens":1}', "must be a JSON object"),
        (b'{"user":"\xff"}', "must be a JSON object"),
        (b"[]", "must be a JSON object"),
        (b"", "must be a JSON object"),
        (b'{"messages":' + b"[" * 40_000, "must be a JSON object"),
    ],
)
def test_a_body_that_can_be_read_in_two_ways_is_refused(prices: Prices, body: bytes, words: str) -> None:
    assert words in refused(prices, CHAT, body)


def test_a_body_that_is_not_held_is_refused(prices: Prices) -> None:
    with pytest.raises(CostUnbounded, match="1 MiB"):
        worst_case(CHAT, None, ["m"], "openai", prices)


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"max_completion_tokens": None}, "max_completion_tokens"),
        (COMPLETION, {"max_tokens": None}, "max_tokens"),
        (RESPONSE, {"max_output_tokens": None}, "max_output_tokens"),
        (MESSAGE, {"max_tokens": None}, "max_tokens"),
        *((CHAT, {"max_tokens": value}, "max_tokens") for value in (0, -1, 1.5, True, "10", 10**4000)),
        *((CHAT, {"n": value}, "n") for value in (0, -1, 1.5, "2")),
        *(
            (MESSAGE, {"thinking": {"type": "enabled", "budget_tokens": value}}, "thinking.budget_tokens")
            for value in (10, 60_000, 9.5, "9")
        ),
    ],
)
def test_a_request_without_a_whole_maximum_is_refused(
    prices: Prices, path: bytes, fields: dict[str, Any], param: str
) -> None:
    assert refused(prices, path, {**SMALLEST[path], **fields}) == param


@pytest.mark.parametrize("thinking", [{"type": "enabled", "budget_tokens": 9}, {"type": "adaptive"}, None])
def test_thinking_below_the_maximum_is_part_of_it(prices: Prices, thinking: Any) -> None:
    assert bound(prices, MESSAGE, {**SMALLEST[MESSAGE], "thinking": thinking}).output_tokens == 10


def test_a_maximum_that_a_server_may_not_know_is_refused(prices: Prices) -> None:
    body = SMALLEST[CHAT]
    assert refused(prices, CHAT, body, "local") == "max_completion_tokens"
    assert refused(prices, CHAT, {"messages": []}, "local") == "max_tokens"
    assert bound(prices, CHAT, {"messages": [], "max_tokens": 7}, "local").output_tokens == 7


@pytest.mark.parametrize(
    "model", ["gpt-4o-search-preview", "o3-deep-research", "groq/compound", "sonar", "m:online", "computer-use-preview"]
)
def test_a_model_that_runs_tools_by_itself_is_refused(prices: Prices, model: str) -> None:
    assert refused(prices, CHAT, SMALLEST[CHAT], model=model) == "model"


@pytest.mark.parametrize("provider", ["gemini", "openrouter"])
def test_a_provider_without_a_documented_maximum_is_refused(prices: Prices, provider: str) -> None:
    assert provider in refused(prices, CHAT, SMALLEST[CHAT], provider)


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/images/generations",
        b"/v1/audio/speech",
        b"/v1/batches",
        b"/v1/responses/compact",
        b"/v1/threads/t/runs",
        b"/v1/vector_stores/v/files",
    ],
)
def test_an_endpoint_outside_of_the_table_is_refused(prices: Prices, path: bytes) -> None:
    assert "endpoint" in refused(prices, path, {"model": "m"})


@pytest.mark.parametrize(
    "path", [b"/v1/messages/count_tokens", b"/v1/responses/input_tokens", b"/v1/files", b"/v1/responses/r/cancel"]
)
def test_an_endpoint_that_is_not_billed_is_free(path: bytes) -> None:
    assert is_free("POST", path, "mistral")


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/moderations",
        b"/v1/conversations",
        b"/v1/conversations/c",
        b"/v1/conversations/c/items",
        b"/v1/chat/completions/c",
        b"/v1/fine_tuning/jobs/f/cancel",
    ],
)
def test_an_endpoint_may_be_free_at_one_vendor_only(path: bytes) -> None:
    assert is_free("POST", path, "openai")
    assert not is_free("POST", path, "mistral")
    assert not is_free("POST", path, None)


@pytest.mark.parametrize(
    "path", [CHAT, b"/v1/fine_tuning/jobs", b"/v1/fine_tuning/jobs/f/resume", b"/v1/vector_stores", b"/v1/threads/runs"]
)
def test_an_endpoint_that_is_billed_is_not_free(path: bytes) -> None:
    assert not is_free("POST", path, "openai")


def test_only_post_requests_are_billed() -> None:
    assert is_free("GET", CHAT, None)
    assert not is_free("POST", CHAT, None)
    assert not is_free("POST", b"/v1/responses/compact", None)
    assert not is_free("POST", b"/v1/vector_stores/v/files", None)


def padded(path: bytes, size: int, **fields: Any) -> bytes:
    """A body of this many bytes."""
    body = json.dumps({**SMALLEST[path], **fields}).encode()
    return body + b" " * (size - len(body))


@pytest.mark.parametrize(
    ("path", "provider", "model", "fields", "expected"),
    [
        # 1000 bytes and 1024 tokens of OpenAI's own, at $2 per million in the priority tier; 10 tokens at $8.
        (CHAT, "openai", "m", {}, Bound(2024, 10, 2024 * 2000 + 10 * 8000)),
        (CHAT, "openai", "m", {"service_tier": "default"}, Bound(2024, 10, 2024 * 1000 + 10 * 4000)),
        (CHAT, "openai", "m", {"service_tier": "flex", "n": 3}, Bound(2024, 30, 2024 * 1000 + 30 * 4000)),
        (CHAT, "openai", "m", {"max_tokens": 50}, Bound(2024, 50, 2024 * 2000 + 50 * 8000)),
        # Above 2000 tokens of input, both rates are higher.
        (CHAT, "openai", "long", {}, Bound(2024, 10, 2024 * 2000 + 10 * 6000)),
        # The answer could be spoken.
        (CHAT, "openai", "speaks", {}, Bound(2024, 10, 2024 * 1000 + 10 * 20_000)),
        (CHAT, "openai", "free", {}, Bound(2024, 10, 0)),
        (CHAT, "openai", "free", {"service_tier": "priority"}, Bound(2024, 10, None)),
        (CHAT, "openai", "unknown", {}, Bound(2024, 10, None)),
        # Ten answers for each of two prompts.
        (
            COMPLETION,
            "openai",
            "m",
            {"prompt": ["a", "b"], "best_of": 10, "n": 2},
            Bound(1064, 200, 1064 * 2000 + 200 * 8000),
        ),
        (EMBEDDING, "openai", "m", {}, Bound(1064, 0, 1064 * 2000)),
        (RESPONSE, "openai", "m", {"max_output_tokens": 128_000}, Bound(2024, 128_000, 2024 * 2000 + 128_000 * 8000)),
        # Anthropic's writes to the cache for an hour cost twice the input.
        (MESSAGE, "anthropic", "m", {}, Bound(3048, 10, 3048 * 8000 + 10 * 20_000)),
        (MESSAGE, "anthropic", "m", {"thinking": {"budget_tokens": 9}}, Bound(3048, 10, 3048 * 8000 + 10 * 20_000)),
        # Others know no priority tier.
        (
            CHAT,
            "deepseek",
            "m",
            {"max_completion_tokens": None, "max_tokens": 10},
            Bound(2024, 10, 2024 * 500 + 10 * 2000),
        ),
        # One cent for each request.
        (
            CHAT,
            "local",
            "m",
            {"max_completion_tokens": None, "max_tokens": 10},
            Bound(2024, 10, 2034 * 1000 + 10_000_000),
        ),
    ],
)
def test_the_bound_is_the_one_computed_by_hand(
    prices: Prices, path: bytes, provider: str, model: str, fields: dict[str, Any], expected: Bound
) -> None:
    assert bound(prices, path, padded(path, 1000, **fields), provider, model) == expected


@pytest.mark.parametrize(
    ("prompt", "answers"), [("a", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1], [2, 3]], 2), ([], 1)]
)
def test_each_prompt_of_a_completion_has_an_answer(prices: Prices, prompt: Any, answers: int) -> None:
    assert bound(prices, COMPLETION, {**SMALLEST[COMPLETION], "prompt": prompt}).output_tokens == 10 * answers


def test_the_cost_is_rounded_up(prices: Prices) -> None:
    # A token at $0.0001 per million costs a tenth of 10^-9 USD.
    assert prices.highest("openai", "cheap", "", datetime.now(UTC), 1, 0) == 1


@given(
    size=st.integers(200, 5000),
    maximum=st.integers(1, 10_000),
    shares=st.lists(st.floats(0, 1), min_size=5, max_size=5),
    tier=st.sampled_from(["", "default", "priority"]),
)
def test_no_usage_within_the_bound_costs_more(
    prices: Prices, size: int, maximum: int, shares: list[float], tier: str
) -> None:
    for path, provider in ((CHAT, "openai"), (MESSAGE, "anthropic")):
        name = "max_tokens" if path == MESSAGE else "max_completion_tokens"
        fields: dict[str, Any] = {name: maximum}
        if tier and path == CHAT:
            fields["service_tier"] = tier
        most = bound(prices, path, padded(path, size, **fields), provider)
        tokens = int(most.input_tokens * shares[0])
        read = int(tokens * shares[1])
        written = int((tokens - read) * shares[2])
        usage = Usage(
            model="m",
            input_tokens=tokens,
            output_tokens=int(most.output_tokens * shares[3]),
            cached_tokens=read,
            cache_write_tokens=written if path == MESSAGE else None,
            cache_write_1h_tokens=int(written * shares[4]) if path == MESSAGE else None,
            reasoning_tokens=0,
            service_tier=tier if path == CHAT else "",
        )
        paid = prices.cost(provider, (usage,), datetime.now(UTC), "m")
        assert paid is not None
        assert most.cost is not None
        assert paid.nanousd <= most.cost


#: Of 1 MiB at most.
MANY = 60_000


@pytest.mark.parametrize(
    "content", ["[" + "[]," * MANY + "[]]", "[" + "{}," * MANY + "{}]", "[[]," * (MANY // 2) + "[]" + "]" * (MANY // 2)]
)
def test_a_body_with_very_many_objects_or_lists_is_refused_unread(
    prices: Prices, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    body = f'{{"model": "m", "max_tokens": 1, "messages": [{{"role": "user", "content": {content}}}]}}'.encode()
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("it is read"))
    assert "at most 50000 objects and lists" in refused(prices, CHAT, body)


@pytest.mark.parametrize("text", ["[{" * MANY, '\\"[' * MANY, '\\\\" [{' * MANY])
def test_brackets_in_a_text_are_no_objects_or_lists(prices: Prices, text: str) -> None:
    body = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": text}]}
    assert bound(prices, CHAT, body).output_tokens == 1


def test_many_ids_of_tokens_have_a_bound(prices: Prices) -> None:
    body = {"model": "m", "input": [[1] * MANY, "a text"]}
    assert bound(prices, EMBEDDING, body).output_tokens == 0
    assert refused(prices, EMBEDDING, {**body, "input": [1, [2, {"image": ""}]]}) == "input.image"
