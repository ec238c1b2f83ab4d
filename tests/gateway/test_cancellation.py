"""A request may be cancelled at any checkpoint, and may lose its client at any: nothing is left behind.

Each test runs the same request over and over. The first time it is stopped at its first step, the next time at its
second, and so on, until it runs to its end. After each run the pool has nothing in use, no database connection is
checked out, nothing is in flight, the ledger verifies, and there is exactly one settlement for each admission.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from attrs import define

from tests.gateway.stage import Client, Scene, scene

#: More steps than any of these requests takes.
TOO_MANY = 400


@define(eq=False)
class Stop(trio.abc.Instrument):
    """Calls `action` when the tasks of one request are about to take their n-th step."""

    at: int
    action: Callable[[], None]
    root: trio.lowlevel.Task | None = None
    taken: int = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        nursery = task.parent_nursery
        if self.root is None or not (task is self.root or (nursery and nursery.parent_task is self.root)):
            return
        self.taken += 1
        if self.taken == self.at:
            self.action()


#: The pieces that a body comes in, whether the first comes with the head, and whether it has a declared length.
BODIES = {
    "small-body": ([b"{}"], True, False),
    "body-behind-the-head": ([b"{}"], False, False),
    "streamed-body": ([b'{"model":', b'"m"}'], True, True),
    "streamed-body-behind-the-head": ([b'{"model":', b'"m"}'], False, True),
}


async def run_until_step(stage: Scene, step: int, how: str, body: str) -> bool:
    """Run one request and stop it at a step; True when it had ended before that."""
    pieces, at_once, chunked = BODIES[body]
    client = Client(list(pieces), at_once)
    with trio.CancelScope() as outer:
        stop = Stop(step, outer.cancel if how == "cancelled" else client.leave)
        stop.root = trio.lowlevel.current_task()
        trio.lowlevel.add_instrument(stop)
        try:
            await stage.request(client, chunked=chunked, told=how == "server-tells")
        finally:
            trio.lowlevel.remove_instrument(stop)
    await stage.assert_nothing_is_left()
    return stop.taken < step and client.complete


@pytest.mark.parametrize("body", list(BODIES))
@pytest.mark.parametrize("how", ["cancelled", "client-leaves", "server-tells"])
@pytest.mark.parametrize("warm", [False, True], ids=["new-connection", "kept-connection"])
async def test_at_every_checkpoint(tmp_path: Path, how: str, body: str, *, warm: bool) -> None:
    async with scene(tmp_path) as stage:
        await run_until_every_step(stage, how, body, warm=warm)


@pytest.mark.parametrize("how", ["cancelled", "client-leaves", "server-tells"])
async def test_at_every_checkpoint_of_a_body_that_is_judged(tmp_path: Path, how: str) -> None:
    async with scene(tmp_path, judged=True) as stage:
        await run_until_every_step(stage, how, "streamed-body", warm=True)


async def run_until_every_step(stage: Scene, how: str, body: str, *, warm: bool) -> None:
    for step in range(1, TOO_MANY):
        if warm:
            assert await run_until_step(stage, TOO_MANY, how, "small-body")
        else:
            stage.pool.close()
        if await run_until_step(stage, step, how, body):
            break
    else:
        pytest.fail("the request never came to its end")
    assert step > 8, "too few steps to prove anything"
    assert stage.provider.answered > 0
