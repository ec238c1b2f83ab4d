"""The estimate of what an exchange has used, if the provider did not say it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from db.records import Result
from tests.gateway.exchanges import ended
from tests.gateway.upstream.stage import answering
from tests.gateway.usage.test_streams import chunk

CHAT = b"/v1/chat/completions"
PROMPT = json.dumps(
    {"model": "gpt-4o", "messages": [{"role": "user", "content": "count to ten, please " * 100}]}
).encode()
ANSWER = {"model": "gpt-4o", "choices": [{"message": {"content": "one, two, three, four " * 50}}]}
WORDS = {"model": "gpt-4o", "choices": [{"delta": {"content": "some words " * 40}}]}

MESSAGE = {"model": "claude-haiku-4-5", "usage": {"input_tokens": 7, "output_tokens": 1}}
START = {"type": "message_start", "message": MESSAGE}
TEXT = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "some words " * 40}}
END = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}}
ERROR = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}


def event(document: object) -> bytes:
    return f"data: {json.dumps(document)}\n\n".encode()


def head(kind: bytes, status: bytes = b"200 OK", length: int = 100_000) -> bytes:
    return b"HTTP/1.1 " + status + b"\r\nContent-Type: " + kind + b"\r\nContent-Length: %d\r\n\r\n" % length


async def result_of(
    body: bytes, path: bytes = CHAT, kind: bytes = b"application/json", status: bytes = b"200 OK"
) -> Result:
    return (await ended(answering(head(kind, status, len(body)) + body), path=path, body=PROMPT)).result


async def test_answer_without_usage_is_estimated_and_has_a_cost() -> None:
    result = await result_of(json.dumps(ANSWER).encode())
    assert result.estimated
    assert 400 < (result.input_tokens or 0) < 600
    assert 200 < (result.output_tokens or 0) < 300
    assert result.cost_basis == "estimate"
    assert result.cost_nanousd


async def test_answer_with_usage_is_not_estimated() -> None:
    result = await result_of(json.dumps({**ANSWER, "usage": {"prompt_tokens": 7, "completion_tokens": 3}}).encode())
    assert (result.input_tokens, result.output_tokens, result.estimated) == (7, 3, False)
    assert result.cost_basis == "price"


async def test_stream_that_the_client_leaves_is_estimated_from_what_was_relayed() -> None:
    found = await ended(answering(head(b"text/event-stream") + event(WORDS)), until=b"words", path=CHAT, body=PROMPT)
    assert found.result.outcome == "client_closed"
    assert found.result.estimated
    assert 80 < (found.result.output_tokens or 0) < 120


async def test_cut_stream_with_input_of_its_start_has_an_estimated_output() -> None:
    stream = event(START) + event(TEXT)
    found = await ended(answering(head(b"text/event-stream") + stream), b"words", path=b"/v1/messages", body=PROMPT)
    assert found.result.input_tokens == 7
    assert 80 < (found.result.output_tokens or 0) < 120
    assert found.result.estimated


async def test_cut_stream_of_bedrock_with_input_of_its_start_has_an_estimated_output() -> None:
    path, kind = b"/model/anthropic.claude-haiku-4-5/invoke-with-response-stream", b"application/vnd.amazon.eventstream"
    stream = chunk(START) + chunk(TEXT)
    found = await ended(answering(head(kind) + stream), b"chunk", path=path, body=PROMPT, provider="bedrock")
    assert found.result.input_tokens == 7
    assert 80 < (found.result.output_tokens or 0) < 120
    assert found.result.estimated


async def test_stream_that_fails_after_its_start_has_an_estimated_output() -> None:
    result = await result_of(event(START) + event(TEXT) + event(ERROR), b"/v1/messages", b"text/event-stream")
    assert result.outcome == "upstream_error"
    assert result.input_tokens == 7
    assert 80 < (result.output_tokens or 0) < 120
    assert result.estimated


@pytest.mark.parametrize(
    ("path", "stream", "until"),
    [
        (CHAT, event(WORDS) + event({"usage": {"prompt_tokens": 7, "completion_tokens": 3}}), b"completion_tokens"),
        (b"/v1/messages", event(START) + event(TEXT) + event(END), b"end_turn"),
    ],
)
async def test_cut_stream_that_has_reported_its_usage_is_not_estimated(
    path: bytes, stream: bytes, until: bytes
) -> None:
    found = await ended(answering(head(b"text/event-stream") + stream), until, path=path, body=PROMPT)
    result = found.result
    assert (result.outcome, result.input_tokens, result.output_tokens) == ("client_closed", 7, 3)
    assert not result.estimated


async def test_cut_stream_that_has_reported_no_output_yet_is_estimated() -> None:
    stream = event({**WORDS, "usage": {"prompt_tokens": 7, "completion_tokens": 0}})
    found = await ended(answering(head(b"text/event-stream") + stream), b"words", path=CHAT, body=PROMPT)
    assert found.result.input_tokens == 7
    assert 80 < (found.result.output_tokens or 0) < 120


async def test_reported_output_stays_if_only_the_input_is_missing() -> None:
    result = await result_of(b'{"model":"m","message":{"content":"one"},"done":true,"eval_count":9}', b"/api/chat")
    assert 400 < (result.input_tokens or 0) < 600
    assert result.output_tokens == 9
    assert result.estimated


async def test_embeddings_without_usage_have_an_estimated_input_only() -> None:
    result = await result_of(b'{"data":[{"embedding":[0.1,0.2]}]}', b"/v1/embeddings")
    assert 400 < (result.input_tokens or 0) < 600
    assert result.output_tokens == 0


@pytest.mark.parametrize(
    ("path", "status", "unpriced"),
    [
        (CHAT, b"400 Bad Request", False),
        (b"/v1/images/generations", b"200 OK", True),
        (b"/v1/images/generations", b"500 Internal Server Error", False),
        (b"/v1/audio/speech", b"200 OK", True),
        (b"/v1/audio/transcriptions", b"200 OK", True),
        (b"/v1/fine_tuning/jobs", b"200 OK", True),
        (b"/v1/unknown", b"200 OK", True),
        (b"/v1/assistants", b"200 OK", False),
        (b"/v1/moderations", b"200 OK", False),
        (b"/v1/threads/thread_1/messages", b"200 OK", False),
        (b"/v1/messages/count_tokens", b"200 OK", False),
        (b"/v1/chat/completions/chatcmpl-1", b"200 OK", False),
    ],
)
async def test_answer_that_counts_nothing_is_not_estimated_and_has_no_cost(
    path: bytes, status: bytes, *, unpriced: bool
) -> None:
    result = await result_of(json.dumps(ANSWER).encode(), path, status=status)
    assert (result.input_tokens, result.output_tokens, result.estimated) == (None, None, False)
    assert (result.cost_nanousd, result.usage_details) == (None, {} if unpriced else None)
    assert result.unpriced == unpriced


async def test_answer_that_counts_nothing_costs_the_fee_for_a_request(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text('prices: {openai: {"gpt-4o": {request: 0.015}}}')
    body = json.dumps(ANSWER).encode()
    found = await ended(
        answering(head(b"audio/mpeg", length=len(body)) + body), path=b"/v1/audio/speech", body=PROMPT, prices=path
    )
    assert (found.result.cost_nanousd, found.result.unpriced) == (15_000_000, False)


async def test_empty_answer_used_nothing() -> None:
    result = await result_of(b"", b"/v1/audio/speech", kind=b"audio/mpeg")
    assert (result.usage_details, result.unpriced) == (None, False)


async def test_failure_before_any_text_is_not_estimated() -> None:
    result = await result_of(event({"error": {"type": "overloaded_error"}}), kind=b"text/event-stream")
    assert result.outcome == "upstream_error"
    assert not result.estimated
