"""What a client may hold with its body: time, as far as it is the slow side, and memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from llm_proxy.errors import Overloaded, RequestTimeout, RequestTooLarge
from llm_proxy.gateway import inbound as inbound_module
from llm_proxy.gateway.inbound import BODY_PATIENCE, BODY_RATE, JOINED, READ_AHEAD, HeldBodies, Inbound
from llm_proxy.gateway.providers.provider import Route

ROUTE = Route(None, b"/v1/chat/completions", "openai")


def inbound(pieces: AsyncGenerator[bytes]) -> Inbound:
    """A chunked request whose body comes from `pieces`."""
    ended = False

    async def receive() -> dict[str, Any]:
        nonlocal ended
        if ended:
            await trio.sleep_forever()
        piece = await anext(pieces, None)
        ended = piece is None
        return {"type": "http.request", "body": piece or b"", "more_body": not ended}

    headers = [(b"transfer-encoding", b"chunked")]
    scope = {"method": "POST", "raw_path": ROUTE.path, "query_string": b"", "headers": headers}
    return Inbound("id", 0.0, ROUTE, scope, receive, 1 << 30)


async def drip(piece: bytes, every: float, count: int = 1000, first: bytes = b"") -> AsyncGenerator[bytes]:
    if first:
        yield first
    for _ in range(count):
        await trio.sleep(every)
        yield piece


async def ignore(_piece: bytes) -> None:
    pass


async def held(body: Inbound) -> None:
    await body.hold(HeldBodies(), ignore)


async def held_beside_watch(body: Inbound, see: Callable[[bytes], Awaitable[None]] = ignore) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(body.watch)
        await wait_all_tasks_blocked()
        try:
            await body.hold(HeldBodies(), see)
        finally:
            nursery.cancel_scope.cancel()


async def streamed(body: Inbound) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(body.watch)
        try:
            async for _ in body:
                pass
        finally:
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("method", "header", "found"),
    [
        ("GET", (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="), True),
        ("POST", (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="), False),
        ("POST", (b"sec-websocket-key", b"websocket"), False),
        ("GET", (b"upgrade", b"h2c, WebSocket"), True),
        ("POST", (b"upgrade", b"websocket"), True),
    ],
)
def test_a_key_alone_makes_a_websocket_handshake_of_a_get_only(
    method: str, header: tuple[bytes, bytes], *, found: bool
) -> None:
    async def receive() -> None:
        pass

    scope = {"method": method, "raw_path": ROUTE.path, "query_string": b"", "headers": [header]}
    assert Inbound("id", 0.0, ROUTE, scope, receive, 1).websocket is found


WAYS = pytest.mark.parametrize("way", [held, held_beside_watch, streamed])


async def ends(way: Callable[[Inbound], Any], body: Inbound) -> float:
    """Seconds after which the body is refused as too slow."""
    began = trio.current_time()
    with pytest.RaisesGroup(RequestTimeout, allow_unwrapped=True, flatten_subgroups=True):
        await way(body)
    return trio.current_time() - began


@WAYS
@pytest.mark.parametrize(("piece", "every"), [(b"x", 3.0), (b"x", 50.0), (b"x" * (BODY_RATE - 10), 1.0)])
async def test_a_body_that_comes_too_slowly_is_refused_after_10_seconds(
    way: Callable[[Inbound], Any], piece: bytes, every: float, autojump_clock: trio.testing.MockClock
) -> None:
    assert await ends(way, inbound(drip(piece, every))) == pytest.approx(BODY_PATIENCE, abs=1)


@WAYS
async def test_what_came_fast_buys_time_at_the_least_rate(
    way: Callable[[Inbound], Any], autojump_clock: trio.testing.MockClock
) -> None:
    assert await ends(way, inbound(drip(b"x", 1.0, first=b"x" * 40 * BODY_RATE))) == pytest.approx(40, abs=1)


@WAYS
async def test_a_body_at_the_least_rate_is_taken(
    way: Callable[[Inbound], Any], autojump_clock: trio.testing.MockClock
) -> None:
    await way(inbound(drip(b"x" * (3 * BODY_RATE), 1.9, count=200)))


async def test_a_provider_that_takes_slowly_is_not_the_clients_fault(autojump_clock: trio.testing.MockClock) -> None:
    body = inbound(drip(b"x" * 1000, 0.1, count=500))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(body.watch)
        taken = 0
        async for piece in body:
            taken += len(piece)
            await trio.sleep(5)
        nursery.cancel_scope.cancel()
    assert taken == 500_000


async def test_a_body_that_is_held_beside_its_watch_is_seen_whole(autojump_clock: trio.testing.MockClock) -> None:
    seen: list[bytes] = []

    async def see(piece: bytes) -> None:
        seen.append(piece)
        await trio.sleep(0.25)

    body = inbound(drip(b"x" * READ_AHEAD, 0.1, count=12))
    await held_beside_watch(body, see)
    assert b"".join(seen) == body.complete() == b"x" * READ_AHEAD * 12


async def test_an_upload_that_became_too_slow_before_it_was_asked_for_is_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    body = inbound(drip(b"x", 50.0))
    await body.watch()
    with pytest.raises(RequestTimeout):
        body.complete()


async def test_the_long_bodies_of_a_process_share_one_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbound_module, "HELD_LIMIT", 3 * JOINED)
    every = HeldBodies()
    sources = [drip(b"x" * (JOINED // 2), 0.0, count=3) for _ in range(2)]
    bodies = list(map(inbound, sources))
    await bodies[0].hold(every, ignore)
    assert every.size >= 3 * JOINED // 2
    async with aclosing(sources[1]):
        with pytest.raises(Overloaded, match="memory for large request bodies is full"):
            await bodies[1].hold(every, ignore)
    bodies[1].release()
    # What goes upstream is given back as it goes.
    assert bodies[0].complete() is None
    async for _ in bodies[0]:
        pass
    assert every.size == 0


async def test_a_short_body_is_joined_and_not_charged() -> None:
    every = HeldBodies()
    body = inbound(drip(b"x" * 1000, 0.0, count=3))
    await body.hold(every, ignore)
    assert (every.size, body.complete()) == (0, b"x" * 3000)


async def test_a_body_that_is_too_large_with_its_last_piece_has_not_ended() -> None:
    """The provider never gets its end, so nothing is billed."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x" * 11, "more_body": False}

    scope = {
        "method": "POST",
        "raw_path": ROUTE.path,
        "query_string": b"",
        "headers": [(b"transfer-encoding", b"chunked")],
    }
    body = Inbound("id", 0.0, ROUTE, scope, receive, 10)
    with pytest.raises(RequestTooLarge):
        await held(body)
    assert (body.received, body.ended) == (11, False)
