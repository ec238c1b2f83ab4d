"""Accepting from a listener that other processes may share."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from llm_proxy.server.listener import accept_forever, bind

WAITING = 5


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listener with waiting connections."""
    with ExitStack() as stack:
        (listening,) = bind("127.0.0.1", 0)
        stack.enter_context(listening)
        listening.listen()
        listening.settimeout(0)
        for _ in range(WAITING):
            stack.enter_context(socket.create_connection(listening.getsockname()))
        yield listening


async def accepted(listener: socket.socket, clock: MockClock, turn: float) -> list[int]:
    """Return the numbers of accepted connections, at the start and after each pause."""
    got: list[socket.socket] = []
    seen = []
    accept = partial(
        accept_forever, listener, got.append, has_room=lambda: True, make_room=trio.lowlevel.checkpoint, turn=turn
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        for _ in range(WAITING):
            await wait_all_tasks_blocked()
            seen.append(len(got))
            clock.jump(1.0)
        nursery.cancel_scope.cancel()
    for sock in got:
        sock.close()
    return seen


async def test_with_a_shared_listener_there_is_a_pause_after_each_connection(
    listener: socket.socket, mock_clock: MockClock
) -> None:
    assert await accepted(listener, mock_clock, turn=1.0) == [1, 2, 3, 4, 5]


async def test_with_an_unshared_listener_there_is_no_pause(listener: socket.socket, mock_clock: MockClock) -> None:
    assert (await accepted(listener, mock_clock, turn=0.0))[0] == WAITING
