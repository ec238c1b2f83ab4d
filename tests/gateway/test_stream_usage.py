"""The edit `stream_usage`: of a request's body, and of the stream that answers it."""

from __future__ import annotations

import gzip
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from sqlalchemy import select, update

from db import Connection
from db.schema import projects, requests
from llm_proxy.gateway.inbound import JOINED, Inbound
from llm_proxy.gateway.providers.provider import Route
from llm_proxy.gateway.stream_usage import LONGEST, StreamEditor, is_wanted, with_option
from tests.gateway.stage import Client, Scene, scene

OPTION = b'"stream_options":{"include_usage":true}'
USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
#: In a text, what would be edited outside of it.
QUOTED = 'said: ,"usage":null, "stream_options":{} and "choices":[],"usage":{}'


BODY = b'{"model":"m","messages":[],"stream":true}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\nETag: x\r\n\r\n"


async def _nothing() -> None:
    await trio.sleep_forever()


def inbound(path: bytes = b"/v1/chat/completions", method: str = "POST", query: bytes = b"") -> Inbound:
    scope = {"method": method, "raw_path": path, "query_string": query, "headers": []}
    return Inbound("0190", 0, Route(None, path, "openai"), scope, _nothing, 1000)


@pytest.mark.parametrize(
    ("path", "query", "wanted"),
    [
        (b"/v1/chat/completions", b"", True),
        (b"/v1/completions", b"", True),
        (b"/deployments/x/chat/completions", b"api-version=2024-10-21", True),
        (b"/deployments/x/chat/completions", b"a=b&api-version=2025-01-01-preview", True),
        (b"/deployments/x/chat/completions", b"api-version=2024-02-01", False),
        (b"/v1/chat/completions/chatcmpl-1", b"", False),
        (b"/v1/responses", b"", False),
        (b"/v1/messages", b"", False),
    ],
)
def test_post_to_a_path_of_chats_or_completions_is_asked(path: bytes, query: bytes, wanted: bool) -> None:
    asks: Any = SimpleNamespace(stream_usage="ask")
    silent: Any = SimpleNamespace(stream_usage="off")
    project: Any = SimpleNamespace(stream_usage=None)
    assert is_wanted(asks, silent, inbound(path, query=query)) is wanted
    assert not is_wanted(silent, asks, inbound(path, query=query))
    assert is_wanted(project, asks, inbound(path, query=query)) is wanted
    assert not is_wanted(project, silent, inbound(path, query=query))
    assert not is_wanted(project, asks, inbound(path, "GET", query))


@pytest.mark.parametrize(
    ("body", "edited"),
    [
        (b'{"model":"m","stream":true}', b'{"model":"m","stream":true,' + OPTION + b"}"),
        (b' {\n "stream" : true ,"x":[{}] \n} \n', b' {\n "stream" : true ,"x":[{}] \n,' + OPTION + b"} \n"),
        (b'{"stream_options":{},"stream":true}', b'{"stream_options":{"include_usage":true},"stream":true}'),
        (
            b'{"stream":true,"stream_options": { "include_obfuscation":false} }',
            b'{"stream":true,"stream_options": {"include_usage":true, "include_obfuscation":false} }',
        ),
        (
            b'{"a":{"stream_options":{"b":1}},"stream_options":{"b":1},"stream":true,"c":{"stream_options":{}}}',
            b'{"a":{"stream_options":{"b":1}},"stream_options":{"include_usage":true,"b":1},"stream":true,%b}'
            % b'"c":{"stream_options":{}}',
        ),
        (
            b'{"stream":true,"x":{"stream_options":{}}}',
            b'{"stream":true,"x":{"stream_options":{}},' + OPTION + b"}",
        ),
    ],
)
def test_option_is_inserted_and_all_other_bytes_stay(body: bytes, edited: bytes) -> None:
    assert with_option(body, []) == edited
    assert json.loads(edited)["stream_options"]["include_usage"] is True


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m"}',
        b'{"stream":false}',
        b'{"stream":"true"}',
        b'{"stream":true,"stream":false}',
        b'{"stream":true,"stream_options":{"include_usage":false}}',
        b'{"stream":true,"stream_options":{"include_usage":true}}',
        b'{"stream":true,"stream_options":{"x":1,"include_usage":null}}',
        b'{"stream":true,"stream_options":null}',
        b'{"stream":true,"stream_options":[]}',
        b'{"stream":true,"stream\\u005foptions":{},"x":{"stream_options":{}}}',
        b'{"stream":true',
        b'{"stream":true}}',
        b'{"stream":true,"x":NaN}',
        b"[true]",
        b"\x1f\x8b\x08\x00",
        b"[" * 100_000,
        b"",
    ],
)
def test_body_that_is_not_streamed_or_has_the_option_or_is_no_plain_json_stays(body: bytes) -> None:
    assert with_option(body, []) is None


@pytest.mark.parametrize(
    "header", [(b"content-encoding", b"gzip"), (b"content-digest", b"sha-256=:x:"), (b"content-md5", b"x")]
)
def test_body_that_is_compressed_or_has_a_digest_stays(header: tuple[bytes, bytes]) -> None:
    assert with_option(b'{"stream":true}', [header]) is None
    assert with_option(b'{"stream":true}', [(b"content-encoding", b"identity")]) is not None


def chunk(delta: Any, **more: Any) -> dict[str, Any]:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}], **more}


def stream(*, asked: bool, end: str = "\n", after: bool = True, spaces: bool = False, pad: int = 1) -> bytes:
    """A stream as the vendor documents it, with or without the option."""
    blank = {"usage": None} if asked else {}
    tail = {"obfuscation": "xyz"} if after else {}
    first = {**blank, **tail} if after else blank
    chunks: list[Any] = [
        {**chunk({"role": "assistant", "content": ""}), "choices": [], "prompt_filter_results": [], **first},
        chunk({"content": QUOTED}, **first),
        chunk({"content": "é" * pad}, x_groq={"usage": None}, **first),
        chunk({"content": "\r\n\n"}, timings={"a": {"usage": None, "b": 1}}, **first),
        chunk({}, **first),
    ]
    if asked:
        chunks.append({**chunk({}), "choices": [], "usage": USAGE, **tail})
    separators = None if spaces else (",", ":")
    texts = [json.dumps(one, separators=separators, ensure_ascii=False) for one in chunks]
    events = [f"data: {text}{end}{end}" for text in texts]
    events.insert(1, f": a comment{end}{end}event: ping{end}data: {end}{end}{end}")
    return "".join([*events, f"data: [DONE]{end}{end}"]).encode()


def edited(pieces: list[bytes]) -> bytes:
    editor = StreamEditor()
    return b"".join([editor.feed(piece) for piece in pieces]) + editor.end()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("spaces", [True, False])
def test_stream_cut_at_every_byte_is_edited_to_that_without_the_option(end: str, *, after: bool, spaces: bool) -> None:
    asked = stream(asked=True, end=end, after=after, spaces=spaces)
    plain = stream(asked=False, end=end, after=after, spaces=spaces)
    assert asked != plain
    assert edited([asked]) == plain
    assert edited([asked[at : at + 1] for at in range(len(asked))]) == plain
    for at in range(len(asked) + 1):
        assert edited([asked[:at], asked[at:]]) == plain, at


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_stream_of_a_provider_that_ignores_the_option_stays(end: str) -> None:
    plain = stream(asked=False, end=end)
    assert edited([plain]) == plain
    assert edited([plain[at : at + 7] for at in range(0, len(plain), 7)]) == plain


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"total_tokens":3}}\n\n',
        b'data: {"error":{"message":"usage","code":500},"usage":{}}\n\n',
        b'data: {"choices":[],"usage":[]}\n\n',
        b'data: {"choices":[],"usage":{}\n\n',
        b'data: {"usage":{"total_tokens":3}}\n\n',
        b'data: {"usage":null}\n\n',
        b'data: {"choices":{},"usage":{}}\n\n',
        b'data: {"us\\u0061ge":null,"a":[{"usage":null,"b":1},{"x":1,"usage":null}]}\n\n',
        b'event: "usage"\ndata: {}\n\n',
        b'data: "usage"\n\n',
        b'data: {"choices":[],"x_groq":{"usage":{"total_tokens":3}}}\n\n',
    ],
)
def test_event_that_is_no_chunk_of_usage_alone_stays(event: bytes) -> None:
    before, after = b'data: {"choices":[]}\n\n', b"data: [DONE]\n\n"
    assert edited([before + event + after]) == before + event + after
    assert edited([event[at : at + 1] for at in range(len(event))]) == event


def test_null_that_is_the_first_member_is_removed_with_the_comma_behind_it() -> None:
    assert edited([b'data: {"usage": null, "a":1}\n\n']) == b'data: {"a":1}\n\n'
    assert edited([b'data: {"usage":null,"a":{"usage":null}}\n\n']) == b'data: {"a":{"usage":null}}\n\n'


def test_data_in_several_lines_is_edited_too() -> None:
    assert edited([b'data: {"choices":[],\ndata: "usage":{"a":1}}\n\n: b\n\n']) == b": b\n\n"
    assert edited([b'data: {"choices":[]\ndata: ,"usage":null}\n\n']) == b'data: {"choices":[]\ndata: }\n\n'


def test_chunk_of_usage_that_the_end_cuts_off_is_removed_or_stays() -> None:
    assert edited([b'data: {"choices":[],"usage":{"a":1}}\n']) == b""
    assert edited([b'data: {"choices":[],"usage":{"a"']) == b'data: {"choices":[],"usage":{"a"'


def test_complete_events_pass_at_once() -> None:
    editor = StreamEditor()
    for event in (b'data: {"a":1}\n\n', b'data: {"a":1}\r\n\r\n', b": ping\n\n", b"data: [DONE]\n\n"):
        assert editor.feed(event + b"data: ") == event
        assert editor.feed(b"1\n\n") == b"data: 1\n\n"
    assert editor.feed(b'data: {"a":1,"usage":null}\n\ndata') == b'data: {"a":1}\n\n'


def test_event_that_is_too_long_passes_and_ends_the_edit() -> None:
    piece, editor = b"data: " + b"x" * 60_000, StreamEditor()
    passed = b""
    for _ in range(LONGEST // len(piece) + 2):
        passed += editor.feed(piece)
        assert len(editor._pending) <= LONGEST + len(piece)
    rest = b'\n\ndata: {"choices":[],"usage":{"a":1}}\n\n'
    assert passed + editor.feed(rest) + editor.end() == piece * (LONGEST // len(piece) + 2) + rest


def test_few_places_of_the_option_are_tried() -> None:
    """Each costs as much as reading the body, which the client chooses."""
    inner = b'{"stream_options":{}},'
    few, many = (b'{"stream":true,"x":[%b{}],"stream_options":{}}' % (inner * count) for count in (10, 20_000))
    assert with_option(few, []) is not None
    assert with_option(many, []) is None


def answering(*, coding: bytes = b"", status: bytes = b"200 OK") -> Any:
    """A provider that knows the option; what it was asked is in `Scene.provider.seen`."""

    def script(_: bytes, body: bytes) -> bytes:
        text = stream(asked=b'"include_usage":true' in body)
        text = gzip.compress(text) if coding else text
        head = (HEAD % len(text)).replace(b"200 OK", status)
        return head.replace(b"ETag", b"Content-Encoding: %b\r\nETag" % coding) + text if coding else head + text

    return script


async def asked(stage: Scene, *pieces: bytes, chunked: bool = False) -> tuple[dict[bytes, bytes], bytes, bytes, Any]:
    """Send a request; returns headers and body of the answer, the request that the provider got, and the row."""
    client = Client(list(pieces))
    await stage.request(client, chunked=chunked, told=True)
    await stage.ledger.drain()
    query = select(requests).order_by(requests.c.id.desc()).limit(1)
    row = await stage.database.read(lambda connection: connection.execute(query).one())
    sent = b"".join(message.get("body", b"") for message in client.received)
    return dict(client.received[0]["headers"]), sent, stage.provider.seen[-1], row


async def test_stream_is_metered_and_the_client_sees_what_it_would_see_without_the_option(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        stage.provider.script = answering()
        headers, sent, seen, row = await asked(stage, BODY)
    assert sent == stream(asked=False)
    assert headers[b"x-llm-proxy-edited"] == b"stream_usage"
    assert not {b"content-length", b"etag"} & set(headers)
    head, _, body = seen.partition(b"\r\n\r\n")
    assert body == BODY[:-1] + b"," + OPTION + b"}"
    assert b"content-length: %d" % len(body) in head.lower()
    assert b"accept-encoding: identity" in head.lower()
    assert (row.input_tokens, row.output_tokens, row.outcome) == (9, 2, "ok")
    assert (row.request_bytes, row.response_bytes) == (len(BODY), len(sent))


@pytest.mark.parametrize("chunked", [True, False])
async def test_body_in_pieces_is_asked_if_it_is_not_too_long(tmp_path: Path, *, chunked: bool) -> None:
    long = BODY.replace(b"[]", b'["%b"]' % (b"x" * 100_000))
    async with scene(tmp_path) as stage:
        stage.relay.max_request_size = 1 << 22
        stage.provider.script = answering()
        pieces = [long[start : start + 30_000] for start in range(0, len(long), 30_000)]
        headers, sent, seen, row = await asked(stage, *pieces, chunked=chunked)
        assert (sent, row.input_tokens, row.requested_model) == (stream(asked=False), 9, "m")
        assert seen.endswith(b"\r\n\r\n" + long[:-1] + b"," + OPTION + b"}")
        assert headers[b"x-llm-proxy-edited"] == b"stream_usage"
        longer = BODY.replace(b"[]", b'["%b"]' % (b"x" * JOINED))
        headers, sent, seen, row = await asked(stage, longer[:-100], longer[-100:], chunked=chunked)
        assert (sent, row.estimated, row.requested_model) == (stream(asked=False), True, "m")
        assert OPTION not in seen
        assert b"x-llm-proxy-edited" not in headers


async def test_client_that_asks_itself_gets_the_chunk_and_no_header(tmp_path: Path) -> None:
    own = BODY[:-1] + b"," + OPTION + b"}"
    async with scene(tmp_path) as stage:
        stage.provider.script = answering()
        headers, sent, seen, row = await asked(stage, own)
    assert (sent, row.input_tokens) == (stream(asked=True), 9)
    assert seen.endswith(b"\r\n\r\n" + own)
    assert b"x-llm-proxy-edited" not in headers


async def test_what_is_removed_does_not_make_an_estimate_lower(tmp_path: Path) -> None:
    text = b'data: {"choices":[{"delta":{"content":"some words "}}],"usage":null}\n\n' * 80 + b"data: [DONE]\n\n"
    async with scene(tmp_path) as stage:
        stage.provider.script = lambda _head, _body: HEAD % len(text) + text
        *_, edited = await asked(stage, BODY)
        *_, whole = await asked(stage, BODY[:-1] + b"," + OPTION + b"}")
    assert (edited.response_bytes, whole.response_bytes) == (len(text) - 80 * len(b',"usage":null'), len(text))
    assert edited.output_tokens == whole.output_tokens > 100


async def test_error_and_compressed_stream_are_relayed_as_they_are_and_say_that_the_request_was_edited(
    tmp_path: Path,
) -> None:
    async with scene(tmp_path) as stage:
        stage.provider.script = answering(coding=b"gzip")
        headers, sent, _, row = await asked(stage, BODY)
        assert (gzip.decompress(sent), row.input_tokens) == (stream(asked=True), 9)
        assert headers[b"x-llm-proxy-edited"] == b"stream_usage"
        assert headers[b"content-length"] == b"%d" % len(sent)
        stage.provider.script = answering(status=b"400 Bad Request")
        headers, sent, _, row = await asked(stage, BODY)
        assert (sent, row.outcome) == (stream(asked=True), "rejected")
        assert headers[b"x-llm-proxy-edited"] == b"stream_usage"


async def test_usage_counts_although_the_client_leaves_with_the_last_event(tmp_path: Path) -> None:
    async def leave_at_the_end(message: Any) -> None:
        await sent(message)
        if b"[DONE]" in message.get("body", b""):
            client.leave()

    async with scene(tmp_path) as stage:
        stage.provider.script = answering()
        client = Client([BODY])
        sent = client.send
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Client, "send", lambda _, message: leave_at_the_end(message))
            await stage.request(client, chunked=False, told=True)
        await stage.assert_nothing_is_left()
        row = await stage.database.read(lambda connection: connection.execute(select(requests)).one())
    assert (row.outcome, row.input_tokens) == ("ok", 9)


async def test_stream_that_breaks_off_reaches_the_client_up_to_its_last_event(tmp_path: Path) -> None:
    text = stream(asked=True)
    cut = text.index(b"[DONE]") - 3
    async with scene(tmp_path) as stage:
        stage.provider.script = lambda _head, _body: (HEAD % len(text)) + text[:cut]
        client = Client([BODY])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(stage.request, client, chunked=False, told=False))
            with trio.fail_after(5):
                while not client.received or b"obfuscation" not in client.received[-1].get("body", b""):  # noqa: ASYNC110 (the client has no event)
                    await trio.sleep(0.001)
            client.leave()
        await stage.assert_nothing_is_left()
        row = await stage.database.read(lambda connection: connection.execute(select(requests)).one())
        sent = b"".join(message.get("body", b"") for message in client.received)
    assert (row.outcome, row.input_tokens) == ("client_closed", 9)
    assert stream(asked=False) == sent + b"data: [DONE]\n\n"


def _set(connection: Connection, setting: str | None) -> None:
    connection.execute(update(projects).values(stream_usage=setting))


async def test_setting_of_the_project_wins(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        stage.provider.script = answering()
        long = BODY.replace(b"[]", b'["%b"]' % (b"x" * 100_000))
        for setting, sent_option in (("off", False), ("ask", True), (None, True)):
            await stage.database.write(_set, setting)
            for pieces in ([BODY], [long[:70_000], long[70_000:]]):
                _, sent, seen, row = await asked(stage, *pieces)
                assert sent == stream(asked=False)
                assert (OPTION in seen, row.estimated) == (sent_option, not sent_option)
