from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from llm_proxy.gateway.upstream.connection import SMALL_BODY
from llm_proxy.gateway.upstream.pool import UpstreamPool
from llm_proxy.gateway.upstream.request import Dispatch
from tests.gateway.upstream.stage import (
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
)


@pytest.mark.parametrize("size", [0, 1, SMALL_BODY, SMALL_BODY + 1, 3_000_000])
async def test_a_body_in_memory_arrives_unchanged(size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    async with stage(answering(OK)) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        assert await ask(pool, body[:size]) == b"ok"
        [asked] = upstream.asked
        assert asked.body == body[:size]
        assert asked.values(b"content-length") == [b"%d" % size]
        assert counts(pool) == "1 idle, 0 in use"
        pool.close()


@pytest.mark.parametrize("pieces", [[], [b""], [b"a"], [b"a", b"", b"bc"], [b"x" * 100_000] * 20])
async def test_a_body_of_known_length_arrives_in_pieces(pieces: list[bytes]) -> None:
    async with stage(answering(OK)) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        for _ in range(2):
            assert await ask(pool, Body(pieces, content_length=sum(map(len, pieces)))) == b"ok"
        first, second = upstream.asked
        assert first == second
        assert first.body == b"".join(pieces)
        assert first.values(b"content-length") == [b"%d" % len(first.body)]
        assert first.values(b"transfer-encoding") == []
        assert len(upstream.peers) == 1
        pool.close()


@pytest.mark.parametrize("pieces", [[], [b""], [b"a"], [b"a", b"", b"bc"], [b"x" * 100_000] * 20])
async def test_a_body_of_unknown_length_arrives_in_chunks(pieces: list[bytes]) -> None:
    async with stage(answering(OK)) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        for _ in range(2):
            assert await ask(pool, Body(pieces)) == b"ok"
        first, second = upstream.asked
        assert first == second
        assert first.body == b"".join(pieces)
        assert first.values(b"content-length") == []
        assert first.values(b"transfer-encoding") == [b"chunked"]
        assert len(upstream.peers) == 1
        pool.close()


@pytest.mark.parametrize(
    ("pieces", "length", "words"),
    [
        ([b"abc"], 2, "longer than the 2"),
        ([b"a", b"bc"], 2, "longer than the 2"),
        ([b"abc"], 5, "2 bytes before the 5"),
        ([], 1, "1 bytes before"),
    ],
)
async def test_a_body_of_another_length_than_announced_aborts_the_request(
    pieces: list[bytes], length: int, words: str
) -> None:
    async with stage(answering(OK)) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        body = Body(pieces, content_length=length)
        with pytest.raises(ValueError, match=words):
            await ask(pool, body)
        assert body.closed
        assert counts(pool) == "0 idle, 0 in use"
        assert client_sockets(upstream.origin) == 0
        assert upstream.asked == []


async def test_a_body_is_not_read_beyond_its_announced_length() -> None:
    async with stage(answering(OK)) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        body = Body([b"ab", b"c", b"d"], content_length=3)
        assert await ask(pool, body) == b"ok"
        assert body.taken == 2
        assert body.closed
        assert upstream.asked[0].body == b"abc"
        assert counts(pool) == "1 idle, 0 in use"
        pool.close()


async def test_a_response_during_the_cleanup_of_the_body_is_not_early() -> None:
    class Tidy:
        content_length = 1

        async def __aiter__(self) -> AsyncIterator[bytes]:
            try:
                yield b"x"
            finally:
                with trio.CancelScope(shield=True):
                    await settled()

    async with stage(answering(OK)) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        assert await ask(pool, Tidy()) == b"ok"
        assert counts(pool) == "1 idle, 0 in use"
        pool.close()


async def test_an_upload_lets_other_tasks_run() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await trio.lowlevel.checkpoint()
            ticks += 1

    async with stage(answering(OK)) as upstream, trio.open_nursery() as nursery:
        pool = UpstreamPool(upstream.origin, PATIENT)
        nursery.start_soon(tick)
        assert await ask(pool, Body([b"x"] * 100)) == b"ok"
        assert ticks >= 100
        nursery.cancel_scope.cancel()
        pool.close()


class ClientGone(Exception):
    """An exception of the caller's body."""


async def test_an_error_of_the_callers_body_reaches_the_caller() -> None:
    class Broken:
        content_length = 100

        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"some"
            raise ClientGone

    async with stage(answering(OK)) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        dispatch = Dispatch()
        with pytest.raises(ClientGone):
            await pool.send(b"POST", b"/", [], Broken(), dispatch=dispatch)
        assert dispatch.sent
        assert counts(pool) == "0 idle, 0 in use"
        assert client_sockets(upstream.origin) == 0


async def test_an_os_error_of_the_callers_body_reaches_the_caller() -> None:
    class Broken:
        content_length = None

        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"some"
            raise ConnectionResetError("the client's connection, not the upstream's")

    async with stage(answering(OK)) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        with pytest.raises(ConnectionResetError, match="the client's"):
            await pool.send(b"POST", b"/", [], Broken())
        assert counts(pool) == "0 idle, 0 in use"


async def test_a_long_upload_is_not_buffered() -> None:
    gate = trio.Event()

    async def handler(peer: Peer) -> None:
        await gate.wait()

    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        body = Endless()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.send, b"POST", b"/", [], body)
            await settled()
            taken = body.taken
            await settled()
            # Only the sockets' buffers are filled; nothing more is read.
            assert taken == body.taken < 200
            nursery.cancel_scope.cancel()
        assert body.closed


async def test_a_long_response_is_not_buffered() -> None:
    sent = 0

    async def handler(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await peer.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            sent += 65536

    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        response = await pool.send(b"GET", b"/", [], None)
        await settled()
        held = sent
        await settled()
        assert sent == held
        seen = 0
        while seen < 5_000_000:
            piece = await response.receive()
            assert len(piece) <= 65536
            seen += len(piece)
        assert sent > held
        response.close()
        assert client_sockets(upstream.origin) == 0
