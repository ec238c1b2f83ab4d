"""The most that a request can use: a table of the endpoints for which that is known, and the bound of a request.

A request has a bound if every member of its body is in the table, inside of messages, tools and parts of content too.
What is not in the table may add cost that the body does not show: images, sound and files, objects that the provider
stores, tools that the provider runs, work that continues after the answer.

- Input: a token is at least one byte of text, so there are at most as many as the body has bytes. The JSON around each
  message and each tool is longer than what the provider puts around it. What it adds once is `overhead`.
- Output: the maximum that the request sets, times the number of answers. The vendors in `_VENDORS` document that
  reasoning is part of it.
- Price: that of the dearest class, context length and service tier that the request permits, now or in an hour.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from llm_proxy.errors import CostUnbounded
from llm_proxy.limits import Bound
from llm_proxy.prices import Prices

#: What a value may be: anything; one of these values; an object with these members, or a text. All hold for each item
#: of a list too.
Rule = None | frozenset[str | bool] | Mapping[str, "Rule"]
Members = dict[str, Rule]


class GeneratingEndpoint(NamedTuple):
    """An endpoint whose requests can have a bound.

    Attributes:
        members: of the body; the source is the vendor's page.
        maximum: the members that bound the output, any of them; none if the endpoint generates nothing.
        overhead: tokens of the prompt that the provider adds once.
    """

    path: re.Pattern[bytes]
    members: Mapping[str, Rule]
    maximum: Sequence[str]
    overhead: int


def _any(names: str) -> Members:
    return dict.fromkeys(names.split())


_TIERS: Final = frozenset({"auto", "default", "standard", "flex", "on_demand", "priority", "fast", "standard_only"})
#: Values with which a request has the standard price, or a lower one. Without a tier, the account's settings decide.
_AT_STANDARD: Final = frozenset({"default", "standard", "flex", "on_demand", "standard_only"})
_FASTER: Final = frozenset({"priority", "fast"})

_SAMPLING: Final = _any(
    "model temperature top_p frequency_penalty presence_penalty seed stop logit_bias logprobs top_logprobs n stream"
    " stream_options user"
)
_STORED: Final = _any("metadata store safety_identifier prompt_cache_key prompt_cache_retention prompt_cache_options")

#: https://developers.openai.com/api/reference/resources/chat/subresources/completions/methods/create
_CHAT: Final[Members] = {
    **_SAMPLING,
    **_STORED,
    **_any(
        "max_tokens max_completion_tokens functions function_call tool_choice parallel_tool_calls response_format"
        " reasoning_effort verbosity"
    ),
    "messages": {
        **_any("role name tool_calls tool_call_id function_call reasoning_content"),
        "content": {**_any("text refusal"), "type": frozenset({"text", "refusal"})},
        "refusal": {},
    },
    "modalities": frozenset({"text"}),
    "service_tier": _TIERS,
    "tools": {**_any("function custom"), "type": frozenset({"function", "custom"})},
}

#: https://developers.openai.com/api/reference/resources/completions/methods/create
_COMPLETION: Final[Members] = {**_SAMPLING, **_any("max_tokens best_of suffix"), "prompt": {}}

#: https://developers.openai.com/api/reference/resources/embeddings/methods/create
_EMBEDDING: Final[Members] = {**_any("model dimensions encoding_format user"), "input": {}}

#: https://developers.openai.com/api/reference/resources/responses/methods/create
#: Items of reasoning are not in it: their ids name what the provider stores.
_RESPONSE: Final[Members] = {
    **_STORED,
    **_any(
        "model instructions max_output_tokens max_tool_calls include stream stream_options temperature top_p"
        " top_logprobs text tool_choice parallel_tool_calls truncation user"
    ),
    "input": {
        **_any("id role status phase name namespace call_id arguments input"),
        "type": frozenset(
            {"message", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output"}
        ),
        "content": {
            **_any("text refusal annotations logprobs"),
            "type": frozenset({"input_text", "output_text", "refusal"}),
        },
        "output": {**_any("text"), "type": frozenset({"input_text"})},
    },
    "reasoning": {**_any("effort summary generate_summary"), "mode": frozenset({"standard"})},
    "service_tier": _TIERS,
    "tools": {
        **_any("name description parameters strict format defer_loading"),
        "type": frozenset({"function", "custom"}),
    },
    "background": frozenset({False}),
    **dict.fromkeys(("previous_response_id", "conversation", "prompt"), frozenset()),
}

_BLOCK: Final[Members] = {
    **_any("text cache_control citations id name input tool_use_id is_error thinking signature data"),
    "type": frozenset({"text", "tool_use", "tool_result", "thinking", "redacted_thinking"}),
}
_BLOCK["content"] = _BLOCK

#: https://platform.claude.com/docs/en/api/messages/create
#: https://platform.claude.com/docs/en/build-with-claude/context-editing (which only takes tokens away)
_MESSAGE: Final[Members] = {
    **_any(
        "model max_tokens metadata stop_sequences stream temperature top_k top_p thinking tool_choice cache_control"
        " output_format"
    ),
    "messages": {"role": None, "content": _BLOCK},
    "system": _BLOCK,
    "tools": {
        **_any("name description input_schema cache_control strict eager_input_streaming defer_loading input_examples"),
        "type": frozenset({"custom"}),
    },
    "output_config": _any("effort format"),
    "context_management": {
        "edits": {
            **_any("trigger keep clear_at_least exclude_tools clear_tool_inputs"),
            "type": frozenset({"clear_tool_uses_20250919", "clear_thinking_20251015"}),
        }
    },
    "service_tier": _TIERS,
    "speed": frozenset({"standard"}),
    "inference_geo": frozenset({"global"}),
}

#: Overheads: OpenAI's preamble, with the date and the rules of its answer, has less than 200 tokens. Anthropic's prompt
#: for tools has up to about 800: https://platform.claude.com/docs/en/agents-and-tools/tool-use/overview#pricing
ENDPOINTS: Final = (
    GeneratingEndpoint(re.compile(rb".*/chat/completions"), _CHAT, ("max_tokens", "max_completion_tokens"), 1024),
    GeneratingEndpoint(re.compile(rb"(?:.*/v1|.*/deployments/[^/]+)/completions"), _COMPLETION, ("max_tokens",), 64),
    GeneratingEndpoint(re.compile(rb".*/embeddings"), _EMBEDDING, (), 64),
    GeneratingEndpoint(re.compile(rb".*/responses"), _RESPONSE, ("max_output_tokens",), 1024),
    GeneratingEndpoint(re.compile(rb"(?:/anthropic)?/v1/messages"), _MESSAGE, ("max_tokens",), 2048),
)
#: POST requests that are not billed.
_FREE: Final = re.compile(
    rb"(?!.*/(?:vector_stores|containers)/)"
    rb".*(?:/count_tokens|/input_tokens|:countTokens|/tokenize|/files|/uploads(?:/.*)?|/batches/[^/]+/cancel"
    rb"|/responses/[^/]+/cancel)"
)
#: Those that are not billed at OpenAI. Mistral bills moderations, and generates with conversations. A thread may have
#: files, for which OpenAI makes a vector store, and bills that.
_FREE_AT_OPENAI: Final = re.compile(
    rb"/v1/(?:moderations|chat/completions/[^/]+|conversations(?:/[^/]+(?:/items)?)?"
    rb"|fine_tuning/jobs/[^/]+/(?:cancel|pause))"
)

#: Vendors whose maximum of the output includes reasoning, and the operator's own servers.
#: https://api-docs.deepseek.com/guides/thinking_mode, https://console.groq.com/docs/reasoning,
#: https://docs.mistral.ai/api
_VENDORS: Final = frozenset({"openai", "azure", "anthropic", "groq", "mistral", "deepseek", None})
#: Those that document `max_completion_tokens`: a server that ignores it would have no bound.
_COMPLETION_TOKENS: Final = frozenset({"openai", "azure", "groq"})
#: Models that search or run tools without being told to.
_AGENTS: Final = re.compile(r"search|research|compound|computer-use|sonar|:online", re.IGNORECASE)

_LONGEST_NAME: Final = 64
#: A larger maximum of tokens, or number of answers, is a mistake.
_LARGEST: Final = 10**9
#: Objects and lists in a body. Reading so many takes some milliseconds, in which the process does nothing else; 1 MiB
#: has room for half a million.
MAX_CONTAINERS: Final = 50_000
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)


def is_free(method: str, path: bytes, vendor: str | None) -> bool:
    """Whether requests to this endpoint are not billed."""
    if method != "POST" or _FREE.fullmatch(path):
        return True
    return vendor == "openai" and _FREE_AT_OPENAI.fullmatch(path) is not None


def worst_case(path: bytes, body: bytes | None, models: Sequence[str], provider: str, prices: Prices) -> Bound:
    """The most that a POST request which is not free can use; raises `CostUnbounded` if that cannot be computed.

    `body` is None if it has not arrived whole, or is too long to be read.
    """
    endpoint = next((one for one in ENDPOINTS if one.path.fullmatch(path)), None)
    if endpoint is None:
        raise CostUnbounded(
            "The maximum cost of a request to this endpoint cannot be computed, and a reserved limit applies. It can be"
            " computed for: chat completions, completions, embeddings, responses without background, messages."
        )
    vendor = prices.vendors.get(provider)
    if vendor not in _VENDORS:
        raise CostUnbounded(
            f"The maximum cost of a request to {provider} cannot be computed, and a reserved limit applies: {provider}"
            " does not document that the maximum of the output includes everything that it bills."
        )
    request = _read(body, endpoint.members)
    input_tokens = len(body or b"") + endpoint.overhead
    output_tokens = _output(endpoint, request, vendor) if endpoint.maximum else 0
    return Bound(input_tokens, output_tokens, _cost(prices, provider, models, request, input_tokens, output_tokens))


def _read(body: bytes | None, members: Mapping[str, Rule]) -> dict[str, Any]:
    if body is None:
        raise CostUnbounded("While a reserved limit applies, the body must be JSON with at most 1 MiB.")
    if _containers(body) > MAX_CONTAINERS:
        raise CostUnbounded(
            f"While a reserved limit applies, the body must have at most {MAX_CONTAINERS} objects and lists."
        )
    try:
        request = json.loads(body.decode(), object_pairs_hook=_object, parse_constant=_constant)
        _check(members, request, "")
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise CostUnbounded("While a reserved limit applies, the body must be a JSON object.")
    return request


def _containers(body: bytes) -> int:
    """The number of objects and lists; of a body with fewer brackets than are allowed, that of the brackets."""
    found = body.count(b"{") + body.count(b"[")
    if found <= MAX_CONTAINERS:
        return found
    outside = _STRING.sub(b"", body)
    return outside.count(b"{") + outside.count(b"[")


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) != len(members):
        twice = next(name for name, count in Counter(name for name, _ in members).items() if count > 1)
        raise _unbounded(twice, "is sent twice, and JSON parsers differ in which one they use. Send it once.")
    return found


def _constant(name: str) -> None:
    raise ValueError(name)


def _check(rule: Rule, value: Any, name: str) -> None:
    """Raise `CostUnbounded` with the first member that is not in the table."""
    if rule is None or value is None:
        return
    if isinstance(value, list):
        # If the rule is one of members, the other items are texts or numbers, perhaps half a million ids of tokens.
        for item in value if isinstance(rule, frozenset) else [one for one in value if type(one) in (dict, list)]:
            _check(rule, item, name)
    elif isinstance(rule, frozenset):
        if isinstance(value, dict) or value not in rule:
            allowed = ", ".join(sorted(str(one).lower() for one in rule)) or "null"
            raise _unbounded(name, f"has a value whose maximum cost cannot be computed (allowed: {allowed}).")
    elif isinstance(value, dict):
        if value.get("id") is not None and isinstance(rule.get("type"), frozenset) and value.get("type") is None:
            # OpenAI's references to stored items need no type.
            raise _unbounded(
                f"{name}.type", "is missing, and the id beside it may name stored content. Send the type too."
            )
        for member, inner in value.items():
            inside = f"{name}.{member}" if name else member
            if member not in rule:
                raise _unbounded(inside, "may add a cost that cannot be computed. Send the request without it.")
            _check(rule[member], inner, inside)


def _unbounded(name: str, why: str) -> CostUnbounded:
    shown = "".join(char for char in name if char.isprintable())[:_LONGEST_NAME]
    return CostUnbounded(f"A reserved limit applies, and the field '{shown}' {why}", param=shown)


def _output(endpoint: GeneratingEndpoint, request: Mapping[str, Any], vendor: str | None) -> int:
    if request.get("max_completion_tokens") is not None and vendor not in _COMPLETION_TOKENS:
        raise _unbounded("max_completion_tokens", "is not known to every server. Send max_tokens.")
    found = [_number(request, name) for name in endpoint.maximum if request.get(name) is not None]
    if not found:
        name = endpoint.maximum[-1 if vendor in _COMPLETION_TOKENS else 0]
        raise _unbounded(name, "is missing: the output has no bound without it. Send it.")
    thinking = request.get("thinking")
    budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
    # With interleaved thinking it may be larger, and the context window is the limit:
    # https://platform.claude.com/docs/en/build-with-claude/extended-thinking#interleaved-thinking
    if budget is not None and (type(budget) is not int or budget >= max(found)):
        raise _unbounded("thinking.budget_tokens", "must be a whole number that is less than max_tokens.")
    answers = max(_number(request, "n"), _number(request, "best_of"))
    prompt = request.get("prompt")
    if isinstance(prompt, list) and not all(type(token) is int for token in prompt):
        answers *= max(1, len(prompt))
    return max(found) * answers


def _number(request: Mapping[str, Any], name: str) -> int:
    value = request.get(name)
    if value is None:
        return 1
    if type(value) is not int or not 1 <= value <= _LARGEST:  # servers differ in what 0 and -1 mean
        raise _unbounded(name, f"must be a whole number from 1 to {_LARGEST}.")
    return value


def _cost(
    prices: Prices,
    provider: str,
    models: Sequence[str],
    request: Mapping[str, Any],
    input_tokens: int,
    output_tokens: int,
) -> int | None:
    """The cost in 10^-9 USD at the highest price; None if a model has none."""
    tier, now = request.get("service_tier"), datetime.now(UTC)
    if isinstance(tier, list):
        raise _unbounded("service_tier", "must be a string.")
    costs: list[int | None] = []
    for model in models:
        if _AGENTS.search(model):
            raise _unbounded("model", "names a model that runs tools by itself, whose cost cannot be computed.")
        for at in (now, now + timedelta(hours=1)):
            costs.append(prices.highest(provider, model, "", at, input_tokens, output_tokens))
            if tier not in _AT_STANDARD:
                faster = prices.highest(provider, model, "priority", at, input_tokens, output_tokens)
                costs += [faster] if faster is not None or tier in _FASTER else []
    known = [cost for cost in costs if cost is not None]
    return max(known) if known and len(known) == len(costs) else None
