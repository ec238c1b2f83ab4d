"""Thirteen faults of an upstream: each has its error, none is a clean end, and no socket stays open."""

from __future__ import annotations

import gzip
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from attrs import frozen
from trio.testing import MockClock

from llm_proxy.gateway.upstream.connector import Origin, Timeouts
from llm_proxy.gateway.upstream.failures import (
    ConnectFailed,
    Disconnected,
    HeaderTimeout,
    MalformedResponse,
    ReadTimeout,
    UnexpectedUpgrade,
    UpstreamFailure,
)
from llm_proxy.gateway.upstream.pool import UpstreamPool
from tests.gateway.upstream.stage import PATIENT, Handler, Peer, ask, client_sockets, counts, settled, stage

OK = b"HTTP/1.1 200 OK\r\n"


def saying(*pieces: bytes, then: Callable[[Peer], Awaitable[None]] | None = None) -> Handler:
    """Read a request, send something, and close."""

    async def handler(peer: Peer) -> None:
        await peer.request()
        for piece in pieces:
            await peer.send(piece)
            await settled()
        if then is not None:
            await then(peer)

    return handler


async def reset(peer: Peer) -> None:
    peer.reset()


async def stay(peer: Peer) -> None:
    await trio.sleep_forever()


async def endless_head(peer: Peer) -> None:
    for _ in range(10):
        await peer.send(b"X-Filler: " + b"a" * 1_000_000 + b"\r\n")


@frozen
class Fault:
    name: str
    handler: Handler
    failure: type[UpstreamFailure]
    seen: bytes | None = None  #: content that is handed on before the failure; None if not even a head is


CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

FAULTS = [
    Fault("reset before an answer", saying(then=reset), Disconnected),
    Fault("closed before an answer", saying(), Disconnected),
    Fault("reset in the head", saying(OK, then=reset), Disconnected),
    Fault("reset in the body", saying(OK + b"Content-Length: 9\r\n\r\nhalf", then=reset), Disconnected, b"half"),
    Fault("reset in an event stream", saying(CHUNKED, b"6\r\ndata: \r\n", then=reset), Disconnected, b"data: "),
    Fault("reset in a body without length", saying(OK + b"\r\n", b"half", then=reset), Disconnected, b"half"),
    Fault("101", saying(b"HTTP/1.1 101 Switching Protocols\r\n\r\n", then=stay), UnexpectedUpgrade),
    Fault("bad chunk", saying(CHUNKED + b"4\r\ngood\r\n", b"xyz\r\n", then=stay), MalformedResponse, b"good"),
    Fault("no last chunk", saying(CHUNKED, b"4\r\ngood\r\n"), Disconnected, b"good"),
    Fault("less than announced", saying(OK + b"Content-Length: 9\r\n\r\n", b"half"), Disconnected, b"half"),
    Fault("more than announced", saying(OK + b"Content-Length: 4\r\n\r\nhalf of it", then=stay), MalformedResponse),
    Fault("more, later", saying(OK + b"Content-Length: 4\r\n\r\nha", b"lf of it", then=stay), MalformedResponse, b"ha"),
    Fault("field injected by LF", saying(OK + b"X: a\nSet-Cookie: b\r\n\r\n", then=stay), MalformedResponse),
    Fault("field injected by CR", saying(OK + b"X: a\rSet-Cookie: b\r\n\r\n", then=stay), MalformedResponse),
    Fault("10 MB of head", saying(OK, then=endless_head), MalformedResponse),
    Fault("one field of 10 MB", saying(OK + b"X: ", b"a" * 10_000_000, then=stay), MalformedResponse),
    Fault("another protocol", saying(b"220 mail.example ESMTP\r\n", then=stay), MalformedResponse),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_each_fault_has_its_error_and_closes_the_connection(fault: Fault) -> None:
    async with stage(fault.handler) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        seen = None

        async def exchange() -> None:
            nonlocal seen
            headers = [(b"Authorization", b"Bearer secret-key")]
            response = await pool.send(b"POST", b"/secret-path", headers, b"secret-body")
            seen = b""
            while piece := await response.receive():
                seen += piece

        with pytest.raises(UpstreamFailure) as caught:
            await exchange()
        assert type(caught.value) is fault.failure
        assert caught.value.sent
        assert "secret" not in str(caught.value)
        assert seen == fault.seen
        assert counts(pool) == "0 idle, 0 in use"
        assert client_sockets(upstream.origin) == 0


async def test_an_upstream_that_hangs_is_a_timeout(mock_clock: MockClock) -> None:
    async def hang(peer: Peer) -> None:
        await peer.request()
        await settled()
        mock_clock.jump(60)
        await trio.sleep_forever()

    async with stage(hang) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        with pytest.raises(HeaderTimeout):
            await ask(pool)
        assert counts(pool) == "0 idle, 0 in use"
        assert client_sockets(upstream.origin) == 0


async def test_an_upstream_at_one_byte_per_second_is_a_timeout(mock_clock: MockClock) -> None:
    async def drip(peer: Peer) -> None:
        await peer.request()
        for byte in OK + b"Content-Length: 9\r\n\r\n" + b"x" * 8:
            await peer.send(bytes([byte]))
            await settled()
            mock_clock.jump(1)
        await settled()
        mock_clock.jump(10)
        await trio.sleep_forever()

    async with stage(drip) as upstream:
        pool = UpstreamPool(upstream.origin, Timeouts(connect=1, response_header=20, read=10))
        with pytest.raises(HeaderTimeout):
            await ask(pool)
        pool = UpstreamPool(upstream.origin, Timeouts(connect=1, response_header=60, read=10))
        with pytest.raises(ReadTimeout):
            await ask(pool)
        assert counts(pool) == "0 idle, 0 in use"
        await settled()
        assert client_sockets(upstream.origin) == 0


async def test_a_refused_connection_is_a_failure_to_connect() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        origin = Origin("http", "127.0.0.1", unused.getsockname()[1])
        pool = UpstreamPool(origin, PATIENT)
        with pytest.raises(ConnectFailed, match=r"cannot connect to 127\.0\.0\.1:\d+: connection refused") as caught:
            await ask(pool)
        assert not caught.value.sent
        assert counts(pool) == "0 idle, 0 in use"


async def test_an_unknown_name_is_a_failure_to_connect() -> None:
    class Unknown(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *_: Any, **__: Any) -> Any:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        async def getnameinfo(self, *_: Any) -> Any:
            raise NotImplementedError

    trio.socket.set_custom_hostname_resolver(Unknown())
    pool = UpstreamPool(Origin("http", "nowhere.example", 80), PATIENT)
    with pytest.raises(ConnectFailed, match=r"nowhere\.example:80: name or service not known") as caught:
        await ask(pool)
    assert not caught.value.sent
    assert counts(pool) == "0 idle, 0 in use"


@pytest.mark.parametrize("host", ["x" * 64 + ".example", "a..example"])
async def test_an_invalid_name_is_a_failure_to_connect(host: str) -> None:
    pool = UpstreamPool(Origin("http", host, 80), PATIENT)
    with pytest.raises(ConnectFailed):
        await ask(pool)
    assert counts(pool) == "0 idle, 0 in use"


async def test_a_gzip_bomb_is_forwarded_without_decoding() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    head = OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    async with stage(saying(head + bomb, then=stay)) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        assert await ask(pool) == bomb
        assert counts(pool) == "1 idle, 0 in use"
        pool.close()
