from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio

from benchmarks.processes import Upstream
from tests.harness.client import connect, encode, exchange

#: Makes a server that answers each connection with fixed bytes and closes, and says its URL.
Serve = Callable[[bytes], AbstractAsyncContextManager[str]]


@pytest.fixture
def serve() -> Serve:
    @asynccontextmanager
    async def serve(answer: bytes) -> AsyncGenerator[str]:
        async def handler(stream: trio.SocketStream) -> None:
            await stream.receive_some()
            await stream.send_all(answer)

        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, handler, 0)
            yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            nursery.cancel_scope.cancel()

    return serve


async def test_a_whole_response(serve: Serve) -> None:
    async with serve(b"HTTP/1.1 201 Created\r\nX-A: 1\r\nContent-Length: 2\r\n\r\n{}") as url:
        response = await exchange(url, "POST", "/", body=b"")
    assert (response.status, response.header("x-a"), response.json(), response.complete) == (201, "1", {}, True)


async def test_a_body_that_was_cut_short_is_kept_and_marked(serve: Serve) -> None:
    async with serve(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n") as url:
        response = await exchange(url, "GET", "/")
    assert (response.body, response.complete) == (b"{}", False)


async def test_no_response_at_all(serve: Serve) -> None:
    async with serve(b"") as url:
        with pytest.raises(ConnectionResetError):
            await exchange(url, "GET", "/")


async def test_interim_responses_are_skipped(serve: Serve) -> None:
    async with serve(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n") as url:
        assert (await exchange(url, "GET", "/")).status == 204


async def test_requests_follow_each_other_on_a_connection(upstream: Upstream) -> None:
    async with connect(upstream.url) as connection:
        for _ in range(3):
            await connection.request("GET", "/v1/models")
            assert (await connection.response()).status == 401
    assert upstream.counts()["requests"] == 3


async def test_pipelined_requests_are_answered_in_turn(upstream: Upstream) -> None:
    async with connect(upstream.url) as connection:
        await connection.send(encode("GET", "/v1/models") + encode("GET", "/v1/nowhere"))
        assert [(await connection.response()).status for _ in range(2)] == [401, 401]


def test_a_request_keeps_the_framing_that_it_was_given() -> None:
    assert encode("POST", "/x", [("transfer-encoding", "chunked")], b"0\r\n\r\n") == (
        b"POST /x HTTP/1.1\r\nHost: proxy\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    )
    assert encode("POST", "/x", body=b"{}").endswith(b"\r\nContent-Length: 2\r\n\r\n{}")
