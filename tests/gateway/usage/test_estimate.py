"""Tokens from texts."""

from __future__ import annotations

import base64
import gzip
import json
import random
import time

import pytest

from llm_proxy.gateway.usage import estimate

CHAT = b"/v1/chat/completions"


def prompt(content: object, *, escaped: bool = False) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": content}]}, ensure_ascii=escaped).encode()


def tokens(body: bytes) -> int:
    return estimate.input_tokens(body, None, len(body))


@pytest.mark.parametrize("text", ["plain words " * 100, "привет, мир " * 100, "你好世界" * 100, 'a "b"\n' * 100])
def test_escapes_do_not_change_the_tokens_of_a_text(text: str) -> None:
    assert tokens(prompt(text, escaped=True)) == tokens(prompt(text))


def test_scripts_have_their_own_ratio() -> None:
    latin, cyrillic, chinese = (tokens(prompt(letter * 500)) for letter in ("a ", "дд", "世世"))
    assert latin < cyrillic < chinese < 1000


def test_image_counts_by_a_constant_and_not_by_its_length() -> None:
    data = base64.b64encode(random.Random(1).randbytes(30_000)).decode()
    image = prompt([{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}])
    assert 800 <= tokens(image) < 850


def test_long_request_is_estimated_from_its_ends() -> None:
    body = prompt("plain words " * 50_000)
    whole = tokens(body)
    found = estimate.input_tokens(body[:65536], body[-65536:], len(body))
    assert abs(found - whole) < whole * 0.1


def test_ends_that_overlap_count_once() -> None:
    body = prompt("plain words " * 8000)
    assert abs(estimate.input_tokens(body[:65536], body[-65536:], len(body)) - tokens(body)) < 20_000 * 0.4


def test_long_image_between_the_ends_counts_once() -> None:
    data = base64.b64encode(random.Random(1).randbytes(300_000)).decode()
    body = prompt([{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}])
    assert 800 <= estimate.input_tokens(body[:65536], body[-65536:], len(body)) < 850


def test_repeated_texts_of_response_events_count_once() -> None:
    delta = {"type": "response.output_text.delta", "delta": "some words " * 40}
    done = {"type": "response.output_text.done", "text": "some words " * 40}
    stream = b"".join(f"data: {json.dumps(each)}\n\n".encode() for each in (delta, done))
    assert estimate.output_tokens(stream, len(stream), b"/v1/responses") == 100


def test_long_answer_is_estimated_from_its_beginning() -> None:
    stream = b'data: {"choices":[{"delta":{"content":"words "}}]}\n\n' * 10_000
    found = estimate.output_tokens(stream[: estimate.SAMPLE], len(stream), CHAT)
    assert abs(found - 60_000 / 4.4) < 100


def test_compressed_answer_is_decoded() -> None:
    stream = b"".join(b'data: {"choices":[{"delta":{"content":"word %d"}}]}\n\n' % n for n in range(100))
    packed = gzip.compress(stream)
    plain = estimate.output_tokens(stream, len(stream), CHAT)
    assert estimate.output_tokens(packed, len(packed), CHAT, b"gzip") == plain > 0


@pytest.mark.parametrize("coding", [b"gzip", b"unknown"])
def test_answer_that_cannot_be_decoded_has_no_output(coding: bytes) -> None:
    assert estimate.output_tokens(b"no gzip", 7, CHAT, coding) == 0


def test_events_of_bedrock_are_decoded() -> None:
    inner = base64.b64encode(json.dumps({"delta": {"text": "some words " * 40}}).encode())
    frame = b'\x00\x00{"bytes":"' + inner + b'"}\x01'
    assert estimate.output_tokens(frame, len(frame), b"/model/m/invoke-with-response-stream") == 100


@pytest.mark.parametrize(
    "path",
    [
        CHAT,
        b"/openai/deployments/x/chat/completions",
        b"/v1/responses",
        b"/anthropic/v1/messages",
        b"/v2/chat",
        b"/api/generate",
        b"/v1/complete",
        b"/v1beta/models/gemini-2.5-flash:streamGenerateContent",
        b"/model/anthropic.claude-haiku-4-5-20251001-v1%3A0/converse-stream",
    ],
)
def test_endpoints_that_generate_text(path: bytes) -> None:
    assert estimate.generates_text(path)


@pytest.mark.parametrize("path", [b"/v1/conversations", b"/v1/conversations/conv_1", b"/v1/conversations/c/restart"])
def test_endpoints_that_generate_text_if_they_stream(path: bytes) -> None:
    assert estimate.generates_text(path, streamed=True)
    assert not estimate.reads(path)
    assert not estimate.reads(b"/v1/conversations/conv_1/items", streamed=True)


@pytest.mark.parametrize("model", ["text-embedding-005", "gemini-embedding-001", "text-multilingual-embedding-002"])
def test_vertex_embeddings_are_estimated(model: str) -> None:
    path = f"/v1/projects/p/locations/l/publishers/google/models/{model}"
    assert estimate.reads(f"{path}:predict".encode())
    assert not estimate.generates_text(f"{path}:predict".encode())
    assert not estimate.reads(f"{path.replace('embedding', 'image')}:predict".encode())


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/messages/batches",
        b"/v1/threads/t/messages",
        b"/v1/uploads/u/complete",
        b"/model/amazon.titan-embed/invoke",
    ],
)
def test_endpoints_that_generate_none(path: bytes) -> None:
    assert not estimate.generates_text(path)


def test_data_without_an_end_is_read_in_linear_time() -> None:
    data = b'{"data":"' + b"a" * 65000 + b'"'
    start = time.thread_time()
    estimate.input_tokens(data, data, 10 * len(data))
    assert time.thread_time() - start < 0.5
