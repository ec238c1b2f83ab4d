from __future__ import annotations

import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from llm_proxy.gateway.upstream.connector import Timeouts
from llm_proxy.gateway.upstream.failures import ConnectTimeout, HeaderTimeout, ReadTimeout
from llm_proxy.gateway.upstream.pool import UpstreamPool
from llm_proxy.gateway.upstream.request import Dispatch
from tests.gateway.upstream.conftest import Authority
from tests.gateway.upstream.stage import OK, Body, Peer, answering, ask, client_sockets, counts, settled, stage, whole

TIMEOUTS = Timeouts(connect=3, response_header=30, read=10)


async def passes(clock: MockClock, seconds: float) -> None:
    """Wait until all tasks are blocked, then advance the clock."""
    await settled()
    clock.jump(seconds)
    await settled()


class Never(trio.abc.HostnameResolver):
    async def getaddrinfo(self, *_: Any, **__: Any) -> Any:
        await trio.sleep_forever()

    async def getnameinfo(self, *_: Any) -> Any:
        raise NotImplementedError


async def test_name_resolution_counts_as_connecting(mock_clock: MockClock) -> None:
    trio.socket.set_custom_hostname_resolver(Never())
    async with stage(answering(OK), host="upstream.example") as upstream, trio.open_nursery() as nursery:
        pool = UpstreamPool(upstream.origin, TIMEOUTS)
        nursery.start_soon(passes, mock_clock, 3)
        dispatch = Dispatch()
        with pytest.raises(ConnectTimeout, match="within 3 s") as caught:
            await pool.send(b"GET", b"/", [], None, dispatch=dispatch)
        assert not caught.value.sent
        assert not dispatch.sent
        assert counts(pool) == "0 idle, 0 in use"


async def test_the_handshake_counts_as_connecting(mock_clock: MockClock, authority: Authority) -> None:
    async def mute(peer: Peer) -> None:
        await trio.sleep_forever()

    async with stage(mute) as upstream, trio.open_nursery() as nursery:
        origin = type(upstream.origin)("https", "127.0.0.1", upstream.origin.port)
        pool = UpstreamPool(origin, TIMEOUTS, ssl_context=authority.client())
        nursery.start_soon(passes, mock_clock, 3)
        with pytest.raises(ConnectTimeout) as caught:
            await pool.send(b"GET", b"/", [], None)
        assert not caught.value.sent
        assert counts(pool) == "0 idle, 0 in use"
        assert client_sockets(origin) == 0


@pytest.mark.parametrize("body", [None, b"x" * 100_000, Body([b"x"] * 3)], ids=["none", "large", "stream"])
async def test_a_missing_response_is_a_header_timeout(mock_clock: MockClock, body: Any) -> None:
    async def mute(peer: Peer) -> None:
        await peer.request()
        await trio.sleep_forever()

    async with stage(mute) as upstream, trio.open_nursery() as nursery:
        pool = UpstreamPool(upstream.origin, TIMEOUTS)
        started = trio.current_time()

        async def clockwork() -> None:
            await passes(mock_clock, 29.9)
            assert client_sockets(upstream.origin) == 1
            await passes(mock_clock, 0.1)

        nursery.start_soon(clockwork)
        with pytest.raises(HeaderTimeout, match="within 30 s") as caught:
            await pool.send(b"POST", b"/", [], body)
        assert caught.value.sent
        assert trio.current_time() - started == pytest.approx(30)
        assert counts(pool) == "0 idle, 0 in use"
        assert client_sockets(upstream.origin) == 0


async def test_interim_responses_do_not_extend_the_header_timeout(mock_clock: MockClock) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        for _ in range(10):
            await peer.send(b"HTTP/1.1 102 Processing\r\n\r\n")
            await passes(mock_clock, 4)

    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, TIMEOUTS)
        started = trio.current_time()
        with pytest.raises(HeaderTimeout):
            await pool.send(b"GET", b"/", [], None)
        assert 30 <= trio.current_time() - started < 35


async def test_a_head_sent_byte_by_byte_does_not_extend_the_header_timeout(mock_clock: MockClock) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        for i in range(len(OK)):
            await peer.send(OK[i : i + 1])
            await passes(mock_clock, 1)

    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, TIMEOUTS)
        started = trio.current_time()
        with pytest.raises(HeaderTimeout):
            await pool.send(b"GET", b"/", [], None)
        assert 30 <= trio.current_time() - started < 32


async def test_a_slow_body_does_not_time_out_while_bytes_arrive(mock_clock: MockClock) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
        for _ in range(100):
            await passes(mock_clock, 9)
            await peer.send(b"x")
        await trio.sleep_forever()

    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, TIMEOUTS)
        assert await ask(pool) == b"x" * 100
        assert trio.current_time() > 800
        pool.close()


async def test_framing_bytes_restart_the_read_timeout(mock_clock: MockClock) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for byte in b"1;abc\r\nx\r\n0\r\n\r\n":
            await passes(mock_clock, 9)
            await peer.send(bytes([byte]))
        await trio.sleep_forever()

    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, TIMEOUTS)
        assert await ask(pool) == b"x"
        pool.close()


async def test_a_body_that_stalls(mock_clock: MockClock) -> None:
    more = trio.Event()

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
        await more.wait()
        await peer.send(b"some")
        await settled()
        await peer.send(b"some")
        await trio.sleep_forever()

    async with stage(handler) as upstream, trio.open_nursery() as nursery:
        pool = UpstreamPool(upstream.origin, TIMEOUTS)
        response = await pool.send(b"GET", b"/", [], None)
        for _ in range(2):
            more.set()
            assert await response.receive() == b"some"
            # The time in which the caller does not read does not count.
            await passes(mock_clock, 1000)
        nursery.start_soon(passes, mock_clock, 10)
        with pytest.raises(ReadTimeout, match="for 10 s") as caught:
            await response.receive()
        assert caught.value.waiting_for == "upstream"
        assert counts(pool) == "0 idle, 0 in use"
        assert client_sockets(upstream.origin) == 0
        response.close()
        assert counts(pool) == "0 idle, 0 in use"


async def test_an_upstream_that_stops_reading_is_a_read_timeout(mock_clock: MockClock) -> None:
    async def handler(peer: Peer) -> None:
        await peer.head()
        await trio.sleep_forever()

    async with stage(handler) as upstream, trio.open_nursery() as nursery:
        pool = UpstreamPool(upstream.origin, TIMEOUTS)
        nursery.start_soon(passes, mock_clock, 10)
        with pytest.raises(ReadTimeout) as caught:
            await pool.send(b"POST", b"/", [], b"x" * 20_000_000)
        assert caught.value.sent
        assert caught.value.waiting_for == "upstream"
        assert counts(pool) == "0 idle, 0 in use"
        assert client_sockets(upstream.origin) == 0


async def test_a_client_that_stops_sending_is_a_read_timeout(mock_clock: MockClock) -> None:
    class Stuck:
        content_length = 10

        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"x"
            await trio.sleep_forever()

    async with stage(answering(OK)) as upstream, trio.open_nursery() as nursery:
        pool = UpstreamPool(upstream.origin, TIMEOUTS)
        nursery.start_soon(passes, mock_clock, 10)
        with pytest.raises(ReadTimeout, match="client sent nothing") as caught:
            await pool.send(b"POST", b"/", [], Stuck())
        assert caught.value.waiting_for == "body"
        assert counts(pool) == "0 idle, 0 in use"


async def test_a_slow_upload_does_not_time_out_while_bytes_are_sent(mock_clock: MockClock) -> None:
    class Slow:
        content_length = None

        async def __aiter__(self) -> AsyncIterator[bytes]:
            for _ in range(20):
                await passes(mock_clock, 9)
                yield b"x"

    async with stage(answering(OK)) as upstream:
        pool = UpstreamPool(upstream.origin, TIMEOUTS)
        assert await whole(await pool.send(b"POST", b"/", [], Slow())) == b"ok"
        assert upstream.asked[0].body == b"x" * 20
        pool.close()


async def test_interim_responses_restart_the_read_timeout_of_an_upload(mock_clock: MockClock) -> None:
    class Late:
        content_length = 1

        async def __aiter__(self) -> AsyncIterator[bytes]:
            await encouraged.wait()
            yield b"x"

    encouraged = trio.Event()

    async def handler(peer: Peer) -> None:
        for _ in range(5):
            await passes(mock_clock, 9)
            await peer.send(b"HTTP/1.1 102 Processing\r\n\r\n")
        encouraged.set()
        await peer.request()
        await peer.send(OK)
        await trio.sleep_forever()

    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, TIMEOUTS)
        assert await ask(pool, Late()) == b"ok"
        pool.close()


async def test_a_slow_upload_over_tls_does_not_time_out_while_bytes_are_sent(
    mock_clock: MockClock, authority: Authority, tmp_path: Path
) -> None:
    async def handler(peer: Peer) -> None:
        left = 30_000_000
        while left > 0:
            await passes(mock_clock, 1)
            for _ in range(125):
                left -= len(await peer.stream.receive_some(65536))
                if left <= 0:
                    break
        await peer.send(OK)
        await trio.sleep_forever()

    async with stage(handler, authority.server(tmp_path), "localhost") as upstream:
        pool = UpstreamPool(upstream.origin, TIMEOUTS, ssl_context=authority.client())
        assert await whole(await pool.send(b"POST", b"/", [], b"x" * 30_000_000)) == b"ok"
        assert trio.current_time() > 14
        pool.close()


async def test_the_header_timeout_starts_when_the_request_was_sent(mock_clock: MockClock) -> None:
    class Slow:
        content_length = None

        async def __aiter__(self) -> AsyncIterator[bytes]:
            for _ in range(5):
                await passes(mock_clock, 9)
                yield b"x"

    async def handler(peer: Peer) -> None:
        await peer.request()
        await passes(mock_clock, 29)
        await peer.send(OK)
        await trio.sleep_forever()

    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, TIMEOUTS)
        assert await whole(await pool.send(b"POST", b"/", [], Slow())) == b"ok"
        assert trio.current_time() > 70
        pool.close()


async def test_no_timeout_continues_after_its_exchange(mock_clock: MockClock) -> None:
    async with stage(answering(OK)) as upstream:
        pool = UpstreamPool(upstream.origin, TIMEOUTS)
        for body in (None, b"x" * 100_000, Body([b"x"])):
            response = await pool.send(b"POST", b"/", [], body)
            mock_clock.jump(49)
            await settled()
            assert await whole(response) == b"ok"
        await passes(mock_clock, 40)
        assert counts(pool) == "1 idle, 0 in use"
        assert client_sockets(upstream.origin) == 1
        pool.close()


async def test_an_infinite_timeout_never_expires(mock_clock: MockClock) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await passes(mock_clock, 1e6)
        await peer.send(OK)
        await trio.sleep_forever()

    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, Timeouts(math.inf, math.inf, math.inf))
        assert await ask(pool) == b"ok"
        pool.close()
