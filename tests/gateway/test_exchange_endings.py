"""How an exchange ends: what the client has got, what the provider has said, and what becomes of the connection."""

from __future__ import annotations

import json

import pytest
import trio

from llm_proxy.gateway.inbound import REST_TIMEOUT
from tests.gateway.exchanges import ended
from tests.gateway.upstream.stage import Handler, Peer, settled

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
USAGE = {"prompt_tokens": 7, "completion_tokens": 3}
CHUNK = b'data: {"model":"m","choices":[{"delta":{"content":"an error, they say: [DONE]?"}}]}\n\n'


def event(document: object, name: str = "") -> bytes:
    line = f"event: {name}\n" if name else ""
    return f"{line}data: {json.dumps(document)}\n\n".encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST = {
    "chat": event({"model": "m", "choices": [], "usage": USAGE}) + b"data: [DONE]\n\n",
    "anthropic": event({"type": "message_start", "message": {"model": "m", "usage": {"input_tokens": 7}}})
    + event({"type": "message_delta", "usage": {"output_tokens": 3}}, "message_delta")
    + event({"type": "message_stop"}, "message_stop"),
    "responses": event(
        {
            "type": "response.completed",
            "response": {"model": "m", "output": "x" * 50_000, "usage": {"input_tokens": 7, "output_tokens": 3}},
        },
        "response.completed",
    ),
    "responses-incomplete": event(
        {
            "type": "response.incomplete",
            "response": {"model": "m", "usage": {"input_tokens": 7, "output_tokens": 3}},
        }
    ),
    "gemini": event({"candidates": [{"content": {}, "finishReason": "STOP"}], "model": "m", "usage": USAGE}),
    "cohere": event({"type": "message-end", "model": "m", "usage": USAGE}, "message-end"),
}

FAILED = {
    "anthropic": event({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, "error"),
    "named": b"event: error\ndata: it broke\n\n",
    "chat": event({"error": {"message": "The server had an error", "type": "server_error"}}),
    "openrouter": event({"id": "1", "error": {"code": 502, "message": "x"}, "choices": [{"finish_reason": "error"}]}),
    "vllm": event({"object": "error", "message": "x", "code": 400}),
    "words": event({"error": "overloaded"}),
    "responses": event({"type": "response.failed", "response": {"status": "failed", "error": {"code": "x"}}}),
    "long": event({"type": "response.failed", "response": {"output": "x" * 50_000, "error": {"code": "x"}}}),
    "long-error": event({"x": "x" * 50_000, "error": {"message": "x"}}),
}

HARMLESS = [
    event({"choices": [], "error": None}),
    event({"type": "response.created", "response": {"error": None}}),
    event({"type": "response.output_text.delta", "delta": "event: error\ndata: [DONE]"}),
    event({"type": "x", "delta": '{"type":"error","error":{}}'}),
    event({"type": "response.output_text.done", "text": "response.completed message_stop response.failed"}),
]


def streaming(*pieces: bytes, rest: bytes = b"", after: float = 0.0) -> Handler:
    """Send the pieces of a stream as chunks, and `rest` as it is, some time `after` them."""

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD)
        for piece in pieces:
            await peer.send(chunk(piece))
            await settled()
        await trio.sleep(after)
        await peer.send(rest)
        await trio.sleep_forever()

    return handler


@pytest.mark.parametrize("kind", LAST)
async def test_a_stream_whose_last_event_was_relayed_is_ok_when_the_client_leaves_then(kind: str) -> None:
    found = await ended(streaming(CHUNK, LAST[kind], rest=END, after=0.01), until=LAST[kind][-20:])
    assert found.result.outcome == "ok"
    assert (found.result.model, found.result.input_tokens, found.result.output_tokens) == ("m", 7, 3)
    # And the connection can be used again, because its body has ended in a moment.
    assert found.counts == "1 idle, 0 in use"


async def test_the_result_has_all_classes_of_tokens_and_the_price_of_the_provider() -> None:
    usage = {
        "prompt_tokens": 70,
        "completion_tokens": 30,
        "prompt_tokens_details": {"cached_tokens": 10, "cache_write_tokens": 20, "audio_tokens": 5},
        "completion_tokens_details": {"reasoning_tokens": 8},
        "cache_creation": {"ephemeral_1h_input_tokens": 15},
        "cost": 0.25,
    }
    last = event({"model": "m", "service_tier": "flex", "usage": usage}) + b"data: [DONE]\n\n"
    result = (await ended(streaming(last, rest=END), until=None)).result
    assert (result.input_tokens, result.cached_tokens, result.cache_write_tokens) == (70, 10, 20)
    assert (result.cache_write_1h_tokens, result.output_tokens, result.reasoning_tokens) == (15, 30, 8)
    assert (result.usage_details, result.service_tier) == ({"input_audio_tokens": 5}, "flex")
    assert (result.cost_nanousd, result.cost_basis) == (250_000_000, "provider")


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_the_last_event_may_be_cut_anywhere(method: str) -> None:
    for cut in range(1, 14):
        done = b"data: [DONE]\n\n"
        found = await ended(streaming(done[:cut], done[cut:], rest=END), until=done, method=method)
        assert found.result.outcome == "ok"


async def test_a_stream_that_the_client_leaves_before_its_last_event_is_client_closed() -> None:
    for piece in [CHUNK, *HARMLESS]:
        found = await ended(streaming(CHUNK + piece, rest=END, after=0.01), until=piece)
        assert found.result.outcome == "client_closed", piece
        assert found.counts == "0 idle, 0 in use"


@pytest.mark.parametrize("until", [b"[DONE]", None], ids=["client-leaves", "client-stays"])
async def test_a_provider_that_breaks_off_behind_the_last_event_changes_nothing(until: bytes | None) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(LAST["chat"]))
        await settled()
        peer.reset()

    found = await ended(handler, until)
    assert found.result.outcome == "ok"
    assert found.result.input_tokens == 7
    assert found.counts == "0 idle, 0 in use"


async def test_an_endless_body_is_read_only_briefly_after_the_client_has_disconnected(
    autojump_clock: trio.testing.MockClock,
) -> None:
    found = await ended(streaming(LAST["chat"], after=10), until=b"[DONE]")
    assert found.result.outcome == "ok"
    assert found.took <= REST_TIMEOUT + 0.01
    assert found.counts == "0 idle, 0 in use"


async def test_a_body_that_goes_on_and_on_is_not_read_far_once_the_client_has_left() -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(LAST["chat"]))
        while True:
            await peer.send(chunk(b": " + b"x" * 10_000 + b"\n\n"))

    found = await ended(handler, until=b"[DONE]")
    assert found.result.outcome == "ok"
    assert (found.result.response_bytes or 0) < 64 * 1024 + 3 * 65536
    assert found.counts == "0 idle, 0 in use"


async def test_a_client_that_stays_gets_what_comes_behind_the_last_event(
    autojump_clock: trio.testing.MockClock,
) -> None:
    found = await ended(streaming(LAST["chat"], rest=chunk(b": bye\n\n") + END, after=30))
    assert found.received.endswith(b"data: [DONE]\n\n: bye\n\n")
    assert found.result.outcome == "ok"
    assert found.counts == "1 idle, 0 in use"


async def test_a_body_that_goes_on_behind_the_last_event_is_cut_off_after_a_minute_though_the_client_stays(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(LAST["chat"]))
        for _ in range(20):
            await trio.sleep(10)
            await peer.send(chunk(b": ka\n\n"))

    found = await ended(handler)
    assert found.took == pytest.approx(60, abs=1)
    assert found.result.outcome == "ok"
    assert found.received == LAST["chat"] + b": ka\n\n" * 5
    # It is not ended as if it were whole: there may have been more.
    assert all(message["more_body"] for message in found.messages[1:])
    assert found.counts == "0 idle, 0 in use"


@pytest.mark.parametrize("kind", FAILED)
@pytest.mark.parametrize("leaves", [True, False], ids=["client-leaves", "client-stays"])
async def test_an_error_event_in_a_stream_is_an_upstream_error(kind: str, *, leaves: bool) -> None:
    done = b"data: [DONE]\n\n"
    handler = streaming(CHUNK + FAILED[kind], rest=chunk(done) + END)
    found = await ended(handler, until=FAILED[kind] if leaves else None)
    assert found.result.outcome == "upstream_error"
    assert found.exchange.reason == "an event in the stream says that the answer has failed"
    # The [DONE] that some send behind it changes nothing.
    assert found.received.endswith(FAILED[kind] if leaves else done)


@pytest.mark.parametrize("harmless", HARMLESS)
async def test_text_that_resembles_an_error_or_an_end_event_is_neither(harmless: bytes) -> None:
    found = await ended(streaming(CHUNK, harmless, rest=END))
    assert found.result.outcome == "ok"
    assert not found.exchange.meter.failed
    assert not found.exchange.meter.ended


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, "ok"),
        (204, "ok"),
        (302, "ok"),
        (304, "ok"),
        (400, "rejected"),
        (401, "rejected"),
        (404, "rejected"),
        (429, "rejected"),
        (499, "rejected"),
        (500, "upstream_error"),
        (503, "upstream_error"),
        (529, "upstream_error"),
    ],
)
async def test_the_outcome_follows_the_status_of_the_provider(status: int, outcome: str) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        content = b"" if status in (204, 304) else b"Content-Length: 2\r\n"
        await peer.send(b"HTTP/1.1 %d X\r\n%b\r\n" % (status, content) + (b"{}" if content else b""))
        await trio.sleep_forever()

    found = await ended(handler)
    assert found.result.outcome == outcome
    assert found.result.status == status
    assert found.exchange.reason == (f"the provider answered {status}" if status >= 500 else "")


@pytest.mark.parametrize(("status", "outcome"), [(200, "client_closed"), (400, "rejected"), (500, "upstream_error")])
async def test_a_client_that_leaves_an_error_of_the_provider_halfway_does_not_change_what_it_was(
    status: int, outcome: str
) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 %d X\r\nContent-Length: 9\r\n\r\n{}" % status)
        await trio.sleep_forever()

    found = await ended(handler, until=b"{}")
    assert found.result.outcome == outcome


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([b"X-Request-ID: req_1"], "req_1"),
        ([b"request-id: req_2"], "req_2"),
        ([b"apim-request-id: req_3"], "req_3"),
        ([b"x-amzn-RequestId: req_4"], "req_4"),
        ([b"request-id: req_2", b"x-request-id: req_1"], "req_1"),
        ([b"x-request-id: with a blank", b"request-id: req_2"], "req_2"),
        ([b"x-request-id: " + b"x" * 255], "x" * 255),
        ([b"x-request-id: " + b"x" * 256], None),
        ([b"x-request-id: \xff"], None),
        ([], None),
    ],
)
@pytest.mark.parametrize("status", [200, 400])
async def test_the_provider_s_own_request_id_is_kept(names: list[bytes], found: str | None, status: int) -> None:
    head = b"\r\n".join([b"HTTP/1.1 %d X" % status, *names, b"Content-Length: 2", b"", b"{}"])

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(head)
        await trio.sleep_forever()

    assert (await ended(handler)).result.provider_request_id == found


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([b"x-request-id: gateway", b"request-id: req_2"], "req_2"),
        ([b"x-request-id: req_1"], "req_1"),
        ([b"x-request-id: req_1", b"request-id: with a blank"], "req_1"),
    ],
)
async def test_in_an_answer_of_anthropic_s_api_the_id_that_its_sdk_shows_goes_first(
    names: list[bytes], found: str
) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"\r\n".join([b"HTTP/1.1 200 X", *names, b"Content-Length: 2", b"", b"{}"]))
        await trio.sleep_forever()

    assert (await ended(handler, path=b"/v1/messages")).result.provider_request_id == found


@pytest.mark.parametrize("framing", ["whole", "broken-off", "client-left"])
async def test_a_truncated_document_is_unmetered_only_where_the_provider_ended_the_body(framing: str) -> None:
    body = b'{"model":"m","choices":['

    async def handler(peer: Peer) -> None:
        await peer.request()
        length = len(body) if framing == "whole" else 1000
        await peer.send(b"HTTP/1.1 200 X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % length)
        await peer.send(body)
        await settled()
        if framing == "broken-off":
            peer.reset()
        await trio.sleep_forever()

    found = await ended(handler, until=body if framing == "client-left" else None)
    outcome = {"whole": "ok", "broken-off": "upstream_error", "client-left": "client_closed"}[framing]
    assert (found.result.outcome, found.result.model) == (outcome, "m")
    assert found.result.unmetered is (framing == "whole")


@pytest.mark.parametrize(("method", "unmetered"), [("POST", True), ("GET", False)])
async def test_an_answer_in_a_coding_that_cannot_be_read_is_unmetered(method: str, *, unmetered: bool) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        head = b"Content-Type: application/json\r\nContent-Encoding: compress\r\nContent-Length: 2\r\n\r\n"
        await peer.send(b"HTTP/1.1 200 OK\r\n" + head + b"xx")
        await trio.sleep_forever()

    found = await ended(handler, method=method)
    assert found.result.unmetered is unmetered
    assert found.received == b"xx"


@pytest.mark.parametrize("written", [b"ab/cd+%41", b"ab%2Fcd%2B%2541", b"ab%2fcd%2b%2541", b"%61b/cd%2b%2541"])
async def test_a_key_in_the_query_does_not_come_back_in_a_header(written: bytes) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(
            b"HTTP/1.1 302 Found\r\nLocation: https://h/p?key=%b\r\nX: y\r\nContent-Length: 0\r\n\r\n" % written
        )

    found = await ended(handler, provider="query", key="ab/cd+%41")
    names = [name for name, _ in found.messages[0]["headers"]]
    assert b"x" in names
    assert b"location" not in names
