"""Each vendor's stream, in the form that its page documents, with numbers made up here and added up by hand."""

from __future__ import annotations

import base64
import json
from binascii import crc32
from typing import Any

import pytest

from llm_proxy.gateway.usage import Usage, meter_for
from llm_proxy.gateway.usage.frames import KEPT
from tests.gateway.usage.metering import EVENTS, JSON, PACK, feed, metered

LINES = (b"content-type", b"application/x-ndjson")
COHERE_LINES = (b"content-type", b"application/stream+json")
FRAMES = (b"content-type", b"application/vnd.amazon.eventstream")
DONE = b"data: [DONE]\n\n"


def dumped(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def sse(*events: object, end: bytes = b"\n") -> bytes:
    return b"".join(b"data: " + dumped(event) + end + end for event in events)


def named(*events: dict[str, Any]) -> bytes:
    return b"".join(b"event: %b\ndata: %b\n\n" % (event["type"].encode(), dumped(event)) for event in events)


def lines(*documents: object) -> bytes:
    return b"".join(dumped(document) + b"\n" for document in documents)


def frame(payload: object, event: str = "chunk", exception: str = "") -> bytes:
    """A frame with its checksums, as botocore's tests have them."""
    fields = {":event-type": event, ":content-type": "application/json", ":message-type": "event"}
    if exception:
        fields |= {":exception-type": exception, ":message-type": "exception"}
    head = b"".join(
        bytes([len(name)]) + name.encode() + b"\x07" + len(value).to_bytes(2, "big") + value.encode()
        for name, value in fields.items()
    )
    body = payload if isinstance(payload, bytes) else dumped(payload)
    prelude = (16 + len(head) + len(body)).to_bytes(4, "big") + len(head).to_bytes(4, "big")
    text = prelude + crc32(prelude).to_bytes(4, "big") + head + body
    return text + crc32(text).to_bytes(4, "big")


def chunk(event: object) -> bytes:
    return frame({"bytes": base64.b64encode(dumped(event)).decode(), "p": "abcdef"})


CHUNK: dict[str, Any] = {"id": "c", "object": "chat.completion.chunk", "model": "m"}
TEXT = {**CHUNK, "choices": [{"index": 0, "delta": {"content": 'the "usage": {"prompt_tokens": 9}'}}]}
LAST = {**CHUNK, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
COUNTS = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


def gemini(made: int, **candidate: str) -> dict[str, Any]:
    return {
        "candidates": [{"content": {"parts": [{"text": "b"}]}, **candidate}],
        "usageMetadata": {
            "promptTokenCount": 8,
            "candidatesTokenCount": made,
            "thoughtsTokenCount": 30,
            "totalTokenCount": 38 + made,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 8}],
        },
        "modelVersion": "m",
    }


GEMINI: list[dict[str, Any]] = [
    {"candidates": [{"content": {"parts": [{"text": "a"}]}}], "usageMetadata": {"trafficType": "ON_DEMAND"}},
    gemini(1),
    gemini(5),
    gemini(12, finishReason="STOP"),
]
CONVERSE = [
    frame({"role": "assistant"}, "messageStart"),
    frame({"contentBlockIndex": 0, "delta": {"text": 'say "usage":{"inputTokens":1}'}}, "contentBlockDelta"),
    frame({"stopReason": "end_turn"}, "messageStop"),
    frame(
        {
            "usage": {"inputTokens": 20, "outputTokens": 31, "totalTokens": 151, "cacheReadInputTokens": 100},
            "metrics": {"latencyMs": 900},
            "serviceTier": {"type": "flex"},
        },
        "metadata",
    ),
]
INVOKED: list[dict[str, Any]] = [
    {"type": "message_start", "message": {"model": "m", "usage": {"input_tokens": 25, "output_tokens": 1}}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 40}},
    {
        "type": "message_stop",
        "amazon-bedrock-invocationMetrics": {"inputTokenCount": 25, "outputTokenCount": 40, "invocationLatency": 9},
    },
]

#: Name, media type, body, usage, and whether the end of the stream can be recognised.
STREAMS: list[tuple[str, tuple[bytes, bytes], bytes, Usage, bool]] = [
    (
        "openai chat: null, then the usage in a chunk without choices",
        EVENTS,
        sse({**TEXT, "usage": None}, {**LAST, "usage": None}, {**CHUNK, "choices": [], "usage": COUNTS}) + DONE,
        Usage("m", 11, 7),
        True,
    ),
    (
        "openai chat with CRLF, comments and the usage in the last but one chunk",
        EVENTS,
        b": PROCESSING\r\n\r\n" + sse(TEXT, {**TEXT, "usage": COUNTS}, LAST, end=b"\r\n") + b"data: [DONE]\r\n\r\n",
        Usage("m", 11, 7),
        True,
    ),
    (
        "a server that repeats the usage in each chunk",
        EVENTS,
        sse(
            {**TEXT, "usage": {"prompt_tokens": 11, "total_tokens": 11, "completion_tokens": 0}},
            {**TEXT, "usage": {"prompt_tokens": 11, "total_tokens": 15, "completion_tokens": 4}},
            {**LAST, "usage": COUNTS},
        )
        + DONE,
        Usage("m", 11, 7),
        True,
    ),
    (
        "openai completions",
        EVENTS,
        sse({"object": "text_completion", "model": "m", "choices": [{"text": "x"}], "usage": COUNTS}) + DONE,
        Usage("m", 11, 7),
        True,
    ),
    (
        "groq",
        EVENTS,
        sse(
            {**TEXT, "x_groq": {"id": "req"}}, {**LAST, "x_groq": {"id": "req", "usage": {**COUNTS, "total_time": 0.1}}}
        )
        + DONE,
        Usage("m", 11, 7),
        True,
    ),
    (
        "moonshot",
        EVENTS,
        sse(
            TEXT, {**CHUNK, "choices": [{"index": 0, "finish_reason": "stop", "usage": {**COUNTS, "cached_tokens": 4}}]}
        )
        + DONE,
        Usage("m", 11, 7, 4),
        True,
    ),
    (
        "openrouter",
        EVENTS,
        b": OPENROUTER PROCESSING\n\n"
        + sse(TEXT, {**LAST, "usage": {**COUNTS, "cost": 0.00014, "is_byok": False}})
        + DONE,
        Usage("m", 11, 7, cost_nanousd=140_000),
        True,
    ),
    (
        "openai responses",
        EVENTS,
        named(
            {"type": "response.created", "response": {"model": "m", "service_tier": "auto", "usage": None}},
            {"type": "response.output_text.delta", "delta": "Hi"},
            {
                "type": "response.completed",
                "response": {
                    "model": "m",
                    "service_tier": "default",
                    "usage": {
                        "input_tokens": 37,
                        "input_tokens_details": {"cached_tokens": 12},
                        "output_tokens": 11,
                        "output_tokens_details": {"reasoning_tokens": 6},
                        "total_tokens": 48,
                    },
                },
            },
        ),
        Usage("m", 37, 11, 12, reasoning_tokens=6, service_tier="default"),
        True,
    ),
    (
        "openai images",
        EVENTS,
        named(
            {"type": "image_generation.partial_image", "b64_json": "A" * 99},
            {
                "type": "image_generation.completed",
                "b64_json": "A" * 99,
                "usage": {
                    "total_tokens": 100,
                    "input_tokens": 50,
                    "output_tokens": 50,
                    "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
                },
            },
        ),
        Usage("", 50, 50, details={"input_image_tokens": 40}),
        False,
    ),
    (
        "openai transcription",
        EVENTS,
        named(
            {"type": "transcript.text.delta", "delta": "I"},
            {
                "type": "transcript.text.done",
                "text": "I see",
                "usage": {
                    "type": "tokens",
                    "input_tokens": 14,
                    "input_token_details": {"text_tokens": 4, "audio_tokens": 10},
                    "output_tokens": 45,
                    "total_tokens": 59,
                },
            },
        ),
        Usage("", 14, 45, details={"input_audio_tokens": 10}),
        True,
    ),
    (
        "openai assistants: the run has the total of its steps",
        EVENTS,
        b"event: thread.run.step.completed\n"
        + sse({"object": "thread.run.step", "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}})
        + b"event: thread.run.completed\n"
        + sse({"object": "thread.run", "model": "m", "usage": COUNTS})
        + b"event: done\n"
        + DONE,
        Usage("m", 11, 7),
        True,
    ),
    (
        "anthropic: later reports have the running total",
        EVENTS,
        named(
            {
                "type": "message_start",
                "message": {
                    "model": "m",
                    "usage": {
                        "input_tokens": 9,
                        "cache_read_input_tokens": 100,
                        "cache_creation_input_tokens": 50,
                        "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 30},
                        "output_tokens": 1,
                        "service_tier": "standard",
                    },
                },
            },
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
            {
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn"},
                "usage": {
                    "input_tokens": 19,
                    "cache_read_input_tokens": 100,
                    "cache_creation_input_tokens": 50,
                    "output_tokens": 77,
                    "server_tool_use": {"web_search_requests": 1, "web_fetch_requests": 0},
                },
            },
            {"type": "message_stop"},
        ),
        Usage("m", 169, 77, 100, 50, 30, None, {"web_searches": 1}, "standard"),
        True,
    ),
    (
        "gemini events",
        EVENTS,
        sse(*GEMINI, end=b"\r\n"),
        Usage("m", 8, 42, None, None, None, 30, None, "on_demand"),
        True,
    ),
    (
        "gemini, and a report without counts behind the last one",
        EVENTS,
        sse(*GEMINI[:3], {"usageMetadata": {"trafficType": "ON_DEMAND_PRIORITY"}, "modelVersion": "m"}),
        Usage("m", 8, 35, reasoning_tokens=30, service_tier="priority"),
        False,
    ),
    (
        "gemini array",
        JSON,
        b"[" + b",\r\n".join(json.dumps(each, indent=2).encode() for each in GEMINI) + b"\n]\n",
        Usage("m", 8, 42, reasoning_tokens=30),
        True,
    ),
    (
        "gemini interactions",
        EVENTS,
        sse(
            {"event_type": "interaction.created", "interaction": {"id": "i", "model": "m"}},
            {
                "event_type": "interaction.completed",
                "interaction": {
                    "model": "m",
                    "usage": {"total_input_tokens": 7, "total_output_tokens": 20, "total_tokens": 27},
                },
            },
        ),
        Usage("m", 7, 20),
        True,
    ),
    (
        "cohere v2",
        EVENTS,
        named(
            {"type": "message-start", "id": "x", "delta": {"message": {"role": "assistant"}}},
            {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "Hi"}}}},
            {
                "type": "message-end",
                "delta": {
                    "finish_reason": "COMPLETE",
                    "usage": {
                        "billed_units": {"input_tokens": 3, "output_tokens": 9},
                        "tokens": {"input_tokens": 69, "output_tokens": 10},
                    },
                },
            },
        ),
        Usage("", 3, 9),
        True,
    ),
    (
        "cohere v1",
        COHERE_LINES,
        lines(
            {"is_finished": False, "event_type": "stream-start", "generation_id": "g"},
            {"is_finished": False, "event_type": "text-generation", "text": "Hi"},
            {
                "is_finished": True,
                "event_type": "stream-end",
                "finish_reason": "COMPLETE",
                "response": {"text": "Hi", "meta": {"billed_units": {"input_tokens": 4, "output_tokens": 8}}},
            },
        ),
        Usage("", 4, 8),
        True,
    ),
    (
        "ollama chat",
        LINES,
        lines(
            {"model": "m", "message": {"role": "assistant", "content": "The"}, "done": False},
            {"model": "m", "message": {"content": ""}, "done": True, "prompt_eval_count": 26, "eval_count": 282},
        ),
        Usage("m", 26, 282),
        True,
    ),
    (
        "ollama generate without a last line end",
        LINES,
        lines(
            {"model": "m", "response": "The", "done": False},
            {"model": "m", "response": "", "done": True, "context": [1, 2], "prompt_eval_count": 5, "eval_count": 6},
        )[:-1],
        Usage("m", 5, 6),
        True,
    ),
    ("bedrock converse", FRAMES, b"".join(CONVERSE), Usage("", 120, 31, 100, service_tier="flex"), True),
    ("bedrock invoke: anthropic", FRAMES, b"".join(map(chunk, INVOKED)), Usage("m", 25, 40), True),
    (
        "bedrock invoke: metrics only",
        FRAMES,
        chunk({"generation": "Hi"}) + chunk({"generation": "", **INVOKED[-1], "type": None}),
        Usage("", 25, 40),
        True,
    ),
]
NAMES = [name for name, *_ in STREAMS]


@pytest.mark.parametrize(("name", "kind", "body", "expected", "ended"), STREAMS, ids=NAMES)
def test_a_documented_stream_is_metered(
    name: str, kind: tuple[bytes, bytes], body: bytes, expected: Usage, *, ended: bool
) -> None:
    for encoding, pack in ((b"identity", bytes), *PACK.items()):
        packed = pack(body)
        cuts = range(len(packed)) if encoding == b"identity" else (1, len(packed) // 2)
        for pieces in (
            [packed],
            [packed[at : at + 1] for at in range(len(packed))],
            *([packed[:at], packed[at:]] for at in cuts),
        ):
            meter = meter_for(200, [kind, (b"content-encoding", encoding)])
            assert metered(meter, *pieces) == expected
            assert (meter.ended, meter.failed, meter.unmetered) == (ended, False, False)


@pytest.mark.parametrize(("name", "kind", "body", "expected", "ended"), STREAMS, ids=NAMES)
def test_a_stream_that_breaks_off_counts_no_more_than_it_reported(
    name: str, kind: tuple[bytes, bytes], body: bytes, expected: Usage, *, ended: bool
) -> None:
    for at in range(len(body)):
        meter = meter_for(200, [kind])
        feed(meter, body[:at])
        found = meter.result(whole=False)
        assert (found.input_tokens or 0) <= (expected.input_tokens or 0)
        assert (found.output_tokens or 0) <= (expected.output_tokens or 0)


def test_the_output_of_a_stream_that_breaks_off_after_its_start_is_unknown() -> None:
    for number, expected in ((1, None), (2, None), (3, 40)):
        for kind, events in ((EVENTS, map(sse, INVOKED)), (FRAMES, map(chunk, INVOKED))):
            found = metered(meter_for(200, [kind]), *list(events)[:number])
            assert (found.input_tokens, found.output_tokens) == (25, expected)


class TestErrors:
    @pytest.mark.parametrize(
        ("kind", "body"),
        [
            (EVENTS, sse(TEXT, {**CHUNK, "error": {"code": 502, "message": "Overloaded"}, "choices": []})),
            (EVENTS, named({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})),
            (LINES, lines({"model": "m", "response": "T", "done": False}, {"error": "an error was encountered"})),
            (
                FRAMES,
                CONVERSE[0] + frame({"message": "Slow down"}, exception="throttlingException"),
            ),
        ],
    )
    def test_an_error_in_a_stream_is_a_failure(self, kind: tuple[bytes, bytes], body: bytes) -> None:
        meter = meter_for(200, [kind])
        metered(meter, body)
        assert meter.failed


class TestLines:
    def test_a_long_line_is_read(self) -> None:
        last = {"model": "m", "context": list(range(20_000)), "done": True, "prompt_eval_count": 5, "eval_count": 6}
        body = lines({"model": "m", "response": "T", "done": False}, last, {"model": "other"})
        for size in (len(body), 5000, 999):
            meter = meter_for(200, [LINES])
            assert metered(meter, *(body[at : at + size] for at in range(0, len(body), size))) == Usage("m", 5, 6)
            assert not meter.unmetered


class TestArrays:
    def test_a_long_stream_is_read_in_bounded_memory(self) -> None:
        text = {"candidates": [{"content": {"parts": [{"text": 'say "usageMetadata" ]}{["'}]}}]}
        body = b"[" + b",\n".join(dumped({**text, **GEMINI[1 + number % 2]}) for number in range(3000))
        body += b"," + dumped(GEMINI[-1]) + b"]"
        for size in (64 * 1024, 4096, 333):
            meter = meter_for(200, [JSON])
            assert metered(meter, *(body[at : at + size] for at in range(0, len(body), size))) == Usage(
                "m", 8, 42, reasoning_tokens=30
            )
            assert not meter.unmetered

    @pytest.mark.parametrize("pad", [0, 50_000])
    @pytest.mark.parametrize(
        "text", ['[{"usage":{"prompt_tokens":5}}%s]', '[[{"usageMetadata":{"promptTokenCount":5}}]%s]']
    )
    def test_the_usage_of_another_array_is_unknown(self, text: str, pad: int) -> None:
        assert metered(meter_for(200, [JSON]), (text % (" " * pad)).encode()) == Usage()


class TestFrames:
    @pytest.mark.parametrize("size", [1_000_000, 8000, 777])
    def test_the_usage_of_a_long_frame_is_read_in_bounded_memory(self, size: int) -> None:
        trace = {"guardrail": {"modelOutput": ['{"usage":{"inputTokens":1}}' * 9000]}}
        counts = {"inputTokens": 20, "outputTokens": 31, "totalTokens": 51}
        body = CONVERSE[0] + frame({"trace": trace, "usage": counts, "metrics": {}}, "metadata") + CONVERSE[2]
        meter = meter_for(200, [FRAMES])
        for at in range(0, len(body), size):
            feed(meter, body[at : at + size])
            assert len(getattr(meter, "_pending", b"")) <= KEPT + 4096
        assert meter.result() == Usage("", 20, 31)
        assert not meter.unmetered

    @pytest.mark.parametrize(
        "body", [b"<html>Bad gateway</html>", b"\x00" * 99, b"\x00\x00\x00\x10\xff" + b"\x00" * 99]
    )
    def test_what_is_no_frame_is_unmetered(self, body: bytes) -> None:
        meter = meter_for(200, [FRAMES])
        assert metered(meter, body) == Usage()
        assert meter.unmetered

    @pytest.mark.parametrize(
        "payload", [b'{"bytes":"*"}', b'{"bytes":"AAA"}', b'{"bytes":7}', b'["bytes"]', b'{"x":"bytes"}']
    )
    def test_an_invalid_chunk_does_not_affect_the_others(self, payload: bytes) -> None:
        body = frame(payload) + b"".join(map(chunk, INVOKED))
        assert metered(meter_for(200, [FRAMES]), body) == Usage("m", 25, 40)

    def test_a_stream_that_is_cut_off_is_unmetered(self) -> None:
        body = b"".join(CONVERSE)
        for whole in (True, False):
            meter = meter_for(200, [FRAMES])
            feed(meter, body[:-1])
            assert meter.result(whole=whole) == Usage()
            assert meter.unmetered is whole
