from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from llm_proxy.net.watch import Watch


class Sloth:
    def __init__(self) -> None:
        self.expired_at: float | None = None

    def expire(self, watch: Watch) -> None:
        self.expired_at = trio.current_time()


async def test_a_watch_expires_each_in_its_time(autojump_clock: MockClock) -> None:
    watch = Watch(10)
    first, second, third, fourth = Sloth(), Sloth(), Sloth(), Sloth()
    watch.start(first)
    await trio.sleep(4)
    watch.start(second)
    watch.start(third)
    await trio.sleep(2)
    watch.start(fourth)
    await trio.sleep(2)
    watch.start(second)
    watch.stop(third)
    await trio.sleep(30)
    assert first.expired_at == pytest.approx(10)
    assert second.expired_at == pytest.approx(18)
    assert third.expired_at is None
    assert fourth.expired_at == pytest.approx(16)


async def test_a_watch_works_again_after_a_rest(autojump_clock: MockClock) -> None:
    watch = Watch(10)
    for _ in range(3):
        sloth = Sloth()
        watch.start(sloth)
        await trio.sleep(25)
        assert sloth.expired_at == pytest.approx(trio.current_time() - 15)


async def test_a_watch_needs_one_task_however_much_is_watched(autojump_clock: MockClock) -> None:
    watch = Watch(10)
    before = trio.lowlevel.current_statistics().tasks_living
    sloths = [Sloth() for _ in range(1000)]
    for sloth in sloths:
        watch.start(sloth)
    assert trio.lowlevel.current_statistics().tasks_living == before + 1
    await trio.sleep(11)
    assert all(sloth.expired_at is not None for sloth in sloths)
    assert trio.lowlevel.current_statistics().tasks_living == before
