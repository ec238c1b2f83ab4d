"""The outage mode under cancellation, after a crash, and with a disk that fails. On SQLite only."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import trio
from attrs import define, evolve
from structlog.testing import capture_logs

from db.errors import CommitUnknown
from db.records import UNKNOWN, VOID
from db.spool import SpoolFile
from llm_proxy.ledger import Grant, Settlement
from llm_proxy.ledger.outage import spool
from llm_proxy.ledger.outage.replay import OrphanReplay, decode, spool_path
from llm_proxy.ledger.outage.spool import Spool, _Request
from tests.ledger.outage.scene import LIMITS, OK, outage_scene
from tests.ledger.stage import scene as ledger_scene

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
    """Let the spool write nothing until the event is set."""
    released, append = threading.Event(), SpoolFile.append

    def wait(file: SpoolFile, records: list[bytes], *, from_empty: bool = False) -> None:
        released.wait(10)
        append(file, records, from_empty=from_empty)

    monkeypatch.setattr(SpoolFile, "append", wait)
    return released


def limit_pages(file: SpoolFile, pages: int) -> None:
    """Make SQLite report a full disk when the file has so many pages."""
    file._database.write_now(lambda connection: connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}").close())


async def test_a_request_that_is_cancelled_while_it_waits_for_the_disk_is_void(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with outage_scene(tmp_path) as scene:
        scene.go_away()
        disk = hanging_disk(monkeypatch)
        with trio.move_on_after(0.05) as cancelled:
            await scene.admit()
        assert cancelled.cancelled_caught
        disk.set()
        assert await scene.serve(9) == 5, "it did not use up anything"
        await scene.come_back()
        assert await scene.everything() == ({"ok": 6, "void": 1}, 6)


async def test_a_disk_that_hangs_delays_requests_only_until_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "DISK_DEADLINE", 0.1)
    async with outage_scene(tmp_path) as scene:
        scene.go_away()
        turns = 0

        async def count_turns() -> None:
            nonlocal turns
            while True:
                await trio.sleep(0.01)
                turns += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count_turns)
            with closing(sqlite3.connect(scene.file.path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                assert await scene.serve() == 0
                other.execute("ROLLBACK")
            nursery.cancel_scope.cancel()
        assert turns > 0, "other tasks ran meanwhile"
        await scene.come_back()
        assert await scene.everything() == ({"ok": 1, "void": 1}, 1)


async def test_a_full_disk_ends_the_admissions_and_loses_nothing(tmp_path: Path) -> None:
    async with outage_scene(tmp_path, evolve(LIMITS, requests=TOO_MANY)) as scene:
        scene.go_away()
        assert await scene.serve() == 1
        running = await scene.admit()
        limit_pages(scene.file, 3)
        served = 0
        with capture_logs() as logs:
            while await scene.serve():
                served += 1
        assert any("the disk is full" in str(line) for line in logs), logs
        assert not scene.admits_offline()
        scene.mode.settle(running, OK)
        limit_pages(scene.file, 1_000_000)
        assert await scene.serve() == 0, "until the database is back, it is as with `closed`"
        await scene.come_back()
        assert await scene.everything() == ({"ok": 3 + served}, 3 + served)
        scene.go_away()
        assert await scene.serve() == 1, "the disk is tried again in the next outage"
        await scene.come_back()


@pytest.mark.parametrize("written", [True, False])
async def test_a_request_is_void_if_the_disk_fails_and_may_have_written_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, written: bool
) -> None:
    append = SpoolFile.append

    def fail(file: SpoolFile, records: list[bytes], *, from_empty: bool = False) -> None:
        if written:
            append(file, records, from_empty=from_empty)
        message = "the disk failed to read or write during a commit"
        raise CommitUnknown(message)

    async with outage_scene(tmp_path) as scene:
        scene.go_away()
        with monkeypatch.context() as disk:
            disk.setattr(SpoolFile, "append", fail)
            assert await scene.serve() == 0
        assert await scene.serve() == 0, "nothing is written behind a write that failed"
        assert len(scene.records()) == written
        await scene.come_back()
        assert scene.records() == []
        assert await scene.everything() == ({"ok": 1, "void": 1}, 1)


async def test_other_tasks_run_while_requests_wait_for_a_disk_that_has_failed(tmp_path: Path) -> None:
    async with ledger_scene(tmp_path / "ledger.db") as stage:
        grant = await stage.admit()
        waiting = Spool(SpoolFile.open(tmp_path / "outage-w.db"))
        waiting._requests = {grant.reservation.id: _Request(Settlement.of(grant, UNKNOWN))}
        waiting.failure = "the disk is full"
        rounds = 0

        async def replay() -> None:
            nonlocal rounds
            while waiting:
                rounds += 1
                assert rounds < TOO_MANY, "no other task got a turn"
                await waiting.replay(stage.database.real, "w")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(replay)
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert 0 < rounds < TOO_MANY
        waiting.file.close()
        stage.ledger.settle(grant, OK)


async def test_requests_that_wait_at_the_same_time_share_a_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[int] = []
    append = SpoolFile.append

    def count(file: SpoolFile, records: list[bytes], *, from_empty: bool = False) -> None:
        writes.append(len(records))
        append(file, records, from_empty=from_empty)

    monkeypatch.setattr(SpoolFile, "append", count)
    async with outage_scene(tmp_path, evolve(LIMITS, requests=TOO_MANY)) as scene:
        scene.go_away()
        grants: list[Grant] = []

        async def admit() -> None:
            grants.append(await scene.admit())

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(admit)
        assert sum(writes) == len(scene.records()) == 50
        assert len(writes) <= 3
        for grant in grants:
            scene.mode.settle(grant, OK)
        await scene.come_back()
        assert await scene.everything() == ({"ok": 51}, 51)


def crashed_copy(path: Path, folder: Path, cut: int) -> Path:
    """Copy an open spool as a worker leaves it that is killed while it writes; `cut` bytes did not reach the disk."""
    folder.mkdir()
    copied = spool_path(folder, "crashed")
    shutil.copyfile(path, copied)
    log = path.with_name(path.name + "-wal").read_bytes()
    copied.with_name(copied.name + "-wal").write_bytes(log[: len(log) - cut])
    return copied


async def test_the_spool_of_a_killed_worker_is_replayed_once(tmp_path: Path) -> None:
    async with outage_scene(tmp_path) as scene:
        scene.go_away()
        assert await scene.serve(2) == 2
        running = await scene.admit()
        file = scene.file
        before = file.path.with_name(file.path.name + "-wal").stat().st_size
        file.append([b"cut off"])
        cut = file.path.with_name(file.path.name + "-wal").stat().st_size - before
        crashed = crashed_copy(file.path, tmp_path / "elsewhere", cut // 2)
        orphans = OrphanReplay(crashed.parent, scene.stage.database.real, "another")
        with capture_logs() as logs:
            await orphans.run()
            await orphans.run()
        (told,) = logs
        assert (told["requests"], told["unsettled"]) == (3, 1)
        assert list(crashed.parent.iterdir()) == []
        assert await scene.stage.outcomes() == (1, {"ok": 3})
        await scene.come_back()
        scene.mode.settle(running, OK)
        await scene.stage.settled()
        assert await scene.everything() == ({"ok": 4}, 4), "replayed twice, by two workers, and there once"


async def test_the_spool_of_a_running_worker_is_not_replayed_by_another(tmp_path: Path) -> None:
    async with outage_scene(tmp_path) as scene:
        scene.go_away()
        assert await scene.serve() == 1
        with capture_logs() as logs:
            await OrphanReplay(scene.file.path.parent, scene.stage.database.real, "another").run()
        assert logs == []
        assert len(scene.records()) == 1
        await scene.come_back()


async def test_a_worker_does_not_open_its_own_spool_as_an_orphan(tmp_path: Path) -> None:
    async with ledger_scene(tmp_path / "ledger.db") as stage:
        own = SpoolFile.open(spool_path(tmp_path / "spools", "own"))
        own.close()
        await OrphanReplay(tmp_path / "spools", stage.database.real, "own").run()
        assert own.path in set((tmp_path / "spools").iterdir())
        await OrphanReplay(tmp_path / "spools", stage.database.real, "another").run()
        assert list((tmp_path / "spools").iterdir()) == []


async def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    names = {"outage-backup.db", "outage-x.spool.db.damaged", "outage-x.spool.damaged", "ledger-2.spool.db"}
    async with ledger_scene(tmp_path / "ledger.db") as stage:
        folder = tmp_path / "spools"
        for name in names:
            SpoolFile.open(folder / name).close()
        with capture_logs() as logs:
            await OrphanReplay(folder, stage.database.real, "another").run()
        assert logs == []
        assert names <= {path.name for path in folder.iterdir()}


async def test_the_spool_of_another_database_is_left_alone(tmp_path: Path) -> None:
    async with outage_scene(tmp_path / "one") as scene:
        scene.go_away()
        assert await scene.serve() == 1
        crashed = crashed_copy(scene.file.path, tmp_path / "spools", 0)
        await scene.come_back()
    async with outage_scene(tmp_path / "other") as scene:
        orphans = OrphanReplay(tmp_path / "spools", scene.stage.database.real, "another")
        with capture_logs() as logs:
            await orphans.run()
            await orphans.run()
        assert [line["spool"] for line in logs] == [str(crashed)], "it is logged once"
        assert await scene.everything() == ({"ok": 1}, 1)
    file = SpoolFile.open(crashed)
    assert len(decode(file.read()[0])[0]) == 1
    file.close()


async def test_damaged_records_are_left_out_and_the_file_is_kept(tmp_path: Path) -> None:
    async with outage_scene(tmp_path) as scene:
        scene.go_away()
        assert await scene.serve() == 1
        crashed = crashed_copy(scene.file.path, tmp_path / "elsewhere", 0)
        damaged = SpoolFile.open(crashed)
        damaged.append([b"rubbish", b'{"another": "version"}'])
        damaged.close()
        (tmp_path / "elsewhere" / "outage-rubbish.spool.db").write_bytes(b"rubbish" * 1000)
        orphans = OrphanReplay(crashed.parent, scene.stage.database.real, "another")
        with capture_logs() as logs:
            await orphans.run()
            await orphans.run()
        assert [line["log_level"] for line in logs] == ["error", "warning", "error"]
        kept = {path.name for path in crashed.parent.iterdir()}
        assert {name for name in kept if not name.endswith(".lock")} == {
            f"{crashed.name}.damaged",
            "outage-rubbish.spool.db.damaged",
        }
        await scene.come_back()
        assert await scene.everything() == ({"ok": 2}, 2)


async def test_a_request_that_is_cancelled_at_any_step_is_settled_once(tmp_path: Path) -> None:
    async with outage_scene(tmp_path, evolve(LIMITS, requests=TOO_MANY)) as scene:
        scene.go_away()
        assert await scene.serve() == 1
        ends: Counter[str] = Counter()

        async def one(scope: trio.CancelScope) -> None:
            with scope:
                # As in the relay: whatever follows the admission settles it.
                grant = await scene.admit()
                result = VOID
                try:
                    await trio.lowlevel.checkpoint()
                    result = OK
                finally:
                    scene.mode.settle(grant, result)
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
