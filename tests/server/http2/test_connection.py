from __future__ import annotations

import ssl
from typing import Any

import h2.errors
import h2.settings
import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from llm_proxy.server.asgi import Receive, Scope, Send
from llm_proxy.server.http1.response import InvalidResponse
from tests.server.applications import Echo, Hold, body, read_all, respond, sending, start
from tests.server.conftest import ServeTls
from tests.server.http2.client import connect_http2

CODES = h2.errors.ErrorCodes


async def test_a_request_and_its_scope(serve_tls: ServeTls, trust: ssl.SSLContext) -> None:
    app = Echo()
    async with serve_tls(app) as server, connect_http2(server.port, trust) as client:
        number = await client.ask(
            "/a%20b?c=d", method="POST", extra=[("x-y", "Z"), ("cookie", "a=1"), ("cookie", "b=2")], end=False
        )
        await client.send(number, b"hello", end=True)
        reply = await client.reply(number)
        assert (reply.status, reply.body, reply.ended) == (200, b"hello", True)
        assert set(reply.headers) == {":status", "content-length", "date"}
        (scope,) = app.scopes
        assert (scope["method"], scope["http_version"], scope["scheme"]) == ("POST", "2", "https")
        assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/a b", b"/a%20b", b"c=d")
        assert scope["headers"] == [(b"host", b"localhost"), (b"x-y", b"Z"), (b"cookie", b"a=1; b=2")]
        assert scope["asgi"] == {"version": "3.0", "spec_version": "2.4"}
        assert scope["client"][0] == "127.0.0.1"
        assert scope["server"] == ("127.0.0.1", server.port)
    assert server.reports == []


async def test_httpx_uses_http_2_and_http_1_1(serve_tls: ServeTls, trust: ssl.SSLContext) -> None:
    async with serve_tls(Echo()) as server:
        for http2, version in [(True, "HTTP/2"), (False, "HTTP/1.1")]:
            async with httpx.AsyncClient(http2=http2, verify=trust, trust_env=False) as client:
                reply = await client.post(f"https://localhost:{server.port}/", content=b"x" * 300_000)
                assert (reply.http_version, reply.content) == (version, b"x" * 300_000)


async def test_many_streams_run_at_once(serve_tls: ServeTls, trust: ssl.SSLContext) -> None:
    app = Hold()
    async with serve_tls(app) as server, connect_http2(server.port, trust) as client:
        await wait_all_tasks_blocked(0.05)
        numbers = [await client.ask() for _ in range(100)]
        assert client.h2.remote_settings.max_concurrent_streams == 100
        while app.running < 100:
            await wait_all_tasks_blocked(0.01)
        app.release.set()
        assert {(await client.reply(number)).body for number in numbers} == {b"released"}


async def test_large_bodies_are_sent_at_the_pace_of_their_readers(serve_tls: ServeTls, trust: ssl.SSLContext) -> None:
    size = 1_000_000
    async with serve_tls(Echo()) as server, connect_http2(server.port, trust) as client:
        number = await client.ask(method="POST", end=False)
        await client.send(number, b"x" * size, end=True)
        assert (await client.reply(number)).body == b"x" * size


async def test_an_application_that_does_not_read_blocks_only_its_own_stream(
    serve_tls: ServeTls, trust: ssl.SSLContext
) -> None:
    gate = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/slow":
            await gate.wait()
        await respond(send, b"%d" % len(await read_all(receive)))

    async with serve_tls(app) as server, connect_http2(server.port, trust) as client:
        slow = await client.ask("/slow", method="POST", end=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: client.send(slow, b"x" * 200_000, end=True))
            await wait_all_tasks_blocked(0.05)
            assert client.h2.local_flow_control_window(slow) == 0
            quick = await client.ask(method="POST", end=False)
            await client.send(quick, b"y" * 100_000, end=True)
            assert (await client.reply(quick)).body == b"100000"
            gate.set()
        assert (await client.reply(slow)).body == b"200000"


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_a_disconnect_is_detected_at_once(how: str, serve_tls: ServeTls, trust: ssl.SSLContext) -> None:
    app = Hold()
    async with serve_tls(app) as server, connect_http2(server.port, trust) as client:
        number = await client.ask()
        while not app.running:
            await wait_all_tasks_blocked(0.01)
        if how == "reset":
            client.h2.reset_stream(number, CODES.CANCEL)
            await client.flush()
        else:
            await trio.aclose_forcefully(client.stream)
        with trio.fail_after(2):
            while app.running:
                await wait_all_tasks_blocked(0.01)
        assert app.disconnects == 1
        if how == "reset":
            app.release.set()
            assert (await client.get()).body == b"released"


@pytest.mark.parametrize("stalled", [False, True])
async def test_sending_after_a_disconnect_raises_oserror(
    stalled: bool, serve_tls: ServeTls, trust: ssl.SSLContext
) -> None:
    raised = trio.Event()
    sending = trio.Event()

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(start())
        try:
            while True:
                sending.set()
                await send(body(b"x" * 10_000, more=True))
        except OSError:
            raised.set()
            raise

    async with serve_tls(app) as server, connect_http2(server.port, trust, greedy=not stalled) as client:
        number = await client.ask()
        await sending.wait()
        await trio.sleep(0.1)
        client.h2.reset_stream(number, CODES.CANCEL)
        await client.flush()
        with trio.fail_after(2):
            await raised.wait()
    assert server.reports == []


async def test_a_stream_that_is_not_read_is_reset_and_others_continue(
    serve_tls: ServeTls, trust: ssl.SSLContext, autojump_clock: MockClock
) -> None:
    """The client reads the connection; only the window of the stream stays closed."""
    app = sending(start(), body(b"x" * 100_000))
    async with serve_tls(app, write_timeout=30) as server, connect_http2(server.port, trust, greedy=False) as client:
        began = trio.current_time()
        with trio.fail_after(100):
            reply = await client.get()
        assert reply.reset == CODES.CANCEL
        assert len(reply.body) == 65535
        assert trio.current_time() - began == pytest.approx(30, abs=1)
        client.greedy = True
        client.h2.increment_flow_control_window(65535)
        assert len((await client.get()).body) == 100_000
    assert server.reports == []


async def test_an_application_waits_for_a_client_that_does_not_read(serve_tls: ServeTls, trust: ssl.SSLContext) -> None:
    sent = 0

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        nonlocal sent
        await send(start())
        for _ in range(100):
            await send(body(b"x" * 65536, more=True))
            sent += 65536
        await send(body())

    async with serve_tls(app) as server, connect_http2(server.port, trust, greedy=False) as client:
        number = await client.ask()
        await wait_all_tasks_blocked(0.2)
        assert sent <= 4 * 65536
        for stream_id in (None, number):
            client.h2.increment_flow_control_window(100 * 65536, stream_id)
        await client.flush()
        assert len((await client.reply(number)).body) == sent == 100 * 65536


async def test_a_slow_reader_is_not_reset(
    serve_tls: ServeTls, trust: ssl.SSLContext, autojump_clock: MockClock
) -> None:
    app = sending(start(), body(b"x" * 100_000))
    async with serve_tls(app, write_timeout=30) as server, connect_http2(server.port, trust, greedy=False) as client:
        number = await client.ask()
        await trio.sleep(1)
        while not client.replies[number].ended:
            await trio.sleep(20)
            for stream_id in (None, number):
                client.h2.increment_flow_control_window(5000, stream_id)
            await client.flush()
            await trio.sleep(1)
        assert len(client.replies[number].body) == 100_000


async def test_a_connection_that_is_not_read_is_cut(
    serve_tls: ServeTls, trust: ssl.SSLContext, autojump_clock: MockClock
) -> None:
    ended = trio.Event()

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        try:
            await send(start())
            while True:
                await send(body(b"x" * 100_000, more=True))
        finally:
            ended.set()

    async with serve_tls(app, write_timeout=30) as server, connect_http2(server.port, trust, deaf=True) as client:
        client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1})
        client.h2.increment_flow_control_window(2**31 - 1 - 65535)
        await client.flush()
        await client.ask()
        with trio.fail_after(100):
            await ended.wait()
    assert server.reports == []


@pytest.mark.parametrize(
    ("messages", "status"),
    [
        ([], 500),
        ([start()], 500),
        ([start(101), body()], 500),
        ([start(200, (b"x", b"a\r\nb")), body()], 500),
        ([start(200, (b"Connection", b"close"), (b"Transfer-Encoding", b"chunked")), body(b"a")], 200),
        ([start(200, (b"X-Y", b"z")), body(b"a")], 200),
        ([start(204), body()], 204),
    ],
)
async def test_invalid_messages_before_the_response_are_a_500(
    messages: list[Any], status: int, serve_tls: ServeTls, trust: ssl.SSLContext
) -> None:
    async with serve_tls(sending(*messages)) as server, connect_http2(server.port, trust) as client:
        reply = await client.get()
        assert (reply.status, reply.ended) == (status, True)
        assert "connection" not in reply.headers
        assert (await client.get()).status == status


@pytest.mark.parametrize("pieces", [[b"1234"], [b"123456"], [b"12", b"3"], [b"123", b"456"]])
async def test_a_body_of_another_length_is_reset(
    pieces: list[bytes], serve_tls: ServeTls, trust: ssl.SSLContext
) -> None:
    messages = [body(piece, more=True) for piece in pieces[:-1]] + [body(pieces[-1])]
    app = sending(start(200, (b"content-length", b"5")), *messages)
    async with serve_tls(app) as server, connect_http2(server.port, trust) as client:
        reply = await client.get()
        assert (reply.ended, reply.reset) == (False, CODES.INTERNAL_ERROR)
        assert {type(report) for report in server.reports} == {InvalidResponse}


async def test_an_exception_resets_the_stream_and_is_reported(serve_tls: ServeTls, trust: ssl.SSLContext) -> None:
    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        if scope["path"] == "/late":
            await send(start())
            await send(body(b"part", more=True))
        raise ValueError("secret")

    async with serve_tls(app) as server, connect_http2(server.port, trust) as client:
        reply = await client.get("/early")
        assert (reply.status, reply.ended) == (500, True)
        assert b"secret" not in reply.body
        reply = await client.get("/late")
        assert (reply.ended, reply.reset) == (False, CODES.INTERNAL_ERROR)
        assert [str(report) for report in server.reports] == ["secret"] * 2


async def test_a_cancelled_write_does_not_break_the_connection(serve_tls: ServeTls, trust: ssl.SSLContext) -> None:
    """Header compression has state: a head that is encoded and not sent would break all later ones."""

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        with trio.CancelScope() as scope_of_send:
            await send(start(200, (b"x-first", b"one"), (b"x-second", b"two")))
            if scope["path"] == "/cancelled":
                scope_of_send.cancel()
            await send(body(b"whole"))

    async with serve_tls(app) as server, connect_http2(server.port, trust) as client:
        for _ in range(3):
            await client.get("/cancelled")
            reply = await client.get("/")
            assert (reply.headers["x-first"], reply.headers["x-second"], reply.body) == ("one", "two", b"whole")


async def test_a_connection_has_no_maximum_number_of_requests(
    serve_tls: ServeTls, trust: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypercorn.config.Config.keep_alive_max_requests", 3)
    async with serve_tls(Echo()) as server, connect_http2(server.port, trust) as client:
        for _ in range(10):
            assert (await client.get()).status == 200


async def test_a_response_to_head_has_no_body(serve_tls: ServeTls, trust: ssl.SSLContext) -> None:
    app = sending(start(200, (b"content-length", b"5")), body(b"hello"))
    async with serve_tls(app) as server, connect_http2(server.port, trust) as client:
        reply = await client.get(method="HEAD")
        assert (reply.headers["content-length"], reply.body, reply.ended) == ("5", b"", True)


async def test_a_response_before_the_end_of_the_request_stops_the_client(
    serve_tls: ServeTls, trust: ssl.SSLContext
) -> None:
    async with serve_tls(sending(start(413), body(b"no"))) as server, connect_http2(server.port, trust) as client:
        number = await client.ask(method="POST", end=False)
        reply = await client.reply(number)
        assert (reply.status, reply.body, reply.ended) == (413, b"no", True)
        while reply.reset is None:
            await client.change()
        assert reply.reset == CODES.NO_ERROR
        assert (await client.get()).status == 413


@pytest.mark.parametrize("body_follows", [True, False])
async def test_100_is_sent_once_and_only_when_the_body_is_wanted(
    body_follows: bool, serve_tls: ServeTls, trust: ssl.SSLContext
) -> None:
    app = Echo()
    async with serve_tls(app) as server, connect_http2(server.port, trust) as client:
        expects = [("expect", "100-Continue")]
        if body_follows:
            number = await client.ask(method="POST", extra=expects, end=False)
            with trio.fail_after(5):
                while not client.replies[number].interim:
                    await client.change()
            await client.send(number, b"bo")
            await client.send(number, b"dy", end=True)
            reply = await client.reply(number)
        else:
            reply = await client.get(extra=expects)
        assert (reply.status, reply.body, reply.ended) == (200, b"body" if body_follows else b"", True)
        assert reply.interim == ["100"] * body_follows
    assert server.reports == []


async def test_there_is_no_100_when_the_body_has_begun(serve_tls: ServeTls, trust: ssl.SSLContext) -> None:
    gate = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        await gate.wait()
        await respond(send, await read_all(receive))

    async with serve_tls(app) as server, connect_http2(server.port, trust) as client:
        number = await client.ask(method="POST", extra=[("expect", "100-continue")], end=False)
        await client.send(number, b"bo")
        await wait_all_tasks_blocked(0.02)
        gate.set()
        await wait_all_tasks_blocked(0.02)
        await client.send(number, b"dy", end=True)
        reply = await client.reply(number)
        assert (reply.body, reply.interim) == (b"body", [])


async def test_an_error_response_is_sent_at_once_and_without_100(serve_tls: ServeTls, trust: ssl.SSLContext) -> None:
    async with serve_tls(sending(start(401), body(b"no"))) as server, connect_http2(server.port, trust) as client:
        number = await client.ask(method="POST", extra=[("expect", "100-continue")], end=False)
        with trio.fail_after(5):
            reply = await client.reply(number)
        assert (reply.status, reply.body, reply.interim) == (401, b"no", [])


async def test_a_silent_body_times_out(serve_tls: ServeTls, trust: ssl.SSLContext, autojump_clock: MockClock) -> None:
    app = Echo()
    async with serve_tls(app, body_idle_timeout=60) as server, connect_http2(server.port, trust) as client:
        number = await client.ask(method="POST", end=False)
        began = trio.current_time()
        reply = await client.reply(number)
        assert (reply.status, reply.body) == (408, b"The body of the request did not arrive in time.\n")
        assert trio.current_time() - began == pytest.approx(60, abs=1)
        assert app.truncated == 1


async def test_waiting_for_a_disconnect_has_no_timeout(
    serve_tls: ServeTls, trust: ssl.SSLContext, autojump_clock: MockClock
) -> None:
    app = Hold()
    async with serve_tls(app, body_idle_timeout=60) as server, connect_http2(server.port, trust) as client:
        number = await client.ask()
        await trio.sleep(1000)
        app.release.set()
        assert (await client.reply(number)).body == b"released"


async def test_an_idle_connection_is_closed(
    serve_tls: ServeTls, trust: ssl.SSLContext, autojump_clock: MockClock
) -> None:
    async with serve_tls(Echo(), keep_alive_timeout=75) as server, connect_http2(server.port, trust) as client:
        await trio.sleep(50)
        await client.get()
        began = trio.current_time()
        with trio.fail_after(100):
            while not client.closed:
                await client.change()
        assert trio.current_time() - began == pytest.approx(75, abs=1)
        assert client.goaway == CODES.NO_ERROR
