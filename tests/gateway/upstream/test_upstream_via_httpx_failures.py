from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from llm_proxy.gateway.upstream import (
    ConnectFailed,
    ConnectTimeout,
    Disconnected,
    Dispatch,
    HeaderTimeout,
    IdleTimeout,
    Origin,
    Timeouts,
    UnexpectedUpgrade,
    UpstreamPool,
)
from llm_proxy.gateway.upstream.outbound import OutboundProxy
from llm_proxy.gateway.upstream.via_httpx import HttpxConnector
from tests.gateway.upstream.conftest import Authority
from tests.gateway.upstream.gateway import gateway
from tests.gateway.upstream.stage import (
    HEADERS,
    OK,
    PATIENT,
    Body,
    Peer,
    answering,
    ask,
    client_sockets,
    counts,
    settled,
    stage,
)


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


async def test_a_tls_stream_cut_off_is_no_clean_end(open_scene: Any) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        peer.close()

    async with open_scene("tunnelled", handler) as scene:
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
        connector = HttpxConnector(origin, PATIENT, proxy=proxy, ssl_context=authority.client())
        await connect_failure(UpstreamPool(origin, PATIENT, connect=connector.connect), words)
        assert client_sockets(Origin("http", "127.0.0.1", running.port)) == 0


async def test_a_proxy_that_is_not_there() -> None:
    proxy = OutboundProxy("http", "127.0.0.1", 1, None)
    connector = HttpxConnector(Origin("http", "api.example", 80), PATIENT, proxy=proxy)
    pool = UpstreamPool(Origin("http", "api.example", 80), PATIENT, connect=connector.connect)
    await connect_failure(pool, "api.example:80 through http://127.0.0.1:1: connection refused")


async def test_a_certificate_that_is_not_trusted_behind_the_proxy(authority: Authority, tmp_path: Path) -> None:
    context = authority.server(tmp_path, "localhost")
    async with stage(answering(OK), context, "localhost") as upstream, gateway(upstream) as running:
        proxy = OutboundProxy("http", "127.0.0.1", running.port, None)
        connector = HttpxConnector(upstream.origin, PATIENT, proxy=proxy)
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
        connector = HttpxConnector(origin, timeouts, proxy=proxy, ssl_context=ssl.create_default_context())
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
        started = trio.current_time()
        with pytest.raises(HeaderTimeout, match="within 30 s") as caught:
            await ask(scene.pool, b"x")
        assert trio.current_time() - started == pytest.approx(30)
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
