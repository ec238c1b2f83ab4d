"""What the members of each vendor's report mean: a table, one row per shape, and the arithmetic on the counts.

A row says in which place of an answer the report is, and maps its members to counts. Objects inside are read by the
same rule. Of a list of tagged counts, such as Gemini's modalities, each tag is a member, in lower case. A member `""`
is the value itself, if a vendor sends a number where another one sends an object. Others are ignored.

- `prompt`, `completion`, `total`: all tokens of the prompt, all generated ones, their sum
- `input`, `output`: the same, under names that give way to these two if an answer has both
- `+cached`, `+write`, `+input`, `+reasoning`: counts beside `input` and `output`: they are added
- `cached`, `write`, `reasoning`: counts that are parts of the others; `hit` is `cached` by a name that gives way to it
- `billed_images`: tokens of images beside those of the prompt
- `write_5m`, `write_1h`: cache writes by their lifetime
- `usd`, `usd_ticks`: the price that the provider itself charges
- `market_usd`: what Vercel's gateway calls the price without discounts
- `own_key`, `upstream_usd`: whether OpenRouter used the client's own key, and the bill for that, beside `usd`
- `tier`, `speed`, `place`: texts that decide on the price
- all others: names in `Usage.details`
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

import msgspec
from attrs import frozen

#: A larger number is an error of the provider, not a count of tokens.
MAX_TOKENS: Final = 1_000_000_000

#: Maximum length of a model name, in characters. Longer ones are cut.
MAX_MODEL: Final = 255

Members = Mapping[str, "str | Members"]

#: Counts in `Usage.details`: parts of the token counts, or extras that are billed by their number.
DETAILS: Final = frozenset(
    {
        "input_audio_tokens",
        "input_image_tokens",
        "input_video_tokens",
        "cached_audio_tokens",
        "cached_image_tokens",
        "output_audio_tokens",
        "output_image_tokens",
        "citation_tokens",
        "audio_ms",
        "images",
        "pages",
        "web_searches",
        "web_fetches",
        "code_executions",
        "file_searches",
        "social_searches",
        "other_tools",
        "image_tool_tokens",
        "search_units",
        "search_sources",
        "classifications",
    }
)

#: Numbers that may have a fraction, and the factor to the unit that is kept: milliseconds, 10^-9 USD.
_SCALES: Final[Mapping[str, float]] = {
    "audio_ms": 1000,
    "usd": 1_000_000_000,
    "usd_ticks": 0.1,
    "market_usd": 1_000_000_000,
    "upstream_usd": 1_000_000_000,
}
#: A million USD, and 30,000 years of sound: a larger number is an error too, and may be too large for the database.
_MAX_SCALED: Final = 10**15
_TEXTS: Final = frozenset({"tier", "speed", "place"})
#: All that is no count.
_OTHERS: Final = _TEXTS | set(_SCALES) | {"own_key"}
#: If one of these cannot be read, the counts are still right.
_OPTIONAL: Final = DETAILS | _OTHERS
_TEXT: Final = re.compile(r"[\x20-\x7e]{1,32}")


@frozen
class ReportShape:
    """A row: who sends it, where that is documented, in which member of an answer it is, and what its members mean."""

    name: str
    source: str
    place: str
    members: Members


_LIFETIMES: Final[Members] = {"ephemeral_5m_input_tokens": "write_5m", "ephemeral_1h_input_tokens": "write_1h"}
_PROMPT_DETAILS: Final[Members] = {
    "cached_tokens": "cached",
    "cache_write_tokens": "write",
    # Alibaba, https://www.alibabacloud.com/help/en/model-studio/context-cache, and LiteLLM
    "cache_creation_input_tokens": "write",
    "cache_creation_tokens": "write",
    "cache_creation": _LIFETIMES,
    "cache_creation_token_details": _LIFETIMES,
    "audio_tokens": "input_audio_tokens",
    "image_tokens": "input_image_tokens",
    "video_tokens": "input_video_tokens",
}
_OUTPUT_DETAILS: Final = {
    "reasoning_tokens": "reasoning",
    "audio_tokens": "output_audio_tokens",
    "image_tokens": "output_image_tokens",
}
#: By name, or by number if the client asked for `enum-encoding=int`, as Vertex's Python library does.
_MODALITIES_IN: Final = {
    "audio": "input_audio_tokens",
    "image": "input_image_tokens",
    "video": "input_video_tokens",
    "4": "input_audio_tokens",
    "2": "input_image_tokens",
    "3": "input_video_tokens",
}
_MODALITIES_CACHED: Final = {
    "audio": "cached_audio_tokens",
    "image": "cached_image_tokens",
    "4": "cached_audio_tokens",
    "2": "cached_image_tokens",
}
_MODALITIES_OUT: Final = {
    "audio": "output_audio_tokens",
    "image": "output_image_tokens",
    "4": "output_audio_tokens",
    "2": "output_image_tokens",
}
_COHERE: Final[Members] = {
    "billed_units": {
        "input_tokens": "prompt",
        "output_tokens": "completion",
        "image_tokens": "billed_images",
        "search_units": "search_units",
        "classifications": "classifications",
        "images": "images",
    },
    "tokens": {"input_tokens": "input", "output_tokens": "output", "reasoning_tokens": "reasoning"},
    "cached_tokens": "hit",
}

SHAPES: Final = (
    ReportShape(
        "OpenAI chat completions, completions, embeddings",
        "https://platform.openai.com/docs/api-reference/chat/object",
        "usage",
        {
            "prompt_tokens": "prompt",
            "completion_tokens": "completion",
            "total_tokens": "total",
            "prompt_tokens_details": _PROMPT_DETAILS,
            "completion_tokens_details": _OUTPUT_DETAILS,
        },
    ),
    ReportShape(
        "OpenAI assistants",
        "https://platform.openai.com/docs/api-reference/runs/object",
        "usage",
        {"prompt_token_details": _PROMPT_DETAILS},
    ),
    ReportShape(
        "OpenAI responses, images",
        "https://platform.openai.com/docs/api-reference/responses/object",
        "usage",
        {
            "input_tokens": "input",
            "output_tokens": "output",
            "total_tokens": "total",
            "input_tokens_details": _PROMPT_DETAILS,
            "output_tokens_details": _OUTPUT_DETAILS,
        },
    ),
    ReportShape(
        "OpenAI responses, tools",
        "https://platform.openai.com/docs/api-reference/responses/object",
        "tool_usage",
        {"web_search": {"num_requests": "web_searches"}, "image_gen": {"total_tokens": "image_tool_tokens"}},
    ),
    ReportShape(
        "OpenAI realtime, audio by tokens",
        "https://platform.openai.com/docs/api-reference/realtime-server-events/response/done",
        "usage",
        {
            "input_tokens": "input",
            "output_tokens": "output",
            "total_tokens": "total",
            "input_token_details": {
                **_PROMPT_DETAILS,
                "cached_tokens_details": {"audio_tokens": "cached_audio_tokens", "image_tokens": "cached_image_tokens"},
            },
            "output_token_details": _OUTPUT_DETAILS,
        },
    ),
    ReportShape(
        "OpenAI audio by duration",
        "https://platform.openai.com/docs/api-reference/audio/json-object",
        "usage",
        {"seconds": "audio_ms"},
    ),
    ReportShape(
        "Anthropic messages",
        "https://platform.claude.com/docs/en/api/messages",
        "usage",
        {
            "input_tokens": "input",
            "output_tokens": "output",
            "cache_read_input_tokens": "+cached",
            "cache_creation_input_tokens": "+write",
            "cache_creation": _LIFETIMES,
            "output_tokens_details": {"thinking_tokens": "reasoning"},
            "server_tool_use": {
                "web_search_requests": "web_searches",
                "web_fetch_requests": "web_fetches",
                "code_execution_requests": "code_executions",
            },
            "service_tier": "tier",
            "speed": "speed",
            "inference_geo": "place",
        },
    ),
    ReportShape(
        "Gemini",
        "https://ai.google.dev/api/generate-content#UsageMetadata",
        "usageMetadata",
        {
            "promptTokenCount": "input",
            "toolUsePromptTokenCount": "+input",
            "cachedContentTokenCount": "cached",
            "candidatesTokenCount": "output",
            "responseTokenCount": "output",
            "thoughtsTokenCount": "+reasoning",
            "totalTokenCount": "total",
            "promptTokensDetails": _MODALITIES_IN,
            "promptTokenDetails": _MODALITIES_IN,
            "cacheTokensDetails": _MODALITIES_CACHED,
            "candidatesTokensDetails": _MODALITIES_OUT,
            "responseTokensDetails": _MODALITIES_OUT,
            "serviceTier": "tier",
            "trafficType": "tier",
        },
    ),
    ReportShape(
        "Vertex AI chat completions",
        "https://cloud.google.com/vertex-ai/generative-ai/docs/start/openai",
        "usage",
        {"extra_properties": {"google": {"traffic_type": "tier"}}},
    ),
    ReportShape(
        "Gemini interactions",
        "https://ai.google.dev/api/interactions-api",
        "usage",
        {
            "total_input_tokens": "input",
            "total_tool_use_tokens": "+input",
            "total_cached_tokens": "cached",
            "total_output_tokens": "output",
            "total_thought_tokens": "+reasoning",
            "total_tokens": "total",
            "input_tokens_by_modality": _MODALITIES_IN,
            "cached_tokens_by_modality": _MODALITIES_CACHED,
            "output_tokens_by_modality": _MODALITIES_OUT,
            "grounding_tool_count": {"google_search": "web_searches", "google_maps": "other_tools"},
        },
    ),
    ReportShape(
        "xAI",
        "https://docs.x.ai/developers/cost-tracking",
        "usage",
        {
            "num_sources_used": "search_sources",
            "cost_in_usd_ticks": "usd_ticks",
            "server_side_tool_usage_details": {
                "web_search_calls": "web_searches",
                "x_search_calls": "social_searches",
                "code_interpreter_calls": "code_executions",
                "file_search_calls": "file_searches",
            },
        },
    ),
    ReportShape(
        "OpenRouter",
        "https://openrouter.ai/docs/use-cases/usage-accounting",
        "usage",
        {
            "cost": {"": "usd"},
            "is_byok": "own_key",
            "cost_details": {"upstream_inference_cost": "upstream_usd"},
            "server_tool_use": {"web_search_requests": "web_searches"},
            "server_tool_use_details": {"web_search_requests": "web_searches"},
        },
    ),
    ReportShape("Vercel AI Gateway", "https://vercel.com/docs/ai-gateway", "usage", {"market_cost": "market_usd"}),
    ReportShape(
        "Perplexity",
        "https://docs.perplexity.ai/api-reference/sonar-post",
        "usage",
        {
            "reasoning_tokens": "reasoning",
            "citation_tokens": "citation_tokens",
            "num_search_queries": "web_searches",
            "cost": {"total_cost": "usd"},
        },
    ),
    ReportShape(
        "DeepSeek",
        "https://api-docs.deepseek.com/api/create-chat-completion",
        "usage",
        {"prompt_cache_hit_tokens": "hit"},
    ),
    ReportShape("Moonshot", "https://platform.moonshot.ai/docs/api/chat", "usage", {"cached_tokens": "hit"}),
    ReportShape("Mistral", "https://docs.mistral.ai/api", "usage", {"num_cached_tokens": "hit"}),
    ReportShape("Mistral audio", "https://docs.mistral.ai/api", "usage", {"prompt_audio_seconds": "audio_ms"}),
    ReportShape(
        "Mistral conversations",
        "https://docs.mistral.ai/agents/connectors/connectors_overview",
        "usage",
        {
            "connector_tokens": "+input",
            "connectors": {
                "web_search": "web_searches",
                "code_interpreter": "code_executions",
                "web_search_premium": "other_tools",
                "image_generation": "other_tools",
            },
        },
    ),
    ReportShape("Mistral OCR", "https://docs.mistral.ai/api", "usage_info", {"pages_processed": "pages"}),
    ReportShape("Cohere v2", "https://docs.cohere.com/reference/chat", "usage", _COHERE),
    ReportShape("Cohere v1, embed, rerank", "https://docs.cohere.com/reference/embed", "meta", _COHERE),
    ReportShape(
        "Ollama",
        "https://github.com/ollama/ollama/blob/main/docs/api.md",
        "",
        {"prompt_eval_count": "prompt", "eval_count": "completion"},
    ),
    ReportShape(
        "Bedrock Llama",
        "https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters-meta.html",
        "",
        {"prompt_token_count": "prompt", "generation_token_count": "completion"},
    ),
    ReportShape(
        "Bedrock Titan embeddings",
        "https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters-titan-embed-text.html",
        "",
        {"inputTextTokenCount": "prompt"},
    ),
    ReportShape(
        "Bedrock Converse",
        "https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_TokenUsage.html",
        "usage",
        # Not `totalTokens`: for OpenAI's models it counts cached tokens twice.
        {
            "inputTokens": "input",
            "outputTokens": "output",
            "cacheReadInputTokens": "+cached",
            "cacheReadInputTokenCount": "+cached",
            "cacheWriteInputTokens": "+write",
            "cacheWriteInputTokenCount": "+write",
            "cacheDetails": {"5m": "write_5m", "1h": "write_1h"},
        },
    ),
    ReportShape(
        "Bedrock InvokeModelWithResponseStream",
        "https://docs.aws.amazon.com/bedrock/latest/userguide/inference-invoke.html",
        "amazon-bedrock-invocationMetrics",
        {
            "inputTokenCount": "input",
            "outputTokenCount": "output",
            "cacheReadInputTokenCount": "+cached",
            "cacheWriteInputTokenCount": "+write",
        },
    ),
    ReportShape(
        "Bedrock InvokeModel",
        "https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_InvokeModel.html",
        "x-amzn-bedrock",
        {
            "input-token-count": "input",
            "output-token-count": "output",
            "cache-read-input-token-count": "+cached",
            "cache-write-input-token-count": "+write",
            "service-tier": "tier",
        },
    ),
)

#: Places whose servers leave out counts that are zero.
ZERO_IS_OMITTED: Final = frozenset({"usageMetadata", "meta", ""})

#: Members of a tagged count in a list: Gemini's modalities and tools, Bedrock's lifetimes.
_TAGS: Final = ("modality", "ttl", "type")
_TAGGED: Final = ("tokenCount", "tokens", "inputTokens", "count")


class Usage(msgspec.Struct, frozen=True, gc=False):
    """What a response has used. None if the provider did not say; `model` is then often empty too.

    Attributes:
        input_tokens: all tokens of the prompt.
        output_tokens: all generated tokens; 0 if a provider reports input only (embeddings).
        cached_tokens: part of the input that was read from the provider's cache.
        cache_write_tokens: part of the input that was written to it.
        cache_write_1h_tokens: part of `cache_write_tokens` that is kept for an hour.
        reasoning_tokens: part of the output.
        details: further parts of these counts, and extras that are billed by their number.
        service_tier: as the answer names it.
        cost_nanousd: what the provider says that it charges, in 10^-9 USD.
        parts: what has rates of its own, such as each of several models; the counts here are the sum.
        requests: the number of requests whose sum this is.
    """

    model: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    reasoning_tokens: int | None = None
    details: dict[str, int] | None = None
    service_tier: str = ""
    cost_nanousd: int | None = None
    parts: tuple[Usage, ...] = ()
    requests: int = 1

    @property
    def is_known(self) -> bool:
        """Whether it says anything of what was used; with empty `details`, that nobody counted it."""
        return self.input_tokens is not None or self.details is not None


UNKNOWN: Final = Usage()

_SUMMED: Final = (
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
    "cost_nanousd",
)


def merged(rows: Iterable[Members]) -> Members:
    """The entries of several rows in one table; raises ValueError if two of them contradict each other."""
    table: dict[str, str | Members] = {}
    for row in rows:
        for name, meaning in row.items():
            known = table.get(name)
            if isinstance(known, Mapping) and isinstance(meaning, Mapping):
                table[name] = merged((known, meaning))
            elif known is None or known == meaning:
                table[name] = meaning
            else:
                raise ValueError(name)
    return table


#: The entries of all rows, by the place of the report.
TABLES: Final[Mapping[str, Members]] = {
    place: merged(shape.members for shape in SHAPES if shape.place == place)
    for place in dict.fromkeys(shape.place for shape in SHAPES)
}


def collect(members: Members, report: Mapping[str, Any], counts: dict[str, Any]) -> bool:
    """Put the counts of a report into `counts`; False if one of them cannot be read."""
    readable = True
    for name, value in report.items():
        meaning = members.get(name)
        if meaning is None or value is None:
            continue
        if type(meaning) is str:
            if type(value) is int and 0 <= value <= MAX_TOKENS and meaning not in _OTHERS:  # nearly always
                if value or meaning == "output" or meaning not in counts:
                    counts[meaning] = value
            else:
                readable &= collect_value(meaning, value, counts)
        elif type(value) is dict:
            readable &= collect(cast("Members", meaning), value, counts)
        else:
            readable &= _collect_odd(cast("Members", meaning), value, counts)
    return readable


def _collect_odd(members: Members, value: object, counts: dict[str, Any]) -> bool:
    """Put something that is no object where another vendor sends one into `counts`."""
    if isinstance(value, list) and (found := _tagged(value)) is not None:
        return collect(members, found, counts)
    meaning = members.get("")
    return isinstance(meaning, str) and collect_value(meaning, value, counts)


def collect_value(meaning: str, value: object, counts: dict[str, Any]) -> bool:
    """Put the value of a member into `counts`; False if it cannot be read."""
    known = _value(meaning, value)
    if known or (known is not None and (meaning == "output" or meaning not in counts)):
        counts[meaning] = known
    return known is not None or meaning in _OPTIONAL


def _value(meaning: str, value: object) -> int | str | None:
    """The value of a member in the unit that is kept; None if it is implausible.

    A count is a plausible number of tokens: no fraction, not negative, no truth value.
    """
    if meaning in _TEXTS:
        text = value.get("type") if isinstance(value, dict) else value  # Bedrock has an object
        if type(text) is int and text > 1:  # Vertex's kinds of traffic as numbers; 1 is the usual one
            text = str(text)
        return text if isinstance(text, str) and _TEXT.fullmatch(text) else None
    if meaning == "own_key":
        return int(value is True)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    scale = _SCALES.get(meaning)
    if scale is not None:
        return round(value * scale) if 0 <= value <= _MAX_SCALED and value * scale <= _MAX_SCALED else None
    # Cohere's API has numbers with a fraction of 0.
    return int(value) if 0 <= value <= MAX_TOKENS and value == int(value) else None


def _tagged(items: list[Any]) -> dict[str, Any] | None:
    """The counts of a list, by their tags; None if it is another list."""
    found: dict[str, Any] = {}
    for item in items:
        if not isinstance(item, dict):
            return None
        tag = next((str(tag).lower() for name in _TAGS if isinstance(tag := item.get(name), str | int)), "")
        count = next((item[name] for name in _TAGGED if name in item), None)
        known = found.get(tag)
        found[tag] = known + count if type(known) is int and type(count) is int else count
    return found


def usage_of(model: str, counts: Mapping[str, Any], *, zero: bool = False, inside: bool = False) -> Usage:
    """The usage that the counts of an answer add up to.

    Args:
        model: the model that answered.
        counts: as `collect` has found them.
        zero: the server leaves out counts that are zero.
        inside: the server counts cached tokens in the input, against the rule of its API.
    """
    get = counts.get
    details = _details(counts)
    read, written, hourly = get("+cached"), _written(counts), get("write_1h")
    tokens, output = _with_beside(counts, (read or 0) + (written or 0), inside=inside)
    reasoning = get("+reasoning", get("reasoning"))
    if (
        reasoning
        and output is not None
        and ("citation_tokens" in counts or (reasoning > output and "market_usd" in counts))
    ):
        output += reasoning  # beside the output: Perplexity, and Google's models behind Vercel's gateway
    total = get("total")
    if total and tokens == output == 0:
        tokens = output = None  # Nothing of what is in the total is listed.
    elif total is not None:
        if tokens is None and total >= (output or 0):
            tokens = total - (output or 0)
        rest = -1 if tokens is None else total - tokens - (output or 0)
        if output is None:
            output = rest if rest >= 0 else None
        elif rest > 0 and tokens is not None and "audio_ms" in counts:
            tokens += rest  # Mistral's prompt leaves out the audio
            details["input_audio_tokens"] = rest
        elif tokens is not None and 0 < rest == (get("cached") or 0) > tokens:
            tokens += rest  # cached tokens beside the prompt, against the rule of the API
        elif rest > 0:
            # Reasoning that is not listed, or listed beside the output.
            output += rest
            reasoning = max(reasoning or 0, rest)
    if output is None and tokens is not None and zero:
        output = 0
    cached = get("cached", get("hit", 0 if written is not None else None) if read is None else read)
    written = get("write", written)
    if tokens is not None:
        # What cannot be a part says nothing. Cohere's cached tokens are part of tokens that are not all billed.
        cached = None if cached is None or cached > tokens else cached
        written = None if written is None or written > tokens - (cached or 0) else written
    return Usage(
        model,
        tokens,
        output,
        cached,
        written,
        hourly and min(hourly, written or 0),
        reasoning if output is None else reasoning and min(reasoning, output),
        details or None,
        _tier(counts),
        _charged(counts),
    )


def _details(counts: Mapping[str, Any]) -> dict[str, int]:
    details = {}
    if not DETAILS.isdisjoint(counts):
        details = {name: count for name, count in counts.items() if name in DETAILS and count}
    if images := counts.get("billed_images"):
        details["input_image_tokens"] = images
    if counts.get("place") == "us":  # This costs more: https://platform.claude.com/docs/en/manage-claude/data-residency
        details["us_inference"] = 1
    return details


def _written(counts: Mapping[str, Any]) -> int | None:
    """Tokens written to the cache beside the input, in one count or by their lifetime; None if there is neither."""
    written: int | None = counts.get("+write")
    if written is None and "write" not in counts and not counts.keys().isdisjoint(("write_5m", "write_1h")):
        return int(counts.get("write_5m", 0) + counts.get("write_1h", 0))
    return written


def _charged(counts: Mapping[str, Any]) -> int | None:
    """What the provider charges in 10^-9 USD, with the bill for the client's own key; None if one is unknown."""
    charged: int | None = counts.get("usd", counts.get("usd_ticks") or None)  # Azure sends 0 for xAI's models.
    if not counts.get("own_key"):
        return charged
    upstream: int | None = counts.get("upstream_usd")
    return None if upstream is None else upstream + (charged or 0)


def _tier(counts: Mapping[str, Any]) -> str:
    if counts.get("speed") == "fast":  # Anthropic's fast mode
        return "fast"
    tier: str = counts.get("tier", "")
    if tier:
        tier = tier.lower().removeprefix("on_demand_")  # Vertex's kinds of traffic
    return "" if tier.endswith("unspecified") else tier


def _with_beside(counts: Mapping[str, Any], cache: int, *, inside: bool) -> tuple[int | None, int | None]:
    """All tokens of the prompt, and all generated ones, with the counts beside them; `cache` is the part for its cache.

    If the counts without them are the total already, nothing is beside them. OpenAI's names say that nothing is, unless
    the total says otherwise.
    """
    get = counts.get
    prompt, output, total = get("prompt"), get("completion"), get("total")
    tokens = get("input") if prompt is None else prompt
    if images := get("billed_images"):
        tokens = (tokens or 0) + images
    if output is None:
        output = get("output")
    more, reasoning = get("+input"), get("+reasoning")
    if not cache and more is None and reasoning is None:
        return tokens, output
    plain = (tokens or 0) + (output or 0)
    if total == plain or (prompt is not None and total != plain + cache + (more or 0) + (reasoning or 0)):
        return tokens, output
    if tokens is not None and not (inside and tokens >= cache):
        tokens += cache
    if more is not None:
        tokens = (tokens or 0) + more
    if reasoning is not None:
        output = (output or 0) + reasoning
    return tokens, output


def attempts(model: str, counts: Mapping[str, Any], iterations: Iterable[Any]) -> list[Usage]:
    """The usage of each step in Anthropic's `usage.iterations`, which say what is billed; none if it cannot be read.

    Each has rates of its own: those of its model, and of the length of its own prompt. The counts beside them leave out
    compactions and the advisor, and have what iterations do not: tools, reasoning. Where a model has declined and
    another one has answered, an attempt without output is not billed.

    Sources:
        https://platform.claude.com/docs/en/build-with-claude/compaction
        https://platform.claude.com/docs/en/agents-and-tools/tool-use/advisor-tool
        https://platform.claude.com/docs/en/build-with-claude/refusals-and-fallback
    """
    items = [item for item in iterations if isinstance(item, dict)]
    has_fallback = any(item.get("type") == "fallback_message" for item in items)
    steps: list[tuple[str, dict[str, Any]]] = []
    answer: tuple[str, dict[str, Any]] | None = None
    for item in items:
        kind, name, own = item.get("type"), model_name(item.get("model")), dict[str, Any]()
        if not collect(TABLES["usage"], item, own):
            return []
        if not own or (has_fallback and kind == "message" and not own.get("output")):
            continue
        if kind != "advisor_message":
            name = name or model
            answer = name, own
        steps.append((name, own))
    if answer is None:
        steps.insert(0, (model, dict(counts)))
    else:
        counted = {key for name, own in steps if name == answer[0] for key in own}
        answer[1].update((key, count) for key, count in counts.items() if key not in counted)
    return [usage_of(name, own) for name, own in steps]


def fallback_model(iterations: Iterable[Any]) -> str:
    """The model that has answered after another one declined, whose name is at the beginning; empty if none has."""
    kind = "fallback_message"
    answered = [item.get("model") for item in iterations if isinstance(item, dict) and item.get("type") == kind]
    return model_name(answered[-1]) if answered else ""


def total_of(model: str, parts: list[Usage], requests: int = 1) -> Usage:
    """The sum of the usage of several models or requests. What is charged for it is known only if it is for all."""
    sums: dict[str, int | None] = {}
    for name in _SUMMED:
        known = [count for part in parts if (count := getattr(part, name)) is not None]
        sums[name] = sum(known) if known else None
    if any(part.cost_nanousd is None for part in parts):
        sums["cost_nanousd"] = None
    details: dict[str, int] = {}
    for part in parts:
        for name, count in (part.details or {}).items():
            details[name] = details.get(name, 0) + count
    tier = next((part.service_tier for part in parts if part.service_tier), "")
    models = tuple(parts) if len({part.model for part in parts}) > 1 else ()
    return Usage(model, **sums, details=details or None, service_tier=tier, parts=models, requests=requests)


def with_parts(usage: Usage, breakdown: Mapping[str, Any]) -> Usage:
    """The usage with the parts of Groq's `usage_breakdown`, if they add up to it.

    Source: https://console.groq.com/docs/compound
    """
    parts: list[Usage] = []
    models = breakdown.get("models")
    for item in models if isinstance(models, list) else ():
        if isinstance(item, dict) and isinstance(item.get("usage"), dict):
            counts: dict[str, Any] = {}
            collect(TABLES["usage"], item["usage"], counts)
            parts.append(usage_of(model_name(item.get("model")), counts))
    total = total_of(usage.model, parts)
    if total.input_tokens != usage.input_tokens or total.output_tokens != usage.output_tokens:
        return usage
    return msgspec.structs.replace(usage, parts=tuple(parts))


def model_name(value: object) -> str:
    """The name of a model: one line of printable characters, of limited length."""
    if not isinstance(value, str):
        return ""
    if len(value) <= MAX_MODEL and value.isprintable():
        return value.strip()
    return "".join(char for char in value[: 4 * MAX_MODEL] if char.isprintable()).strip()[:MAX_MODEL].rstrip()
