"""Ids in answers: found in their place, however the answer is cut, and nowhere else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_proxy.gateway.objects import answers
from llm_proxy.gateway.objects.table import TABLE

JSON, EVENTS = [(b"content-type", b"application/json")], [(b"Content-Type", b"text/event-stream; charset=utf-8")]


def read(
    path: bytes, headers: list[tuple[bytes, bytes]], body: bytes, cut: int, method: str = "POST"
) -> dict[str, str]:
    endpoint, _ = TABLE.find(method, path)
    reader = answers.reader_for(endpoint.yields, 200, headers)
    assert reader is not None
    found: list[tuple[str, str]] = []
    for start in range(0, len(body), cut):
        found += reader.feed(body[start : start + cut], whole=False)
    return dict(found + reader.end())


def events(*documents: dict[str, Any], end: str = "\n") -> bytes:
    return "".join(
        f"event: x{end}data: {json.dumps(one, separators=(',', ':'))}{end}{end}" for one in documents
    ).encode()


CREATED = {"type": "response.created", "response": {"id": "resp_1", "output": [], "tools": [{"id": "file-2"}]}}
ADDED = {"type": "response.output_item.added", "item": {"id": "msg_1", "type": "message"}}
CALL = {"type": "response.output_item.done", "item": {"id": "ci_1", "container_id": "cntr_1"}}
DELTA = {"type": "response.output_text.delta", "item_id": "msg_9", "delta": '{"id":"file-3"}'}
RUN = (
    {"id": "thread_1", "object": "thread"},
    {"id": "run_1", "object": "thread.run"},
    {"id": "m", "object": "thread.message"},
)
CHUNKS = (
    {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": []},
    {"id": "chatcmpl-2", "object": "chat.completion.chunk", "choices": [{"delta": {"content": "x"}}]},
    {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [{"delta": {"audio": {"id": "audio_1"}}}]},
)
CONVERSATION = (
    {"type": "conversation.response.started", "conversation_id": "conv_1"},
    {"type": "message.output.delta", "content": {"type": "tool_file", "file_id": "file_1"}},
    {"type": "message.output.delta", "content": '{"file_id": "file_2"}'},
)
MESSAGE = (
    {"type": "content_block_start", "content_block": {"content": {"content": [{"file_id": "file_1"}]}}},
    {"type": "message_delta", "delta": {"container": {"id": "container_1"}}},
    {"type": "content_block_start", "content_block": {"type": "tool_use", "input": {"file_id": "file_2"}}},
)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("cut", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    ("path", "stream", "ids"),
    [
        (b"/v1/conversations", CONVERSATION, {"conv_1": "conversation", "file_1": "file"}),
        (b"/v1/conversations/conv_1/restart", CONVERSATION, {"conv_1": "conversation", "file_1": "file"}),
        (
            b"/v1/responses",
            (CREATED, ADDED, DELTA, CALL),
            {"resp_1": "response", "msg_1": "item", "ci_1": "item", "cntr_1": "container"},
        ),
        (b"/v1/threads/runs", RUN, {"thread_1": "thread", "run_1": "run"}),
        (b"/v1/threads/t/runs", RUN[1:], {"run_1": "run"}),
        (b"/v1/chat/completions", CHUNKS, {"chatcmpl-1": "completion", "audio_1": "audio"}),
        (b"/v1/messages", MESSAGE, {"file_1": "file", "container_1": "container"}),
    ],
)
def test_a_stream_shows_ids(
    path: bytes, stream: tuple[dict[str, Any], ...], ids: dict[str, str], cut: int, end: str
) -> None:
    assert read(path, EVENTS, events(*stream, end=end), cut) == ids


@pytest.mark.parametrize("cut", [1000, 1 << 20])
def test_of_an_event_that_is_too_long_the_first_id_is_read(cut: int) -> None:
    long = {
        "type": "response.created",
        "sequence_number": 0,
        "response": {"id": "resp_1", "instructions": "x" * answers.KEPT},
    }
    assert read(b"/v1/responses", EVENTS, events(long, ADDED), cut) == {"resp_1": "response", "msg_1": "item"}


@pytest.mark.parametrize("cut", [1000, 1 << 20])
def test_of_a_document_that_is_too_long_or_cut_off_the_first_id_is_read(cut: int) -> None:
    long = json.dumps({"id": "resp_1", "instructions": "x" * answers.KEPT, "output": [{"id": "msg_1"}]}).encode()
    assert read(b"/v1/responses", JSON, long, cut) == {"resp_1": "response"}
    assert read(b"/v1/responses", JSON, b'{"id": "resp_1", "output": [', cut) == {"resp_1": "response"}
    assert read(b"/v1/responses", JSON, b'{"output": [], "metadata": {"id": "file-1"', cut) == {}


@pytest.mark.parametrize(
    ("path", "document", "ids"),
    [
        (
            b"/v1/batch/jobs",
            {"id": "job_1", "output_file": None, "error_file": "file_1"},
            {"job_1": "batch", "file_1": "file"},
        ),
        (b"/v1/batches", {"job": {"id": "batch_1"}, "warning": ""}, {"batch_1": "batch"}),
        (b"/v1/videos/generations", {"request_id": "video_1"}, {"video_1": "video"}),
        (b"/v1/chat/completions", {"request_id": "deferred_1"}, {"deferred_1": "deferred_completion"}),
        (b"/v1/files/upload", {"id": "file_1"}, {"file_1": "file"}),
    ],
)
def test_an_answer_of_another_vendor_shows_ids(path: bytes, document: object, ids: dict[str, str]) -> None:
    assert read(path, JSON, json.dumps(document).encode(), 1 << 20) == ids


@pytest.mark.parametrize("value", [1, None, "", "x" * 256, "a b", "caf\u00e9", {"id": "x"}])
def test_a_value_that_is_no_id_is_left_out(value: object) -> None:
    assert read(b"/v1/files", JSON, json.dumps({"id": value}).encode(), 100) == {}


def test_an_answer_that_created_nothing_is_not_read() -> None:
    endpoint, _ = TABLE.find("POST", b"/v1/files")
    assert answers.reader_for(endpoint.yields, 400, JSON) is None
    assert answers.reader_for(endpoint.yields, 200, [(b"content-type", b"text/html")]) is None
    assert answers.reader_for(endpoint.yields, 200, [*JSON, (b"content-encoding", b"unknown")]) is None
