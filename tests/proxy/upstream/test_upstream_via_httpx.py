from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import trio
from trio.testing import MockClock

from llm_proxy.proxy.upstream import (
    ConnectFailed,
    ConnectTimeout,
    Disconnected,
    Dispatch,
    HeaderTimeout,
    IdleTimeout,
    MalformedResponse,
    Origin,
    Timeouts,
    UnexpectedUpgrade,
    UpstreamFailure,
    UpstreamPool,
)
from llm_proxy.proxy.upstream.outbound import OutboundProxy
from llm_proxy.proxy.upstream.via_httpx import HttpxConnector
from tests.proxy.upstream.conftest import Authority
from tests.proxy.upstream.framing_rows import ROWS, Row, Seen
from tests.proxy.upstream.gateway import Gateway, gateway, over_http2
from tests.proxy.upstream.stage import (
    HEADERS,
    OK,
    PATIENT,
    Body,
    Handler,
    Peer,
    Stage,
    answering,
    ask,
    client_sockets,
    counts,
    settled,
    stage,
    whole,
)
from tests.proxy.upstream.test_upstream_cancellation import Upload, is_cancelled_at, slow

Way = Literal["forwarded", "tunnelled", "tunnelled in TLS", "HTTP/2 offered"]
WAYS: list[Way] = ["forwarded", "tunnelled", "tunnelled in TLS", "HTTP/2 offered"]


class Scene:
    """An upstream, the way to it, and the sockets that lead there."""

    def __init__(self, upstream: Stage, proxy: Gateway | None, pool: UpstreamPool) -> None:
        self.upstream = upstream
        self.proxy = proxy
        self.pool = pool

    @property
    def sockets(self) -> int:
        port = self.upstream.origin.port if self.proxy is None else self.proxy.port
        return client_sockets(Origin("http", "localhost", port))


@pytest.fixture
def open_scene(authority: Authority, tmp_path: Path) -> Any:
    @asynccontextmanager
    async def open_scene(way: Way, handler: Handler, timeouts: Timeouts = PATIENT) -> AsyncIterator[Scene]:
        secure = way != "forwarded"
        context: ssl.SSLContext | None = None
        if secure:
            context = authority.server(tmp_path, "localhost")
            context.set_alpn_protocols(["http/1.1"])
        client = authority.client()
        async with stage(handler, context, "localhost") as upstream:
            if way == "HTTP/2 offered":
                connector = HttpxConnector(upstream.origin, timeouts, proxy=None, http2=True, ssl_context=client)
                pool = UpstreamPool(upstream.origin, timeouts, connect=connector.connect)
                yield Scene(upstream, None, pool)
                pool.close()
                return
            outer = authority.server(tmp_path, "localhost") if way == "tunnelled in TLS" else None
            async with gateway(upstream, context=outer) as running:
                proxy = OutboundProxy("https" if outer else "http", "localhost", running.port, (b"us", b"pw"))
                connector = HttpxConnector(upstream.origin, timeouts, proxy=proxy, http2=False, ssl_context=client)
                pool = UpstreamPool(upstream.origin, timeouts, connect=connector.connect)
                yield Scene(upstream, running, pool)
                pool.close()

    return open_scene


@pytest.mark.parametrize("way", WAYS)
async def test_a_request_arrives_as_it_was_given(open_scene: Any, way: Way) -> None:
    target = b"/v1/models/../x;y//z%2e?q=%20#"
    async with open_scene(way, answering(OK)) as scene:
        for body in (None, b"abc", b"x" * 300_000, Body([b"a", b"", b"bc"], content_length=3), Body([b"a", b"bc"])):
            response = await scene.pool.send(b"POST", target, HEADERS, body)
            assert response.headers == [(b"content-length", b"2")]
            assert await whole(response) == b"ok"
            assert counts(scene.pool) == "1 idle, 0 in use"
        assert len(scene.upstream.peers) == 1
        assert [len(asked.body) for asked in scene.upstream.asked] == [0, 3, 300_000, 3, 3]
        framing = [
            (asked.values(b"content-length"), asked.values(b"transfer-encoding")) for asked in scene.upstream.asked
        ]
        assert framing == [([b"0"], []), ([b"3"], []), ([b"300000"], []), ([b"3"], []), ([], [b"chunked"])]
        for asked in scene.upstream.asked:
            seen = [pair for pair in asked.headers if pair[0].lower() not in {b"content-length", b"transfer-encoding"}]
            if way == "forwarded":
                assert asked.target == b"http://localhost:%d" % scene.upstream.origin.port + target
                seen.remove((b"Proxy-Authorization", b"Basic dXM6cHc="))
            else:
                assert asked.target == target
            # Nothing was added.
            assert seen == [(b"Host", scene.upstream.origin.authority), *HEADERS]
        assert scene.sockets == 1
        scene.pool.close()
        assert scene.sockets == 0


async def test_a_tunnel_is_asked_for_with_the_credentials(open_scene: Any) -> None:
    async with open_scene("tunnelled", answering(OK)) as scene:
        await ask(scene.pool)
        [head] = scene.proxy.heads
        assert head.startswith(b"CONNECT localhost:%d HTTP/1.1\r\n" % scene.upstream.origin.port)
        assert b"\r\nProxy-Authorization: Basic dXM6cHc=\r\n" in head
        assert b"sk-1" not in head
        assert scene.upstream.asked[0].values(b"proxy-authorization") == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.rule)
async def test_responses_are_judged_as_on_the_direct_way(row: Row) -> None:
    async def handler(peer: Peer) -> None:
        if await peer.request():
            await peer.send(row.wire)

    async with stage(handler) as upstream:
        connector = HttpxConnector(upstream.origin, PATIENT, proxy=None, http2=True, ssl_context=None)
        pool = UpstreamPool(upstream.origin, PATIENT, connect=connector.connect)
        verdict: Seen | type[UpstreamFailure]
        try:
            response = await pool.send(row.method, b"/", [], None)
            body = await whole(response)
            verdict = Seen(response.status, body, reusable=pool.idle == 1, reason=response.reason)
        except UpstreamFailure as failure:
            verdict = type(failure)
        assert pool.in_use == 0
        assert client_sockets(upstream.origin) == pool.idle
        if isinstance(row.expected, Seen) and isinstance(verdict, type):
            # h11 may be stricter, never laxer.
            assert verdict is MalformedResponse
        elif row.rule == "9112 §9.3: HTTP/1.0 that stays":
            assert verdict == Seen(200, b"hello", reusable=False)
        elif not (row.expected is Disconnected and verdict is MalformedResponse):
            assert verdict == row.expected
        pool.close()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make_body", [lambda: b"x", lambda: Upload(None)], ids=["small", "chunked"])
async def test_cancelled_at_every_checkpoint(open_scene: Any, way: Way, make_body: Any) -> None:
    async with open_scene(way, slow) as scene:
        before = trio.lowlevel.current_statistics().tasks_living
        count = 0
        cancelled = True
        while cancelled:
            count += 1
            cancelled = await is_cancelled_at(count, lambda: ask(scene.pool, make_body()))
            assert counts(scene.pool) == ("0 idle, 0 in use" if cancelled else "1 idle, 0 in use")
            assert scene.sockets == scene.pool.idle
        assert count > 10
        assert await ask(scene.pool, b"x") == b"abcdef"
        scene.pool.close()
        await settled()
        assert trio.lowlevel.current_statistics().tasks_living <= before + 4


async def test_a_response_closed_early_ends_its_connection_at_once(open_scene: Any) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await trio.sleep_forever()

    async with open_scene("tunnelled", handler) as scene:
        for read in (True, False):
            response = await scene.pool.send(b"GET", b"/", [], None)
            if read:
                assert await response.receive() == b"half"
            response.close()
            assert scene.sockets == 0
            assert counts(scene.pool) == "0 idle, 0 in use"
            with pytest.raises(trio.ClosedResourceError):
                await response.receive()
        await settled()


@pytest.mark.parametrize("way", WAYS)
async def test_a_connection_closed_while_idle_is_not_used(open_scene: Any, way: Way) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await settled()
        peer.close()

    async with open_scene(way, handler) as scene:
        assert await ask(scene.pool) == b"ok"
        for _ in range(4):
            await settled()
        assert await ask(scene.pool) == b"ok"
        assert len(scene.upstream.peers) == 2


async def test_words_that_nobody_asked_for_spoil_the_connection(open_scene: Any) -> None:
    async with open_scene("forwarded", answering(b"HTTP/1.1 204 No\r\n\r\n" + OK)) as scene:
        assert await ask(scene.pool) == b""
        assert counts(scene.pool) == "0 idle, 0 in use"


@pytest.mark.parametrize("way", ["tunnelled", "HTTP/2 offered"])
async def test_a_tls_stream_cut_off_is_no_clean_end(open_scene: Any, way: Way) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        peer.close()

    async with open_scene(way, handler) as scene:
        response = await scene.pool.send(b"GET", b"/", [], None)
        assert await response.receive() == b"half"
        with pytest.raises(Disconnected):
            await response.receive()
        assert scene.sockets == 0
        assert counts(scene.pool) == "0 idle, 0 in use"


async def test_an_upgrade_is_refused(open_scene: Any) -> None:
    async with open_scene("tunnelled", answering(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")) as scene:
        with pytest.raises(UnexpectedUpgrade):
            await ask(scene.pool)
        assert scene.sockets == 0


async def connect_failure(pool: UpstreamPool, words: str) -> None:
    dispatch = Dispatch()
    with pytest.raises(ConnectFailed, match=words) as caught:
        await pool.send(b"GET", b"/", HEADERS, None, dispatch=dispatch)
    assert not caught.value.sent
    assert not dispatch.sent
    assert "pw" not in str(caught.value)
    assert counts(pool) == "0 idle, 0 in use"


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", "407 Proxy Auth"),
        (b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\r\n", "403 Forbidden"),
        (b"nonsense", "malformed"),
    ],
)
async def test_a_proxy_that_refuses(authority: Authority, refusal: bytes, words: str) -> None:
    async with stage(answering(OK)) as upstream, gateway(upstream, refusal=refusal) as running:
        origin = Origin("https", "api.example", 443)
        proxy = OutboundProxy("http", "127.0.0.1", running.port, (b"us", b"pw"))
        connector = HttpxConnector(origin, PATIENT, proxy=proxy, http2=False, ssl_context=authority.client())
        await connect_failure(UpstreamPool(origin, PATIENT, connect=connector.connect), words)
        assert client_sockets(Origin("http", "127.0.0.1", running.port)) == 0


async def test_a_proxy_that_is_not_there() -> None:
    proxy = OutboundProxy("http", "127.0.0.1", 1, None)
    connector = HttpxConnector(Origin("http", "api.example", 80), PATIENT, proxy=proxy, http2=False, ssl_context=None)
    pool = UpstreamPool(Origin("http", "api.example", 80), PATIENT, connect=connector.connect)
    await connect_failure(pool, "api.example:80 through http://127.0.0.1:1: connection refused")


async def test_a_certificate_that_is_not_trusted_behind_the_proxy(authority: Authority, tmp_path: Path) -> None:
    context = authority.server(tmp_path, "localhost")
    async with stage(answering(OK), context, "localhost") as upstream, gateway(upstream) as running:
        proxy = OutboundProxy("http", "127.0.0.1", running.port, None)
        connector = HttpxConnector(upstream.origin, PATIENT, proxy=proxy, http2=False, ssl_context=None)
        await connect_failure(UpstreamPool(upstream.origin, PATIENT, connect=connector.connect), "TLS: .*cert")
        assert upstream.asked == []


@pytest.mark.parametrize(("pieces", "length"), [([b"abc"], 2), ([b"abc"], 5)], ids=["too long", "too short"])
async def test_a_body_that_lies_about_its_length(open_scene: Any, pieces: list[bytes], length: int) -> None:
    async with open_scene("tunnelled", answering(OK)) as scene:
        with pytest.raises(ValueError, match="that it announced"):
            await ask(scene.pool, Body(pieces, content_length=length))
        assert scene.sockets == 0
        assert counts(scene.pool) == "0 idle, 0 in use"


async def test_an_error_of_the_callers_body(open_scene: Any) -> None:
    class Broken:
        content_length = None

        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"x"
            raise ConnectionResetError("the client's")

    async with open_scene("tunnelled", answering(OK)) as scene:
        with pytest.raises(ConnectionResetError, match="the client's"):
            await ask(scene.pool, Broken())
        assert scene.sockets == 0


async def test_what_would_be_another_request_is_not_sent(open_scene: Any) -> None:
    async with open_scene("tunnelled", answering(OK)) as scene:
        with pytest.raises(ValueError, match="line break"):
            await scene.pool.send(b"GET", b"/", [(b"X", b"a\r\nY: b")], None)
        assert scene.upstream.peers == []


async def passes(clock: MockClock, seconds: float) -> None:
    await settled()
    clock.jump(seconds)


async def test_connecting_takes_too_long(mock_clock: MockClock) -> None:
    async def mute(peer: Peer) -> None:
        await peer.head()
        await passes(mock_clock, 3)
        await trio.sleep_forever()

    timeouts = Timeouts(connect=3, response_header=30, idle=10)
    async with stage(mute) as listening:
        origin = Origin("https", "api.example", 443)
        proxy = OutboundProxy("http", "127.0.0.1", listening.origin.port, None)
        connector = HttpxConnector(origin, timeouts, proxy=proxy, http2=False, ssl_context=ssl.create_default_context())
        pool = UpstreamPool(origin, timeouts, connect=connector.connect)
        with pytest.raises(ConnectTimeout, match="within 3 s"):
            await ask(pool)
        assert client_sockets(listening.origin) == 0


async def test_the_answer_takes_too_long(open_scene: Any, mock_clock: MockClock) -> None:
    async def mute(peer: Peer) -> None:
        await peer.request()
        await passes(mock_clock, 29)
        await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await passes(mock_clock, 1)
        await trio.sleep_forever()

    async with open_scene("tunnelled", mute, Timeouts(connect=3, response_header=30, idle=10)) as scene:
        with pytest.raises(HeaderTimeout, match="within 30 s") as caught:
            await ask(scene.pool, b"x")
        assert caught.value.sent
        assert scene.sockets == 0


async def test_a_body_stalls(open_scene: Any, mock_clock: MockClock) -> None:
    async def stalling(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await passes(mock_clock, 100)
        await read.wait()
        await passes(mock_clock, 10)
        await trio.sleep_forever()

    read = trio.Event()
    async with open_scene("tunnelled", stalling, Timeouts(connect=3, response_header=30, idle=10)) as scene:
        response = await scene.pool.send(b"GET", b"/", [], None)
        await settled()
        await settled()
        assert await response.receive() == b"half"
        read.set()
        with pytest.raises(IdleTimeout) as caught:
            await response.receive()
        assert caught.value.waiting_for == "upstream"
        assert scene.sockets == 0


async def test_the_client_stalls(open_scene: Any, mock_clock: MockClock) -> None:
    class Stuck:
        content_length = 10

        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"x"
            await passes(mock_clock, 10)
            await trio.sleep_forever()

    async with open_scene("tunnelled", answering(OK), Timeouts(connect=3, response_header=30, idle=10)) as scene:
        with pytest.raises(IdleTimeout) as caught:
            await ask(scene.pool, Stuck())
        assert caught.value.waiting_for == "body"
        assert scene.sockets == 0


async def test_over_http2(authority: Authority, tmp_path: Path) -> None:
    context = authority.server(tmp_path)
    context.set_alpn_protocols(["h2"])
    async with stage(over_http2, context, "localhost") as upstream:
        connector = HttpxConnector(upstream.origin, PATIENT, proxy=None, http2=True, ssl_context=authority.client())
        pool = UpstreamPool(upstream.origin, PATIENT, connect=connector.connect)
        for body in (b"abc", Body([b"a", b"bc"]), b"x" * 200_000):
            response = await pool.send(b"POST", b"/v1/x?y", HEADERS, body)
            assert (response.status, response.reason) == (200, b"")
            assert response.headers == [(b"x-h2", b"yes")]
            said = await whole(response)
            assert said.startswith(b"POST %b https /v1/x?y Bearer sk-1" % upstream.origin.authority)
            assert said.endswith(b" %d" % (200_000 if isinstance(body, bytes) and len(body) > 3 else 3))
            assert counts(pool) == "1 idle, 0 in use"
            await settled()
        assert len(upstream.peers) == 1
        response = await pool.send(b"GET", b"/", [], None)
        response.close()
        assert client_sockets(upstream.origin) == pool.idle
        pool.close()
        assert client_sockets(upstream.origin) == 0
        await settled()
