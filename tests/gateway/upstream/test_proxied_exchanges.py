from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from llm_proxy.gateway.upstream.connector import Origin, Timeouts
from llm_proxy.gateway.upstream.failures import ConnectFailed, ConnectTimeout, Disconnected, HeaderTimeout, ReadTimeout
from llm_proxy.gateway.upstream.outbound_proxy import OutboundProxy
from llm_proxy.gateway.upstream.pool import UpstreamPool
from llm_proxy.gateway.upstream.request import Dispatch
from tests.gateway.upstream.conftest import Authority
from tests.gateway.upstream.proxied import WAYS, Way, outbound_proxy
from tests.gateway.upstream.stage import (
    HEADERS,
    OK,
    PATIENT,
    Body,
    Endless,
    Peer,
    answering,
    ask,
    client_sockets,
    counts,
    settled,
    stage,
    whole,
)
from tests.gateway.upstream.test_upstream_cancellation import Upload, is_cancelled_at, slow

TIMEOUTS = Timeouts(connect=3, response_header=30, read=10)


@pytest.mark.parametrize("way", WAYS)
async def test_a_request_arrives_unchanged(open_scene: Any, way: Way) -> None:
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
            if way.startswith("forwarded"):
                assert asked.target == b"http://localhost:%d" % scene.upstream.origin.port + target
                seen.remove((b"Proxy-Authorization", b"Basic dXM6cHc="))
            else:
                assert asked.target == target
            # Nothing was added.
            assert seen == [(b"Host", scene.upstream.origin.authority), *HEADERS]
        assert scene.sockets == 1
        scene.pool.close()
        assert scene.sockets == 0


@pytest.mark.parametrize("way", ["tunnelled", "tunnelled over TLS"])
async def test_only_the_request_for_a_tunnel_has_the_credentials(open_scene: Any, way: Way) -> None:
    async with open_scene(way, answering(OK)) as scene:
        await ask(scene.pool)
        [head] = scene.proxy.heads
        authority = b"localhost:%d" % scene.upstream.origin.port
        assert head == (
            b"CONNECT " + authority + b" HTTP/1.1\r\nHost: " + authority + b"\r\n"
            b"Proxy-Authorization: Basic dXM6cHc=\r\n\r\n"
        )
        assert scene.upstream.asked[0].values(b"proxy-authorization") == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make_body", [lambda: b"x", lambda: Upload(None)], ids=["small", "chunked"])
async def test_a_request_cancelled_at_any_checkpoint_releases_its_socket(
    open_scene: Any, way: Way, make_body: Any
) -> None:
    async with open_scene(way, slow) as scene:
        await ask(scene.pool)
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
        await settled()
        assert trio.lowlevel.current_statistics().tasks_living == before


@pytest.mark.parametrize("way", WAYS)
async def test_an_idle_connection_is_closed_when_the_peer_closes_it(open_scene: Any, way: Way) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await over.wait()
        peer.close()

    over = trio.Event()
    async with open_scene(way, handler) as scene:
        assert await ask(scene.pool) == b"ok"
        assert counts(scene.pool) == "1 idle, 0 in use"
        over.set()
        await settled()
        assert counts(scene.pool) == "0 idle, 0 in use"
        assert scene.sockets == 0
        assert await ask(scene.pool) == b"ok"
        assert len(scene.upstream.peers) == 2


@pytest.mark.parametrize("way", WAYS)
async def test_a_safe_request_on_a_closing_connection_is_sent_again(open_scene: Any, way: Way) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        if await peer.request() and len(scene.upstream.peers) > 1:
            await peer.send(OK)

    async with open_scene(way, handler) as scene:
        assert await ask(scene.pool) == b"ok"
        assert await whole(await scene.pool.send(b"GET", b"/", [], None)) == b"ok"
        assert len(scene.upstream.peers) == 2


@pytest.mark.parametrize("way", WAYS)
async def test_an_unrequested_response_makes_the_connection_unusable(open_scene: Any, way: Way) -> None:
    async with open_scene(way, answering(b"HTTP/1.1 204 No\r\n\r\n" + OK)) as scene:
        assert await ask(scene.pool) == b""
        assert counts(scene.pool) == "0 idle, 0 in use"


@pytest.mark.parametrize("way", WAYS)
async def test_a_response_closed_early_closes_its_connection(open_scene: Any, way: Way) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await trio.sleep_forever()

    async with open_scene(way, handler) as scene:
        for read in (True, False):
            response = await scene.pool.send(b"GET", b"/", [], None)
            if read:
                assert await response.receive() == b"half"
            response.close()
            assert scene.sockets == 0
            assert counts(scene.pool) == "0 idle, 0 in use"
            with pytest.raises(trio.ClosedResourceError):
                await response.receive()


@pytest.mark.parametrize("way", ["tunnelled", "tunnelled over TLS"])
async def test_a_tls_stream_without_close_notify_is_not_a_clean_end(open_scene: Any, way: Way) -> None:
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


@pytest.mark.parametrize("way", WAYS)
async def test_an_upload_that_the_upstream_does_not_read_is_answered(open_scene: Any, way: Way) -> None:
    async def handler(peer: Peer) -> None:
        await peer.head()
        for _ in range(20):
            await settled()
        await peer.send(b"HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\nno")
        await trio.sleep_forever()

    async with open_scene(way, handler) as scene:
        body = Endless()
        response = await scene.pool.send(b"POST", b"/", HEADERS, body)
        assert (response.status, await whole(response)) == (413, b"no")
        assert body.closed
        assert counts(scene.pool) == "0 idle, 0 in use"


@pytest.mark.parametrize("way", WAYS)
async def test_a_large_body_arrives_whole_if_the_upstream_reads_slowly(open_scene: Any, way: Way) -> None:
    size = 8_500_000

    async def handler(peer: Peer) -> None:
        received = len((await peer.head()).partition(b"\r\n\r\n")[2])
        await settled()
        while received < size:
            received += len(await peer.stream.receive_some(65536))
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"y" * size)
        await trio.sleep_forever()

    async with open_scene(way, handler) as scene:
        response = await scene.pool.send(b"POST", b"/", HEADERS, b"x" * size)
        assert await whole(response) == b"y" * size
        assert counts(scene.pool) == "1 idle, 0 in use"


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
        (b"HTTP/1.1 407 pw\r\nContent-Length: 0\r\n\r\n", "the proxy answered 407 Proxy Authentication Required$"),
        (b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\r\n", "403 Forbidden$"),
        (b"HTTP/1.1 499 pw\r\n\r\n", "the proxy answered 499$"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "malformed$"),
        (b"nonsense", "malformed$"),
        (b"", "the proxy closed the connection$"),
    ],
)
async def test_a_refusal_of_the_proxy_is_a_failure_to_connect(authority: Authority, refusal: bytes, words: str) -> None:
    async with stage(answering(OK)) as upstream, outbound_proxy(upstream, refusal=refusal) as running:
        origin = Origin("https", "api.example", 443)
        proxy = OutboundProxy("http", "127.0.0.1", running.port, (b"us", b"pw"))
        pool = UpstreamPool(origin, PATIENT, proxy=proxy, ssl_context=authority.client())
        await connect_failure(pool, words)
        assert client_sockets(Origin("http", "127.0.0.1", running.port)) == 0


async def test_a_proxy_that_does_not_listen_is_a_failure_to_connect() -> None:
    proxy = OutboundProxy("http", "127.0.0.1", 1, (b"us", b"pw"))
    pool = UpstreamPool(Origin("http", "api.example", 80), PATIENT, proxy=proxy)
    await connect_failure(pool, "api.example:80 through http://127.0.0.1:1: connection refused")


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_an_untrusted_certificate_is_a_failure_to_connect(
    authority: Authority, tmp_path: Path, scheme: Any
) -> None:
    context = authority.server(tmp_path, "localhost")
    outer = context if scheme == "https" else None
    async with (
        stage(answering(OK), context, "localhost") as upstream,
        outbound_proxy(upstream, context=outer) as running,
    ):
        proxy = OutboundProxy(scheme, "localhost", running.port, None)
        await connect_failure(UpstreamPool(upstream.origin, PATIENT, proxy=proxy), "TLS: .*cert")
        assert client_sockets(Origin("http", "localhost", running.port)) == 0
        assert upstream.asked == []


async def test_the_name_in_the_certificate_behind_two_layers_of_tls_is_checked(
    authority: Authority, tmp_path: Path
) -> None:
    context = authority.server(tmp_path, "other.example")
    outer = authority.server(tmp_path, "localhost")
    async with (
        stage(answering(OK), context, "localhost") as upstream,
        outbound_proxy(upstream, context=outer) as running,
    ):
        proxy = OutboundProxy("https", "localhost", running.port, None)
        pool = UpstreamPool(upstream.origin, PATIENT, proxy=proxy, ssl_context=authority.client())
        await connect_failure(pool, "TLS: .*localhost")
        assert upstream.asked == []


async def passes(clock: MockClock, seconds: float) -> None:
    await settled()
    clock.jump(seconds)


async def test_a_silent_proxy_is_a_connect_timeout(mock_clock: MockClock) -> None:
    async def mute(peer: Peer) -> None:
        await peer.head()
        await passes(mock_clock, 3)
        await trio.sleep_forever()

    async with stage(mute) as listening:
        origin = Origin("https", "api.example", 443)
        proxy = OutboundProxy("http", "127.0.0.1", listening.origin.port, None)
        pool = UpstreamPool(origin, TIMEOUTS, proxy=proxy, ssl_context=ssl.create_default_context())
        with pytest.raises(ConnectTimeout, match=r"through http://127\.0\.0\.1:[0-9]+ within 3 s"):
            await ask(pool)
        assert client_sockets(listening.origin) == 0


@pytest.mark.parametrize("way", WAYS)
async def test_a_late_response_is_a_header_timeout(open_scene: Any, mock_clock: MockClock, way: Way) -> None:
    async def mute(peer: Peer) -> None:
        await peer.request()
        await passes(mock_clock, 30)
        await trio.sleep_forever()

    async with open_scene(way, mute, TIMEOUTS) as scene:
        with pytest.raises(HeaderTimeout, match="within 30 s") as caught:
            await ask(scene.pool, b"x")
        assert caught.value.sent
        assert scene.sockets == 0


@pytest.mark.parametrize("way", WAYS)
async def test_a_body_that_stalls_is_a_read_timeout(open_scene: Any, mock_clock: MockClock, way: Way) -> None:
    async def stalling(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await read.wait()
        await passes(mock_clock, 10)
        await trio.sleep_forever()

    read = trio.Event()
    async with open_scene(way, stalling, TIMEOUTS) as scene:
        response = await scene.pool.send(b"GET", b"/", [], None)
        assert await response.receive() == b"half"
        read.set()
        with pytest.raises(ReadTimeout) as caught:
            await response.receive()
        assert caught.value.waiting_for == "upstream"
        assert scene.sockets == 0
