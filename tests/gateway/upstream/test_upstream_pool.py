from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
import trio

from llm_proxy.gateway.upstream.connector import Origin
from llm_proxy.gateway.upstream.pool import UpstreamPool
from tests.gateway.upstream.stage import (
    HEADERS,
    OK,
    PATIENT,
    Peer,
    answering,
    ask,
    client_sockets,
    counts,
    stage,
    whole,
)


async def test_a_request_arrives_unchanged_without_a_proxy() -> None:
    async with stage(answering(OK)) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        assert await ask(pool, b'{"a": 1}') == b"ok"
        [asked] = upstream.asked
        assert (asked.method, asked.target, asked.body) == (b"POST", b"/v1/x?y=%20", b'{"a": 1}')
        assert asked.headers == [
            (b"Host", upstream.origin.authority),
            *HEADERS,
            (b"Content-Length", b"8"),
        ]
        pool.close()


@pytest.mark.parametrize(
    ("method", "expected"),
    [(b"GET", []), (b"DELETE", []), (b"POST", [b"0"]), (b"PUT", [b"0"]), (b"PATCH", [b"0"])],
)
async def test_a_request_without_an_expected_body_has_content_length_zero(method: bytes, expected: list[bytes]) -> None:
    async with stage(answering(OK)) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        await whole(await pool.send(method, b"/", [], None))
        assert upstream.asked[0].values(b"content-length") == expected
        pool.close()


async def test_a_response_is_returned_unchanged() -> None:
    response = b"HTTP/1.1 418 I'm a teapot\r\nX-B: 2\r\nX-a: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
    async with stage(answering(response)) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        got = await pool.send(b"GET", b"/", [], None)
        assert (got.status, got.reason) == (418, b"I'm a teapot")
        assert got.headers == [(b"x-b", b"2"), (b"x-a", b"1"), (b"transfer-encoding", b"chunked")]
        assert await whole(got) == b"x"
        pool.close()


async def test_chunks_of_one_read_are_joined() -> None:
    response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n"
    async with stage(answering(response)) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        got = await pool.send(b"GET", b"/", [], None)
        assert await got.receive() == b"abc"
        assert await got.receive() == b""
        got.close()
        pool.close()


async def test_content_is_returned_as_it_arrives() -> None:
    more = trio.Event()

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await peer.send(b"5\r\nfirst\r\n")
        await more.wait()
        await peer.send(b"6\r\nsecond\r\n0\r\n\r\n")

    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        got = await pool.send(b"GET", b"/", [], None)
        assert await got.receive() == b"first"
        more.set()
        assert await whole(got) == b"second"
        pool.close()


async def test_ready_and_ended_describe_a_response_without_waiting() -> None:
    more = trio.Event()

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
        await more.wait()
        await peer.send(b"some")
        await trio.sleep_forever()

    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        got = await pool.send(b"GET", b"/", [], None)
        assert (got.ready, got.ended) == (False, False)
        more.set()
        assert await got.receive() == b"some"
        assert (got.ready, got.ended) == (True, True)
        got.close()
        assert counts(pool) == "1 idle, 0 in use"
        pool.close()


async def test_a_complete_response_is_ready() -> None:
    async with stage(answering(OK)) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        got = await pool.send(b"GET", b"/", [], None)
        assert got.ready
        assert await whole(got) == b"ok"
        pool.close()


async def test_a_body_ends_when_the_connection_closes() -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nall of ")
        await peer.send(b"it")
        peer.close()

    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        assert await ask(pool) == b"all of it"
        assert counts(pool) == "0 idle, 0 in use"
        assert client_sockets(upstream.origin) == 0


async def test_a_response_closed_early_closes_its_connection_at_once() -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await trio.sleep_forever()

    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        response = await pool.send(b"GET", b"/", [], None)
        assert await response.receive() == b"half"
        response.close()
        assert client_sockets(upstream.origin) == 0
        response.close()
        assert counts(pool) == "0 idle, 0 in use"
        with pytest.raises(trio.ClosedResourceError):
            await response.receive()


async def test_a_complete_response_need_not_be_read() -> None:
    async with stage(answering(OK, OK.replace(b"ok", b"no"))) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        (await pool.send(b"GET", b"/", [], None)).close()
        assert counts(pool) == "1 idle, 0 in use"
        assert await ask(pool) == b"no"
        assert len(upstream.peers) == 1
        pool.close()


async def test_a_closed_response_does_not_affect_the_next_one() -> None:
    async with stage(answering(OK)) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        first = await pool.send(b"GET", b"/", [], None)
        await whole(first)
        second = await pool.send(b"GET", b"/", [], None)
        first.close()
        assert counts(pool) == "0 idle, 1 in use"
        assert await whole(second) == b"ok"
        pool.close()


async def test_a_closed_pool_keeps_no_connection() -> None:
    async with stage(answering(OK)) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        await ask(pool)
        response = await pool.send(b"GET", b"/", [], None)
        pool.close()
        assert await whole(response) == b"ok"
        assert counts(pool) == "0 idle, 0 in use"
        assert client_sockets(upstream.origin) == 0


def test_a_pool_can_be_closed_after_its_trio_run() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as executor:

        def answer() -> socket.socket:
            peer, _ = listener.accept()
            peer.recv(65536)
            peer.sendall(OK)
            return peer

        answered = executor.submit(answer)
        pool = UpstreamPool(Origin("http", "127.0.0.1", listener.getsockname()[1]), PATIENT)
        trio.run(ask, pool)
        assert counts(pool) == "1 idle, 0 in use"
        pool.close()
        assert counts(pool) == "0 idle, 0 in use"
        with answered.result() as peer:
            assert peer.recv(1) == b""


async def test_many_concurrent_requests_are_answered() -> None:
    async with stage(answering(OK)) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT, max_idle=20)

        async def some() -> None:
            for _ in range(5):
                assert await ask(pool, b"x" * 100) == b"ok"

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(some)
        assert len(upstream.asked) == 100
        assert len(upstream.peers) <= 20
        assert counts(pool) == f"{len(upstream.peers)} idle, 0 in use"
        pool.close()
