"""Grace under cancellation, after a crash, and with a disk that fails. SQLite stands for every database here."""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from attrs import define, evolve
from structlog.testing import capture_logs

from db.records import Result
from llm_proxy.ledger import SpoolError, SpoolFile, backlog
from llm_proxy.ledger.backlog import Backlog, _Request
from llm_proxy.ledger.outage.adoption import Adopter
from llm_proxy.ledger.outage.spool import Spool
from tests.ledger.graceful import OK, TERMS, grace_scene
from tests.ledger.stage import scene as ledger_scene
from tests.ledger.test_spool_file import fail_with

TOO_MANY = 100


@define(eq=False)
class Stop(trio.abc.Instrument):
    """Cancels when the task of one request is about to take its n-th step."""

    at: int
    action: Callable[[], None]
    taken: int = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task.name.endswith("one"):
            self.taken += 1
            if self.taken == self.at:
                self.action()


def hanging_disk(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A disk that flushes nothing until it is told to."""
    told, flush = threading.Event(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: told.wait(10) and flush(descriptor))
    return told


async def test_cancelled_while_it_waits_for_the_disk_settles_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with grace_scene(tmp_path) as scene:
        scene.go_away()
        disk = hanging_disk(monkeypatch)
        with trio.move_on_after(0.05) as patience:
            await scene.admit()
        assert patience.cancelled_caught
        disk.set()
        assert await scene.serve(9) == 5, "it has not used up anything"
        await scene.come_back()
        assert await scene.everything() == ({"ok": 6, "void": 1}, 6)


async def test_a_disk_that_hangs_keeps_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "DISK_DEADLINE", 0.1)
    async with grace_scene(tmp_path) as scene:
        scene.go_away()
        disk = hanging_disk(monkeypatch)
        assert await scene.serve() == 0
        disk.set()
        await scene.come_back()
        assert await scene.everything() == ({"ok": 1, "void": 1}, 1)


async def test_a_full_disk_ends_grace_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with grace_scene(tmp_path) as scene:
        scene.go_away()
        assert await scene.serve() == 1
        running = await scene.admit()
        with monkeypatch.context() as disk, capture_logs() as logs:
            disk.setattr(os, "write", fail_with(errno.ENOSPC))
            assert await scene.serve() == 0
            assert any("No space left on device" in str(line) for line in logs), logs
            assert not scene.carries()
            scene.grace.settle(running, OK)
        assert await scene.serve() == 0, "until the database is back, it is as under closed"
        await scene.come_back()
        assert await scene.everything() == ({"ok": 3}, 3)
        scene.go_away()
        assert await scene.serve() == 1, "the disk is tried again in the next outage"
        await scene.come_back()


async def test_a_disk_that_fails_while_the_database_comes_back_lets_other_tasks_run(tmp_path: Path) -> None:
    """Admissions wait for the disk when it fails: whoever waits for them must not keep the event loop to itself."""
    async with ledger_scene(tmp_path / "ledger.db") as stage:
        grant = await stage.admit()
        backlog = Backlog(Spool(SpoolFile.create(tmp_path, "w")))
        backlog._requests = {grant.reservation.id: _Request(grant)}
        backlog.spool.failure = SpoolError("No space left on device")
        rounds = 0

        def looked() -> None:
            nonlocal rounds
            rounds += 1
            assert rounds < TOO_MANY, "nobody else got a turn"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(backlog.bring, stage.database.real, "w", looked)
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert 0 < rounds < TOO_MANY
        stage.ledger.settle(grant, OK)


async def test_what_a_killed_worker_has_spooled_is_adopted(tmp_path: Path) -> None:
    async with grace_scene(tmp_path) as scene:
        scene.go_away()
        assert await scene.serve(2) == 2
        left_open = await scene.admit()
        copied = scene.file.path.read_bytes()
        # As a worker leaves it that dies in the middle of a line.
        dead = SpoolFile.create(tmp_path / "elsewhere", "dead")
        dead.append(copied + copied[:50])
        dead.close()
        adopter = Adopter(tmp_path / "elsewhere", scene.stage.database.real, "another")
        assert await adopter.look() == 3
        assert await adopter.look() == 0
        assert list((tmp_path / "elsewhere").iterdir()) == []
        assert await scene.stage.outcomes() == (1, {"ok": 3})
        await scene.come_back()
        scene.grace.settle(left_open, OK)
        await scene.stage.settled()
        assert await scene.everything() == ({"ok": 4}, 4), "brought twice, by two, and there once"


async def test_a_spool_of_another_database_is_left_alone(tmp_path: Path) -> None:
    async with grace_scene(tmp_path / "one") as scene:
        scene.go_away()
        assert await scene.serve() == 1
        said = scene.file.path.read_bytes()
        await scene.come_back()
    dead = SpoolFile.create(tmp_path / "spools", "dead")
    dead.append(said)
    dead.close()
    async with grace_scene(tmp_path / "other") as scene:
        adopter = Adopter(tmp_path / "spools", scene.stage.database.real, "another")
        assert await adopter.look() == 0
        assert dead.path.read_bytes() == said
        assert await scene.everything() == ({"ok": 1}, 1)


async def test_cancelled_at_any_step_there_is_one_settlement(tmp_path: Path) -> None:
    async with grace_scene(tmp_path, evolve(TERMS, requests=TOO_MANY)) as scene:
        scene.go_away()
        assert await scene.serve() == 1
        ends: Counter[str] = Counter()

        async def one(scope: trio.CancelScope) -> None:
            with scope:
                # As the relay does it: what comes after the admission settles in any case.
                grant = await scene.admit()
                result = Result(outcome="void")
                try:
                    await trio.lowlevel.checkpoint()
                    result = OK
                finally:
                    scene.grace.settle(grant, result)
                ends["whole"] += 1

        at = 0
        while not ends:
            at += 1
            assert at < TOO_MANY
            scope = trio.CancelScope()
            stop = Stop(at, scope.cancel)
            trio.lowlevel.add_instrument(stop)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one, scope)
            trio.lowlevel.remove_instrument(stop)
        assert at > 2
        await scene.come_back()
        assert await scene.everything() == ({"ok": 3, "void": at - 1}, 3)
