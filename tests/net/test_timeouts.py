from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from llm_proxy.net.timeouts import TimeoutWheel


class Entry:
    def __init__(self) -> None:
        self.expired_at: float | None = None

    def expire(self, wheel: TimeoutWheel) -> None:
        self.expired_at = trio.current_time()


async def test_each_entry_expires_after_its_own_timeout(autojump_clock: MockClock) -> None:
    wheel = TimeoutWheel(10)
    first, second, third, fourth = Entry(), Entry(), Entry(), Entry()
    wheel.start(first)
    await trio.sleep(4)
    wheel.start(second)
    wheel.start(third)
    await trio.sleep(2)
    wheel.start(fourth)
    await trio.sleep(2)
    wheel.start(second)
    wheel.stop(third)
    await trio.sleep(30)
    assert first.expired_at == pytest.approx(10)
    assert second.expired_at == pytest.approx(18)
    assert third.expired_at is None
    assert fourth.expired_at == pytest.approx(16)


async def test_a_wheel_works_again_after_it_was_empty(autojump_clock: MockClock) -> None:
    wheel = TimeoutWheel(10)
    for _ in range(3):
        entry = Entry()
        wheel.start(entry)
        await trio.sleep(25)
        assert entry.expired_at == pytest.approx(trio.current_time() - 15)


async def test_a_wheel_with_1000_entries_needs_one_task(autojump_clock: MockClock) -> None:
    wheel = TimeoutWheel(10)
    before = trio.lowlevel.current_statistics().tasks_living
    entrys = [Entry() for _ in range(1000)]
    for entry in entrys:
        wheel.start(entry)
    assert trio.lowlevel.current_statistics().tasks_living == before + 1
    await trio.sleep(11)
    assert all(entry.expired_at is not None for entry in entrys)
    assert trio.lowlevel.current_statistics().tasks_living == before
