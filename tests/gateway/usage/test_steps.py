"""No response makes a step of a meter block the event loop."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable

import brotli
import pytest
import zstandard

from llm_proxy.gateway.usage import meter_for
from tests.gateway.usage.metering import EVENTS, JSON
from tests.gateway.usage.test_streams import FRAMES, LINES, frame

#: Seconds of CPU time that a step may take.
BOUND = 0.01
#: Maximum number of bytes of one read from a provider.
READ = 64 * 1024
SIZE = 400_000


def many(text: bytes) -> bytes:
    return text * (SIZE // len(text))


WORST = {
    "brackets": (JSON, b'{"a":' + many(b"[]")),
    "brackets-in-an-array": (JSON, b'{"a":[' + many(b"[],")),
    "deep-brackets": (JSON, b'{"a":[' + many(b"[" * 200 + b"]" * 200)),
    "numbers": (JSON, b'{"a":[' + many(b"0.0123,")),
    "blanks": (JSON, b'{"a":[' + many(b" ")),
    "members": (JSON, b"{" + many(b'"a":1,')),
    "members-with-arrays": (JSON, b"{" + many(b'"a":[],')),
    "empty-strings": (JSON, b'{"a":[' + many(b'"",[],')),
    "escapes": (JSON, b'{"a":[' + many(b'"\\n",')),
    "one-string-of-escapes": (JSON, b'{"a":["' + many(b'\\"')),
    "a-large-usage": (JSON, b'{"usage":{' + b'"a":[],' * 9000),
    "tiny-events": (EVENTS, many(b'data:{"usage":{}}\n\n')),
    "tiny-broken-events": (EVENTS, many(b'data:{"usage":{,\n\n')),
    "tiny-events-without-data": (EVENTS, many(b"error\n\n")),
    "empty-lines": (EVENTS, many(b"\r")),
    "tiny-lines": (EVENTS, many(b"x\n")),
    "tiny-lines-of-data": (EVENTS, many(b"data:\n")),
    "one-line": (EVENTS, b'data: {"a":[' + many(b"[],")),
    "large-usages": (EVENTS, many(b'data:{"usage":{' + b'"a":[],' * 3000 + b'"b":1}}\n\n')),
}
WORST |= {
    "array-of-tiny-objects": (JSON, b"[" + many(b'{"a":1},')),
    "array-of-tiny-reports": (JSON, b"[" + many(b'{"usageMetadata":{}},')),
    "tiny-lines-of-json": (LINES, many(b'{"eval_count":1}\n')),
    "broken-lines": (LINES, many(b'{"eval_count":\n')),
    "one-line-of-json": (LINES, b'{"a":[' + many(b"[],")),
    "gemini-events": (EVENTS, many(b'data:{"usageMetadata":{"promptTokenCount":1}}\n\n')),
    "many-iterations": (EVENTS, many(b'data:{"usage":{"iterations":[' + b'{"input_tokens":1},' * 1400 + b"{}]}}\n\n")),
    "tiny-frames": (FRAMES, many(frame(b'{"usage":{}}'))),
    "tiny-chunks": (FRAMES, many(frame(b'{"bytes":"eyJ1c2FnZSI6e319"}'))),
    "empty-frames": (FRAMES, many(b"\x00\x00\x00\x10" + b"\x00" * 12)),
    "one-frame": (FRAMES, b"\x00\x10\x00\x00" + b"\x00" * 8 + b'{"a":[' + many(b"[],")),
}
CODINGS: dict[bytes, Callable[[bytes], bytes]] = {
    b"identity": bytes,
    b"gzip": gzip.compress,
    b"br": lambda text: brotli.compress(text, quality=4),
    b"zstd": zstandard.compress,
}


def longest_step(kind: tuple[bytes, bytes], coding: bytes, body: bytes) -> float:
    """The CPU time of the longest step, from one pause to the next."""
    meter = meter_for(200, [kind, (b"content-encoding", coding)])
    steps: list[float] = []
    for start in range(0, len(body), READ):
        before = time.thread_time()
        for _ in meter.feed(body[start : start + READ]):
            steps.append(time.thread_time() - before)
            before = time.thread_time()
        steps.append(time.thread_time() - before)
    before = time.thread_time()
    meter.result()
    return max(*steps, time.thread_time() - before)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("worst", WORST)
def test_each_step_is_bounded(worst: str, coding: bytes) -> None:
    kind, text = WORST[worst]
    body = CODINGS[coding](text)
    # Page faults or the garbage collector may disturb one run, but not each.
    assert any(longest_step(kind, coding, body) < BOUND for _ in range(3))


def test_scanning_stops_after_too_many_steps() -> None:
    meter = meter_for(200, [JSON])
    for _ in meter.feed(b"{" + many(b'"a":[],') + b'"usage":{"prompt_tokens":5}}'):
        pass
    assert meter.result().input_tokens is None
    assert meter.unmetered


@pytest.mark.parametrize("members", [200, 1])
def test_a_document_of_many_values_is_read(members: int) -> None:
    """Far more members than an API has, and many objects with short values, escapes and longer strings."""
    value = b"[%b{}]" % (
        b'{"token":" a\\n","logprob":-0.25,"bytes":[32,97],"top":[{"token":"%b"}]},' % (b"x" * 300) * 3000
    )
    text = b"{" + b'"a":[1],' * members + b'"b":%b,"usage":{"prompt_tokens":5}}' % value
    meter = meter_for(200, [JSON])
    for start in range(0, len(text), READ):
        for _ in meter.feed(text[start : start + READ]):
            pass
    assert meter.result().input_tokens == 5
    assert not meter.unmetered
