from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from llm_proxy.server.asgi import Receive, Scope, Send
from llm_proxy.server.context import ServerConfig
from llm_proxy.server.http1.cycle import DISCARD_LIMIT, YIELD_EVERY
from llm_proxy.server.http1.response import InvalidResponse
from tests.server.answers import Truncated
from tests.server.applications import Echo, Hold, body, sending, start
from tests.server.conftest import Connect
from tests.server.http1.framing_table import GET, get, post

OLD_GET = b"GET / HTTP/1.0\r\n\r\n"


async def test_an_application_gets_a_standard_scope(connect: Connect) -> None:
    app = Echo()
    peer = connect(app, tcp=True)
    await peer.send(get(b"X-Y: Z", target=b"/a%20b/%C3%A9%2f?c=%20d"))
    (scope,) = app.scopes
    assert scope["type"] == "http"
    assert scope["asgi"] == {"version": "3.0", "spec_version": "2.4"}
    assert (scope["method"], scope["http_version"], scope["scheme"]) == ("GET", "1.1", "http")
    assert (scope["path"], scope["raw_path"]) == ("/a b/é/", b"/a%20b/%C3%A9%2f")
    assert (scope["query_string"], scope["root_path"], scope["state"]) == (b"c=%20d", "", {})
    assert scope["headers"] == [(b"host", b"a"), (b"x-y", b"Z")]
    assert scope["client"] == peer.socket.getsockname()
    assert scope["server"] == peer.socket.getpeername()


async def test_the_head_is_sent_with_the_first_piece_of_the_body(connect: Connect) -> None:
    gate = trio.Event()

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start())
        await gate.wait()
        await send(body(b"", more=True))
        await send(body(b"late"))

    peer = connect(app)
    assert await peer.send(GET) == b""
    gate.set()
    await peer.settle()
    assert peer.answers()[0].body == b"late"


async def test_other_tasks_run_while_an_application_sends_without_waiting(connect: Connect) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        nonlocal turns
        async with trio.open_nursery() as counting:
            counting.start_soon(count)
            await trio.lowlevel.checkpoint()
            turns = 0
            await send(start())
            for _ in range(4 * YIELD_EVERY):
                await send(body(b"x", more=True))
            seen.append(turns)
            counting.cancel_scope.cancel()
        await send(body(b""))

    seen: list[int] = []
    peer = connect(app)
    await peer.send(GET)
    assert len(seen) == 1
    assert 3 <= seen[0] <= 5


async def test_an_empty_piece_sends_the_head(connect: Connect) -> None:
    peer = connect(sending(start(), body(more=True)))
    peer.connection.context.config.report(ValueError("unused"))
    assert (await peer.send(GET)).endswith(b"transfer-encoding: chunked\r\n\r\n")


@pytest.mark.parametrize(
    "messages",
    [
        [start(101), body()],
        [start(200, (b"x", b"a\r\nb: c")), body()],
        [start(200, (b"x y", b"a")), body()],
        [start(200, (b"content-length", b"+1")), body(b"a")],
        [start(200, (b"content-length", b"2")), body(b"abc")],
        [start(200, (b"content-length", b"2")), body(b"a")],
        [body(b"a")],
        [{"type": "http.response.zzz"}],
        [start(), start(), body()],
        [start()],
        [],
    ],
)
async def test_an_invalid_response_before_its_start_is_a_500(messages: list[Any], connect: Connect) -> None:
    peer = connect(sending(*messages))
    await peer.send(GET)
    (answer,) = peer.answers()
    assert answer.status == 500
    assert answer.body == b"The server failed to handle this request.\n"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.closing
    assert peer.closed
    assert all(isinstance(report, InvalidResponse) for report in peer.reports)


async def test_the_configuration_renders_errors_of_the_server(connect: Connect) -> None:
    def render(status: int, message: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
        data = f"{status}: {message}".encode()
        return [(b"content-type", b"text/x-error"), (b"content-length", b"%d" % len(data))], data

    peer = connect(sending(), error_response=render)
    await peer.send(GET)
    (answer,) = peer.answers()
    assert answer.body == b"500: The server failed to handle this request."
    assert answer.headers["content-type"] == "text/x-error"


async def test_a_500_to_head_has_no_body(connect: Connect) -> None:
    peer = connect(sending())
    assert (await peer.send(GET.replace(b"GET", b"HEAD"))).endswith(b"\r\n\r\n")


async def test_an_exception_is_reported_and_not_sent_to_the_client(connect: Connect) -> None:
    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise ValueError("secret")

    peer = connect(app)
    assert b"secret" not in await peer.send(GET)
    assert [str(report) for report in peer.reports] == ["secret"]


@pytest.mark.parametrize("length", [(), ((b"content-length", b"10"),)])
async def test_an_exception_after_the_start_leaves_the_response_incomplete(length: Any, connect: Connect) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start(200, *length))
        await send(body(b"part", more=True))
        raise ValueError

    peer = connect(app)
    await peer.send(GET + GET)
    assert peer.got.count(b"HTTP/1.1") == 1
    assert b"part" in peer.got
    assert peer.closed
    with pytest.raises(Truncated):
        peer.answers()


async def test_an_exception_in_a_body_without_length_resets_the_connection(connect: Connect) -> None:
    peer = connect(sending(start(), body(b"part", more=True)), tcp=True)
    await peer.send(OLD_GET)
    assert peer.reset


@pytest.mark.parametrize("pieces", [[b"1234", b"56"], [b"12", b"3"]])
async def test_a_body_of_another_length_leaves_the_response_incomplete(pieces: list[bytes], connect: Connect) -> None:
    messages = [body(piece, more=True) for piece in pieces[:-1]] + [body(pieces[-1])]
    peer = connect(sending(start(200, (b"content-length", b"5")), *messages))
    await peer.send(GET)
    assert peer.closed
    with pytest.raises(Truncated):
        peer.answers()
    assert [type(report) for report in peer.reports] == [InvalidResponse]


async def test_sending_after_an_invalid_body_raises(connect: Connect) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start(200, (b"content-length", b"5")))
        await send(body(b"12", more=True))
        with pytest.raises(InvalidResponse, match="length"):
            await send(body(b"3456", more=True))
        with pytest.raises(OSError, match="disconnected"):
            await send(body(b"345"))

    peer = connect(app)
    await peer.send(GET)
    assert peer.got.endswith(b"\r\n\r\n12")
    assert peer.closed
    assert peer.reports == []


async def test_bytes_beyond_the_content_length_are_not_sent(connect: Connect) -> None:
    peer = connect(sending(start(200, (b"content-length", b"5")), body(b"12345", more=True), body(b"6")))
    await peer.send(GET)
    assert peer.answers()[0].body == b"12345"
    assert peer.closed


async def test_messages_after_the_end_are_errors_of_the_application(connect: Connect) -> None:
    peer = connect(sending(start(), body(b"all"), body(b"more")))
    await peer.send(GET)
    assert peer.answers()[0].body == b"all"
    assert [type(report) for report in peer.reports] == [InvalidResponse]
    await peer.send(GET)
    assert len(peer.answers()) == 2


async def test_an_unread_body_is_discarded_to_keep_the_connection(connect: Connect) -> None:
    peer = connect(sending(start(200, (b"content-length", b"0")), body()))
    data = b"x" * DISCARD_LIMIT
    await peer.send(post(data[:10], b"Content-Length: %d" % DISCARD_LIMIT))
    assert [answer.closing for answer in peer.answers()] == [False]
    await peer.send(data[10:] + GET)
    assert len(peer.answers()) == 2
    assert not peer.closed


async def test_a_long_unread_body_closes_the_connection_after_the_response(connect: Connect) -> None:
    """A reset would destroy the response to a client that is still sending."""
    peer = connect(sending(start(413, (b"content-length", b"0")), body()), tcp=True)
    await peer.send(post(b"", b"Content-Length: 10000000"))
    for _ in range(50):
        await peer.send(b"x" * 2000)
    (answer,) = peer.answers()
    assert answer.status == 413
    assert answer.closing
    assert peer.closed
    assert not peer.reset


async def test_an_endless_unread_body_closes_the_connection(connect: Connect) -> None:
    peer = connect(sending(start(200, (b"content-length", b"0")), body()))
    await peer.send(post(b"", b"Transfer-Encoding: chunked"))
    for _ in range(DISCARD_LIMIT // 30_000 + 1):
        await peer.send(b"7530\r\n" + b"x" * 30_000 + b"\r\n")
    assert peer.answers()[0].status == 200
    assert peer.closed


async def test_a_response_may_begin_before_the_request_has_ended(connect: Connect) -> None:
    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        while True:
            message = await receive()
            await send(body(message["body"], more=message["more_body"]))
            if not message["more_body"]:
                return

    peer = connect(app)
    await peer.send(post(b"a", b"Content-Length: 3"))
    assert peer.got.endswith(b"1\r\na\r\n")
    await peer.send(b"b")
    assert peer.got.endswith(b"1\r\nb\r\n")
    await peer.send(b"c" + GET)
    assert [answer.body for answer in peer.answers()] == [b"abc", b""]


async def test_100_is_sent_once_and_only_when_the_body_is_wanted(connect: Connect) -> None:
    peer = connect(Echo())
    await peer.send(post(b"", b"Content-Length: 4", b"Expect: 100-continue"))
    await peer.send(b"bo")
    await peer.send(b"dy")
    assert [(answer.status, answer.body) for answer in peer.answers()] == [(100, b""), (200, b"body")]


async def test_there_is_no_100_for_an_application_that_has_given_the_body_up(connect: Connect) -> None:
    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await receive()
        await send(start(503, (b"content-length", b"0")))
        await send(body())

    peer = connect(app)
    await peer.send(post(b"", b"Content-Length: 4", b"Expect: 100-continue"))
    assert [answer.status for answer in peer.answers()] == [503]


@pytest.mark.parametrize("there", [b"b", b"body"])
async def test_there_is_no_100_when_the_body_has_begun(there: bytes, connect: Connect) -> None:
    peer = connect(Echo())
    await peer.send(post(there, b"Content-Length: 4", b"Expect: 100-continue"))
    await peer.send(b"body"[len(there) :])
    assert [(answer.status, answer.body) for answer in peer.answers()] == [(200, b"body")]


async def test_after_a_response_without_100_the_connection_is_closed(connect: Connect) -> None:
    """RFC 9110 section 10.1.1: the bytes after a final response instead of a 100 are ambiguous."""
    peer = connect(sending(start(403, (b"content-length", b"0")), body()))
    await peer.send(post(b"", b"Content-Length: 4", b"Expect: 100-continue"))
    (answer,) = peer.answers()
    assert (answer.status, answer.closing, peer.closed) == (403, True, True)


async def test_a_malformed_body_is_answered_instead_of_the_application(connect: Connect) -> None:
    app = Hold()
    peer = connect(app)
    await peer.send(post(b"3\r\nabc\r\n", b"Transfer-Encoding: chunked"))
    await peer.send(b"zz\r\n")
    assert peer.answers()[0].status == 400
    assert (app.running, app.disconnects, peer.closed) == (0, 1, True)


async def test_a_response_during_draining_closes_the_connection(connect: Connect) -> None:
    peer = connect(Echo())
    await peer.send(GET)
    peer.connection.context.connections.draining = True
    await peer.send(GET)
    assert [answer.closing for answer in peer.answers()] == [False, True]
    assert peer.closed


async def test_an_exception_of_the_report_is_ignored(connect: Connect) -> None:
    def broken(_: BaseException) -> None:
        raise ValueError("the log is full")

    peer = connect(sending(start(101)), report=broken)
    await peer.send(GET)
    assert peer.answers()[0].status == 500


def test_a_certificate_without_a_key_is_an_error() -> None:
    with pytest.raises(ValueError, match="both"):
        ServerConfig(tls_cert=Path("cert.pem"))
