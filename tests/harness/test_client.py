"""The HTTP client of the tests must not report incomplete responses as complete."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio

from tests.harness.client import exchange

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


async def test_a_complete_response_is_parsed(serve: Serve) -> None:
    async with serve(b"HTTP/1.1 201 Created\r\nX-A: 1\r\nContent-Length: 2\r\n\r\n{}") as url:
        response = await exchange(url, "POST", "/", body=b"")
    assert (response.status, response.header("x-a"), response.json(), response.complete) == (201, "1", {}, True)


async def test_a_truncated_body_is_kept_and_marked_incomplete(serve: Serve) -> None:
    async with serve(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n") as url:
        response = await exchange(url, "GET", "/")
    assert (response.body, response.complete) == (b"{}", False)


async def test_no_response_raises(serve: Serve) -> None:
    async with serve(b"") as url:
        with pytest.raises(ConnectionResetError):
            await exchange(url, "GET", "/")
