from __future__ import annotations

from typing import Any

import pytest
import trio

from llm_proxy.gateway.upstream import MalformedResponse, UpstreamFailure
from tests.gateway.upstream.framing_rows import ROWS, Row, Seen
from tests.gateway.upstream.stage import HEADERS, OK, Body, Peer, answering, ask, counts, settled, whole
from tests.gateway.upstream.test_upstream_cancellation import Upload, is_cancelled_at, slow
from tests.gateway.upstream.ways import WAYS, Way


@pytest.mark.parametrize("way", WAYS)
async def test_a_request_arrives_as_it_was_given(open_scene: Any, way: Way) -> None:
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
            if way == "forwarded":
                assert asked.target == b"http://localhost:%d" % scene.upstream.origin.port + target
                seen.remove((b"Proxy-Authorization", b"Basic dXM6cHc="))
            else:
                assert asked.target == target
            # Nothing was added.
            assert seen == [(b"Host", scene.upstream.origin.authority), *HEADERS]
        assert scene.sockets == 1
        scene.pool.close()
        assert scene.sockets == 0


async def test_a_tunnel_is_asked_for_with_the_credentials(open_scene: Any) -> None:
    async with open_scene("tunnelled", answering(OK)) as scene:
        await ask(scene.pool)
        [head] = scene.proxy.heads
        assert head.startswith(b"CONNECT localhost:%d HTTP/1.1\r\n" % scene.upstream.origin.port)
        assert b"\r\nProxy-Authorization: Basic dXM6cHc=\r\n" in head
        assert b"sk-1" not in head
        assert scene.upstream.asked[0].values(b"proxy-authorization") == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.rule)
async def test_responses_are_judged_as_on_the_direct_way(open_scene: Any, row: Row) -> None:
    async def handler(peer: Peer) -> None:
        if await peer.request():
            await peer.send(row.wire)

    async with open_scene("forwarded", handler) as scene:
        pool = scene.pool
        verdict: Seen | type[UpstreamFailure]
        try:
            response = await pool.send(row.method, b"/", [], None)
            body = await whole(response)
            verdict = Seen(response.status, body, reusable=pool.idle == 1, reason=response.reason)
        except UpstreamFailure as failure:
            verdict = type(failure)
        assert pool.in_use == 0
        assert scene.sockets == pool.idle
        if isinstance(row.expected, Seen) and isinstance(verdict, type):
            # h11 may be stricter, never laxer.
            assert verdict is MalformedResponse
        elif row.rule == "9112 §9.3: HTTP/1.0 that stays":
            assert verdict == Seen(200, b"hello", reusable=False)
        else:
            assert verdict == row.expected


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make_body", [lambda: b"x", lambda: Upload(None)], ids=["small", "chunked"])
async def test_cancelled_at_every_checkpoint(open_scene: Any, way: Way, make_body: Any) -> None:
    async with open_scene(way, slow) as scene:
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
        scene.pool.close()
        await settled()
        assert trio.lowlevel.current_statistics().tasks_living <= before + 4


@pytest.mark.parametrize("way", WAYS)
async def test_a_connection_closed_while_idle_is_not_used(open_scene: Any, way: Way) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await settled()
        peer.close()

    async with open_scene(way, handler) as scene:
        assert await ask(scene.pool) == b"ok"
        for _ in range(4):
            await settled()
        assert await ask(scene.pool) == b"ok"
        assert len(scene.upstream.peers) == 2


async def test_words_that_nobody_asked_for_spoil_the_connection(open_scene: Any) -> None:
    async with open_scene("forwarded", answering(b"HTTP/1.1 204 No\r\n\r\n" + OK)) as scene:
        assert await ask(scene.pool) == b""
        assert counts(scene.pool) == "0 idle, 0 in use"


@pytest.mark.parametrize("way", WAYS)
async def test_a_safe_request_that_meets_a_dying_connection_is_sent_once_more(open_scene: Any, way: Way) -> None:
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
async def test_an_idle_connection_that_the_other_side_closes_is_closed_at_once(open_scene: Any, way: Way) -> None:
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
