"""The usage does not depend on how a body is cut, and no body makes a meter raise an exception."""

from __future__ import annotations

import gzip
import json
import zlib
from itertools import pairwise
from typing import Any

import brotli
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_proxy.gateway.http.codings import DECODERS
from llm_proxy.gateway.usage import Usage, meter_for
from llm_proxy.gateway.usage import events as events_module
from llm_proxy.gateway.usage import meter as meter_module
from llm_proxy.gateway.usage.scan import Scanner
from llm_proxy.gateway.usage.tally import Tally
from tests.gateway.usage.metering import feed

JSON = (b"content-type", b"application/json")
EVENTS = (b"content-type", b"text/event-stream")

#: Small enough that there are examples above and below it.
KEPT = 60


@pytest.fixture(autouse=True, scope="module")
def small_bounds() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meter_module, "KEPT", KEPT)
        patch.setattr(events_module, "KEPT", KEPT)
        yield


@st.composite
def chunked(draw: st.DrawFn, source: st.SearchStrategy[bytes]) -> tuple[bytes, list[bytes]]:
    """Some bytes, whole and cut anywhere, empty pieces included."""
    whole = draw(source)
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=20)))
    return whole, [whole[start:end] for start, end in pairwise([0, *cuts, len(whole)])]


def metered(headers: list[tuple[bytes, bytes]], pieces: list[bytes]) -> tuple[Usage, bool, bool, bool]:
    """The result of a meter: the usage, and whether the stream has ended, has failed, or could not be read."""
    meter = meter_for(200, headers)
    for piece in pieces:
        feed(meter, piece)
    return meter.result(), meter.ended, meter.failed, meter.unmetered


COUNTS = st.dictionaries(
    st.sampled_from(
        [
            *("prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens"),
            *("cache_read_input_tokens", "cache_creation_input_tokens", "reasoning_tokens", "cost"),
            *("promptTokenCount", "thoughtsTokenCount", "inputTokens", "inputTokenCount", "input-token-count"),
        ]
    ),
    st.integers(-1, 99) | st.none() | st.floats(allow_nan=False, allow_infinity=False),
    max_size=4,
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.sampled_from(
    ["model", "usage", "a\\", '"', '\\"', "{", "}}", "[", ",", "é\u2028", 'x"usage":{', "\n\n", "", "]" * 70]
)
VALUES = st.recursive(
    LEAVES | TEXTS | COUNTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
REPORTS = st.fixed_dictionaries(
    {},
    optional={
        "model": st.text(max_size=8) | VALUES,
        "usage": COUNTS | VALUES,
        "usageMetadata": COUNTS | VALUES,
        "meta": st.fixed_dictionaries({"billed_units": COUNTS | VALUES}) | VALUES,
        "x": VALUES,
        "\\": VALUES,
    },
)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "a": VALUES,
        "response": REPORTS | VALUES,
        "model": st.text(max_size=8) | VALUES,
        "message": REPORTS | VALUES,
        "type": st.sampled_from(["error", "response.completed", "message_start", "message_delta", "message_stop", "x"])
        | VALUES,
        "error": COUNTS | st.none(),
        "usage": COUNTS | VALUES,
        "usage_breakdown": VALUES,
        "amazon-bedrock-invocationMetrics": COUNTS | VALUES,
        "prompt_eval_count": st.integers(-1, 99) | VALUES,
        "eval_count": st.integers(-1, 99) | VALUES,
        "done": st.booleans(),
        "service_tier": VALUES,
        "x_groq": REPORTS | VALUES,
        "delta": REPORTS | VALUES,
        "z": VALUES,
    },
)
#: A stream of Gemini, which is one array.
ARRAYS = st.lists(
    st.fixed_dictionaries(
        {"candidates": VALUES}, optional={"usageMetadata": COUNTS, "usage": COUNTS, "modelVersion": TEXTS}
    ),
    max_size=3,
)
DUMPED = st.builds(
    lambda document, indent, ascii_only: json.dumps(document, indent=indent, ensure_ascii=ascii_only).encode(),
    DOCUMENTS | ARRAYS,
    st.sampled_from([None, 1]),
    st.booleans(),
)
LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
FIELDS = st.sampled_from([b"data: ", b"data:", b"event: ", b"data", b": ", b"", b"\xef\xbb\xbf", b"id"])
CONTENTS = DUMPED.map(lambda text: text.replace(b"\n", b" ")) | st.sampled_from(
    [b"", b"[DONE]", b"error", b"message_stop", b"response.completed"]
)
LINES = st.tuples(FIELDS, CONTENTS, LINE_ENDS).map(b"".join)
STREAMS = st.lists(LINES | LINE_ENDS, max_size=12).map(b"".join)
DAMAGED = st.builds(
    lambda text, at, junk: text[: at % (len(text) + 1)] + junk + text[at % (len(text) + 1) :],
    DUMPED | STREAMS,
    st.integers(0, 1000),
    st.binary(max_size=3),
)


CHAT = (
    b"".join(
        b"data: " + json.dumps(event).encode() + b"\n\n"
        for event in (
            {"model": "m", "choices": [{"delta": {"content": 'say "usage"'}}], "usage": None},
            {"model": "m", "choices": [{"delta": {"content": "{}"}}]},
            {"model": "m", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}},
        )
    )
    + b"data: [DONE]\n\n"
)
MESSAGES = (
    b'\xef\xbb\xbfevent: message_start\r\ndata: {"message":{"model":"m","usage":{"input_tokens":7}}}\r\n\r\n'
    b'event: ping\r\ndata: {}\r\n\r\n: comment\r\n\r\ndata: {"usage":\r\ndata: {"output_tokens":3}}\r\n\r\n'
    b'event: message_stop\r\ndata: {"type":"message_stop"}\r\n\r\n'
)
RESPONSES = (
    b'data: {"type":"response.created","response":{"model":"m","usage":null}}\r\r'
    b'data: {"type":"response.completed","response":{"output":["\\\\","\\"}"],'
    b'"usage":{"input_tokens":7,"output_tokens":3}}}\r'
)


@pytest.mark.parametrize("stream", [CHAT, MESSAGES, RESPONSES])
@pytest.mark.parametrize("kept", [20, 60, 100, 1000])
def test_a_real_stream_cut_at_any_two_places_gives_the_same_usage(
    stream: bytes, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "KEPT", kept)
    for first in range(len(stream) + 1):
        for length in (0, 1, 2, 7, 50):
            pieces = [stream[:first], stream[first : first + length], stream[first + length :]]
            assert metered([EVENTS], pieces) == (Usage("m", 7, 3), True, False, False)


@given(chunked(DUMPED | DAMAGED | st.binary()))
def test_a_body_cut_anywhere_gives_the_same_usage(source: tuple[bytes, list[bytes]]) -> None:
    whole, pieces = source
    assert metered([JSON], pieces) == metered([JSON], [whole])


@given(chunked(STREAMS | DAMAGED | st.binary()))
@settings(max_examples=300)
def test_a_stream_cut_anywhere_gives_the_same_usage(source: tuple[bytes, list[bytes]]) -> None:
    whole, pieces = source
    expected = metered([EVENTS], [whole])
    assert metered([EVENTS], pieces) == expected
    assert metered([EVENTS], [bytes([byte]) for byte in whole]) == expected


@given(
    st.sampled_from(
        [
            gzip.compress,
            zlib.compress,
            lambda text: zlib.compress(text)[2:-4],
            brotli.compress,
            zstandard.compress,
            lambda text: text,
        ]
    ),
    chunked(DUMPED),
    st.data(),
)
def test_a_compressed_body_cut_anywhere_gives_the_same_usage(
    pack: Any, source: tuple[bytes, list[bytes]], data: st.DataObject
) -> None:
    plain, _ = source
    whole, pieces = data.draw(chunked(st.just(pack(plain)) | st.just(pack(plain)[:-1] + b"\x00" + pack(b"x"))))
    for encoding in DECODERS:
        headers = [JSON, (b"content-encoding", encoding)]
        assert metered(headers, pieces) == metered(headers, [whole])


@pytest.mark.parametrize("cut", [-2, -1, 1])
def test_bytes_behind_a_brotli_stream_make_it_unmetered_however_it_is_cut(cut: int) -> None:
    headers, packed = [JSON, (b"content-encoding", b"br")], brotli.compress(CHAT)
    at = len(packed) + cut
    body = packed + b"more"
    assert metered(headers, [body[:at], body[at:]]) == metered(headers, [packed, b"more"]) == metered(headers, [body])
    assert metered(headers, [body])[3]


@given(DUMPED)
@settings(max_examples=300)
def test_scanning_finds_what_decoding_finds(document: bytes) -> None:
    decoded, scanned, scanner = Tally(), Tally(), Scanner()
    decoded.read(document)
    scanner.feed(document)
    scanner.report(scanned)
    assert scanned == decoded


@given(STREAMS)
def test_all_line_ends_give_the_same_usage(stream: bytes) -> None:
    unix = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    assert metered([EVENTS], [stream]) == metered([EVENTS], [unix])
    assert metered([EVENTS], [unix.replace(b"\n", b"\r\n")]) == metered([EVENTS], [unix])
