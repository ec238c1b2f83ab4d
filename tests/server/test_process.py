from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from attrs import Factory, define
from trio.testing import MockClock, wait_all_tasks_blocked

from llm_proxy.server.context import ServerConfig
from llm_proxy.server.process import serve_until_signal
from tests.server.applications import Echo, Hold
from tests.server.running import Listening


@define
class Serving(Listening):
    """A server in this process that handles signals."""

    journal: list[str] = Factory(list)

    async def send_signal(self, number: signal.Signals) -> None:
        # To this thread, so that the signal is handled when the call returns; the process might use any thread.
        signal.raise_signal(number)
        # The signal is reported through a pipe that trio reads, which `wait_all_tasks_blocked` ignores.
        await wait_all_tasks_blocked(0.01)


@asynccontextmanager
async def serving(
    app: Any = None, *, on_sighup: Callable[[], bool] = lambda: False, **more: Any
) -> AsyncIterator[Serving]:
    server = Serving()
    serve = partial(
        serve_until_signal,
        Echo() if app is None else app,
        ServerConfig(port=0),
        on_stop=lambda: server.journal.append("stop"),
        on_drain=lambda: server.journal.append("drain"),
        on_reload=on_sighup,
        **more,
    )
    async with server.run(serve):
        yield server


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_without_a_delay_a_process_drains_at_once(number: signal.Signals, autojump_clock: MockClock) -> None:
    async with serving() as server:
        await server.send_signal(number)
        await server.ended.wait()
        assert server.journal == ["stop", "drain"]
    assert trio.current_time() < 1


async def test_requests_are_served_as_before_during_the_delay(autojump_clock: MockClock) -> None:
    async with serving(delay=20) as server, await server.connect() as kept:
        await kept.ask()
        await server.send_signal(signal.SIGTERM)
        began = trio.current_time()
        assert server.journal == ["stop"]
        assert not (await kept.ask()).closing
        async with await server.connect() as late:
            assert not (await late.ask()).closing
        await server.send_signal(signal.SIGTERM)
        await server.ended.wait()
        assert server.journal == ["stop", "drain"]
        assert trio.current_time() - began == pytest.approx(20, abs=1)


async def test_a_second_interrupt_ends_the_delay(autojump_clock: MockClock) -> None:
    async with serving(delay=1000) as server:
        await server.send_signal(signal.SIGINT)
        await server.send_signal(signal.SIGINT)
        await server.ended.wait()
        assert server.journal == ["stop"]
    assert trio.current_time() < 1


async def test_a_replaced_process_neither_waits_nor_refuses_requests(autojump_clock: MockClock) -> None:
    hold = Hold()
    async with serving(hold, delay=1000) as server, await server.connect() as client, trio.open_nursery() as nursery:
        nursery.start_soon(client.ask)
        await wait_all_tasks_blocked(0.01)
        await server.send_signal(signal.SIGUSR1)
        with pytest.raises(OSError, match="all attempts to connect"):
            await server.connect()
        hold.release.set()
        await server.ended.wait()
        assert server.journal == []
    assert trio.current_time() < 100


async def test_sighup_may_be_ignored_by_the_callback(autojump_clock: MockClock) -> None:
    calls: list[int] = []

    def on_sighup() -> bool:
        calls.append(1)
        return True

    async with serving(on_sighup=on_sighup) as server:
        await server.send_signal(signal.SIGHUP)
        async with await server.connect() as client:
            assert not (await client.ask()).closing
        assert (calls, server.journal) == ([1], [])


async def test_sighup_stays_ignored_if_the_process_ignores_it(autojump_clock: MockClock) -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        async with serving() as server:
            await server.send_signal(signal.SIGHUP)
            async with await server.connect() as client:
                assert not (await client.ask()).closing
    finally:
        signal.signal(signal.SIGHUP, former)
