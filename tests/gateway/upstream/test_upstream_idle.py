"""Idle connections: which one is used again, and for how long it is kept."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from llm_proxy.gateway.upstream.failures import Disconnected
from llm_proxy.gateway.upstream.pool import UpstreamPool
from llm_proxy.gateway.upstream.request import Dispatch
from tests.gateway.upstream.stage import (
    OK,
    PATIENT,
    Body,
    Handler,
    Peer,
    answering,
    ask,
    client_sockets,
    counts,
    settled,
    stage,
    whole,
)


async def test_a_connection_is_used_again() -> None:
    async with stage(answering(OK)) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        for _ in range(3):
            assert await ask(pool, b"x") == b"ok"
            assert counts(pool) == "1 idle, 0 in use"
        assert len(upstream.peers) == 1
        assert len(upstream.asked) == 3
        pool.close()
        assert counts(pool) == "0 idle, 0 in use"
        assert client_sockets(upstream.origin) == 0


async def test_the_connection_used_last_is_used_next() -> None:
    async with stage(answering(OK)) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        first = await pool.send(b"GET", b"/1", [], None)
        second = await pool.send(b"GET", b"/2", [], None)
        assert counts(pool) == "0 idle, 2 in use"
        await whole(second)
        await whole(first)
        assert counts(pool) == "2 idle, 0 in use"
        await whole(await pool.send(b"GET", b"/3", [], None))
        assert [[asked.target for asked in peer.asked] for peer in upstream.peers] == [[b"/1", b"/3"], [b"/2"]]
        pool.close()


async def test_the_number_of_idle_connections_is_limited() -> None:
    async with stage(answering(OK)) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT, max_idle=2)
        responses = [await pool.send(b"GET", b"/", [], None) for _ in range(4)]
        assert counts(pool) == "0 idle, 4 in use"
        for response in responses:
            await whole(response)
        assert counts(pool) == "2 idle, 0 in use"
        assert client_sockets(upstream.origin) == 2
        pool.close()


async def test_with_a_limit_of_zero_no_connection_is_kept() -> None:
    async with stage(answering(OK)) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT, max_idle=0)
        assert await ask(pool) == b"ok"
        assert counts(pool) == "0 idle, 0 in use"
        assert client_sockets(upstream.origin) == 0


async def test_an_idle_connection_expires(mock_clock: MockClock) -> None:
    async with stage(answering(OK)) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT, keep_alive=10)
        await ask(pool)
        mock_clock.jump(9.9)
        await ask(pool)
        assert len(upstream.peers) == 1
        mock_clock.jump(10)
        await ask(pool)
        assert len(upstream.peers) == 2
        assert client_sockets(upstream.origin) == 1
        pool.close()


async def test_expired_connections_are_closed_when_another_is_released(mock_clock: MockClock) -> None:
    async with stage(answering(OK)) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT, keep_alive=10)
        old = [await pool.send(b"GET", b"/", [], None) for _ in range(3)]
        for response in old:
            await whole(response)
        mock_clock.jump(6)
        await ask(pool)
        mock_clock.jump(6)
        await ask(pool)
        assert counts(pool) == "1 idle, 0 in use"
        assert client_sockets(upstream.origin) == 1
        pool.close()


async def test_a_connection_expires_before_the_announced_keep_alive(mock_clock: MockClock) -> None:
    async with stage(answering(OK.replace(b"\r\n\r\n", b"\r\nKeep-Alive: timeout=5\r\n\r\n"))) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT, keep_alive=60)
        await ask(pool)
        mock_clock.jump(3.9)
        await ask(pool)
        assert len(upstream.peers) == 1
        mock_clock.jump(4.1)
        await ask(pool)
        assert len(upstream.peers) == 2
        pool.close()


async def close(peer: Peer) -> None:
    peer.close()


async def reset(peer: Peer) -> None:
    peer.reset()


async def babble(peer: Peer) -> None:
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")


@pytest.mark.parametrize("break_connection", [close, reset, babble])
async def test_a_connection_that_became_unusable_while_idle_is_not_used(break_connection: Handler) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        if len(upstream.peers) <= 3:
            await spoil.wait()
            await break_connection(peer)
        await trio.sleep_forever()

    spoil = trio.Event()
    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        responses = [await pool.send(b"GET", b"/", [], None) for _ in range(3)]
        for response in responses:
            await whole(response)
        assert counts(pool) == "3 idle, 0 in use"
        spoil.set()
        await settled()
        assert await ask(pool, b"precious") == b"ok"
        assert len(upstream.peers) == 4
        assert upstream.asked[-1].body == b"precious"
        assert counts(pool) == "1 idle, 0 in use"
        assert client_sockets(upstream.origin) == 1
        pool.close()


async def test_a_request_is_sent_again_only_if_no_byte_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    # The connection breaks between the check and the first byte.
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        if len(upstream.peers) == 1:
            await broken.wait()
            peer.reset()
        await trio.sleep_forever()

    broken = trio.Event()
    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        await ask(pool)
        broken.set()
        await settled()
        monkeypatch.setattr("llm_proxy.net.client_socket.ClientSocket.is_quiet", lambda _: True)
        body = Body([b"a", b"b"])
        dispatch = Dispatch()
        assert await whole(await pool.send(b"POST", b"/", [], body, dispatch=dispatch)) == b"ok"
        assert dispatch.sent
        assert len(upstream.peers) == 2
        assert upstream.peers[1].asked[0].body == b"ab"
        assert body.taken == 2
        pool.close()


async def dying(peer: Peer) -> None:
    """Answer one request, and reset the connection at the next."""
    await peer.request()
    await peer.send(OK)
    await peer.request()
    peer.reset()


@pytest.mark.parametrize(
    ("method", "body"),
    [(b"POST", b"x"), (b"POST", None), (b"PUT", None), (b"PATCH", None), (b"DELETE", None), (b"GET", b"x")],
)
async def test_a_sent_request_that_may_change_something_is_never_sent_again(method: bytes, body: bytes | None) -> None:
    async with stage(dying) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        await ask(pool)
        dispatch = Dispatch()
        with pytest.raises(Disconnected) as caught:
            await pool.send(method, b"/", [], body, dispatch=dispatch)
        assert caught.value.sent
        assert dispatch.sent
        assert len(upstream.peers) == 1
        assert counts(pool) == "0 idle, 0 in use"
        assert client_sockets(upstream.origin) == 0


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS"])
async def test_a_safe_request_on_a_closing_connection_is_sent_again_on_a_new_one(method: bytes) -> None:
    async with stage(dying) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        two = [await pool.send(b"GET", b"/", [], None) for _ in range(2)]
        for response in two:
            await whole(response)
        again = await pool.send(method, b"/again", [], None)
        assert again.status == 200
        # Not one of the two others, which may be closing as well.
        assert [len(peer.asked) for peer in upstream.peers] == [1, 2, 1]
        assert upstream.peers[2].asked[0].target == b"/again"
        again.close()
        pool.close()


async def test_a_safe_request_is_not_sent_a_third_time() -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        if len(upstream.peers) == 1:
            await peer.send(OK)
            await peer.request()
        peer.reset()

    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        await ask(pool)
        with pytest.raises(Disconnected):
            await pool.send(b"GET", b"/", [], None)
        assert len(upstream.peers) == 2
        assert counts(pool) == "0 idle, 0 in use"


async def test_idle_connections_expire_without_traffic(autojump_clock: MockClock) -> None:
    async with stage(answering(OK)) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT, keep_alive=10)
        responses = [await pool.send(b"GET", b"/", [], None) for _ in range(3)]
        await whole(responses[0])
        await trio.sleep(6)
        await whole(responses[1])
        await whole(responses[2])
        assert counts(pool) == "3 idle, 0 in use"
        await trio.sleep(4.1)
        assert counts(pool) == "2 idle, 0 in use"
        await trio.sleep(6)
        assert counts(pool) == "0 idle, 0 in use"
        assert client_sockets(upstream.origin) == 0
        # Once more, after the sweep has ended.
        await ask(pool)
        await trio.sleep(10.1)
        assert client_sockets(upstream.origin) == 0


async def test_a_connection_with_a_shorter_announced_keep_alive_expires_earlier(autojump_clock: MockClock) -> None:
    promise = OK.replace(b"\r\n\r\n", b"\r\nKeep-Alive: timeout=5\r\n\r\n")
    async with stage(answering(OK, promise)) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT, keep_alive=60)
        for response in [await pool.send(b"GET", b"/", [], None) for _ in range(2)]:
            await whole(response)
        await ask(pool)
        await trio.sleep(4.1)
        assert counts(pool) == "1 idle, 0 in use"
        pool.close()


@pytest.mark.parametrize("end", [close, reset])
async def test_idle_connections_that_the_upstream_closes_are_closed_at_once(end: Handler) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await over.wait()
        await end(peer)

    over = trio.Event()
    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        for response in [await pool.send(b"GET", b"/", [], None) for _ in range(50)]:
            await whole(response)
        assert counts(pool) == "50 idle, 0 in use"
        over.set()
        await settled()
        assert counts(pool) == "0 idle, 0 in use"
        assert client_sockets(upstream.origin) == 0
        pool.close()


async def test_a_connection_closed_right_after_its_response_is_not_kept() -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        peer.close()

    async with stage(handler) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        response = await pool.send(b"GET", b"/", [], None)
        await settled()
        assert await whole(response) == b"ok"
        assert counts(pool) == "0 idle, 0 in use"
        assert client_sockets(upstream.origin) == 0
        assert await ask(pool) == b"ok"
        pool.close()


@pytest.mark.parametrize(
    "response",
    [
        OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        OK.replace(b"1.1", b"1.0"),
        b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\n",
    ],
    ids=["close", "HTTP/1.0", "excess"],
)
async def test_a_connection_with_an_ambiguous_end_is_closed(response: bytes) -> None:
    async with stage(answering(response)) as upstream:
        pool = UpstreamPool(upstream.origin, PATIENT)
        await ask(pool)
        assert counts(pool) == "0 idle, 0 in use"
        assert client_sockets(upstream.origin) == 0
