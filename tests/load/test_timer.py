from __future__ import annotations

import sys
import time

import pytest
import trio

from llm_proxy.load.timer import Timer


@pytest.mark.parametrize("platform", ["linux", "none"])
async def test_it_waits_and_never_too_short(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform != "linux":
        platform = sys.platform
    monkeypatch.setattr(sys, "platform", platform)
    with Timer() as timer:
        for wait in (0.0003, 0.002, 0.01, -1.0):
            moment = time.perf_counter() + wait
            await timer.wait_until(moment)
            # Its clock is read a moment after ours.
            assert time.perf_counter() >= moment - 0.00003


async def test_a_wait_that_was_given_up_leaves_nothing_behind() -> None:
    with Timer() as timer:
        with trio.move_on_after(0.001) as scope:
            await timer.wait_until(time.perf_counter() + 60)
        assert scope.cancelled_caught
        moment = time.perf_counter() + 0.002
        await timer.wait_until(moment)
        assert time.perf_counter() >= moment - 0.00003
