"""An upstream that answers before it has read all of a request's body."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from llm_proxy.gateway.upstream.failures import Disconnected, MalformedResponse
from llm_proxy.gateway.upstream.pool import UpstreamPool
from tests.gateway.upstream.stage import (
    OK,
    PATIENT,
    Body,
    Endless,
    Peer,
    ask,
    client_sockets,
    counts,
    settled,
    stage,
    whole,
)

TOO_LARGE = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig"


async def test_an_early_response_stops_sending() -> None:
    async def handler(peer: Peer) -> None:
        await peer.head()
        await peer.send(TOO_LARGE)
        await trio.sleep_forever()

    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        body = Endless()
        response = await pool.send(b"POST", b"/", [], body)
        taken = body.taken
        assert response.status == 413
        assert body.closed
        assert await response.receive() == b"big"
        assert await response.receive() == b""
        assert body.taken == taken
        response.close()
        assert counts(pool) == "0 idle, 0 in use"
        assert client_sockets(upstream.origin) == 0


async def test_an_early_response_on_a_reused_connection_closes_it() -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.head()
        await peer.send(TOO_LARGE)
        await trio.sleep_forever()

    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        assert await ask(pool) == b"ok"
        assert await ask(pool, Endless()) == b"big"
        assert len(upstream.peers) == 1
        assert counts(pool) == "0 idle, 0 in use"
        assert client_sockets(upstream.origin) == 0


async def test_after_a_failed_write_the_response_is_still_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object) -> int:
        raise BrokenPipeError

    async def handler(peer: Peer) -> None:
        await peer.head()
        await settled()
        await peer.send(TOO_LARGE)
        await trio.sleep_forever()

    monkeypatch.setattr("llm_proxy.net.client_socket.ClientSocket.send", refuse)
    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        assert await ask(pool, Body([b"x"])) == b"big"
        assert counts(pool) == "0 idle, 0 in use"


async def test_an_early_response_stops_waiting_for_the_client() -> None:
    class Stuck:
        content_length = 10

        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"x"
            await trio.sleep_forever()

    async def handler(peer: Peer) -> None:
        await peer.head()
        await peer.send(TOO_LARGE)
        await trio.sleep_forever()

    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        assert await whole(await pool.send(b"POST", b"/", [], Stuck())) == b"big"
        assert counts(pool) == "0 idle, 0 in use"


async def test_an_early_response_to_a_large_body_in_memory_is_delivered() -> None:
    async def handler(peer: Peer) -> None:
        await peer.head()
        await peer.send(TOO_LARGE)
        await trio.sleep_forever()

    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        assert await whole(await pool.send(b"POST", b"/", [], b"x" * 20_000_000)) == b"big"
        assert counts(pool) == "0 idle, 0 in use"


@pytest.mark.parametrize("body", [Endless(), b"x" * 20_000_000], ids=["stream", "bytes"])
async def test_an_early_response_is_delivered_if_the_upstream_then_closes(body: Endless | bytes) -> None:
    async def handler(peer: Peer) -> None:
        await peer.head()
        await peer.send(TOO_LARGE)
        peer.close()

    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        response = await pool.send(b"POST", b"/", [], body)
        assert response.status == 413
        response.close()
        assert counts(pool) == "0 idle, 0 in use"


@pytest.mark.parametrize("body", [Endless(), b"x" * 20_000_000], ids=["stream", "bytes"])
async def test_an_upstream_that_closes_during_a_body_is_disconnected(body: Endless | bytes) -> None:
    async def handler(peer: Peer) -> None:
        await peer.head()
        peer.close()

    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        with pytest.raises(Disconnected) as caught:
            await pool.send(b"POST", b"/", [], body)
        assert caught.value.sent
        assert counts(pool) == "0 idle, 0 in use"
        assert client_sockets(upstream.origin) == 0


async def test_an_invalid_response_to_a_body_is_malformed() -> None:
    async def handler(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"nonsense")
        await trio.sleep_forever()

    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        body = Endless()
        with pytest.raises(MalformedResponse):
            await pool.send(b"POST", b"/", [], body)
        assert body.closed
        assert counts(pool) == "0 idle, 0 in use"


async def test_interim_responses_do_not_stop_sending() -> None:
    async def handler(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await peer.request()
        await peer.send(b"HTTP/1.1 102 Processing\r\n\r\n" + OK)
        await trio.sleep_forever()

    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        assert await ask(pool, Body([b"x" * 100_000] * 30)) == b"ok"
        assert len(upstream.asked[0].body) == 3_000_000
        assert counts(pool) == "1 idle, 0 in use"
        pool.close()
