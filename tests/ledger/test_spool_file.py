from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from llm_proxy.identifiers import new_id
from llm_proxy.ledger.outage import spool_file
from llm_proxy.ledger.outage.spool import Spool
from llm_proxy.ledger.outage.spool_file import SpoolError, SpoolFile, orphans
from llm_proxy.ledger.outage.spool_lines import encode
from tests.ledger.test_spool_lines import admitted


@pytest.fixture
def file(tmp_path: Path) -> SpoolFile:
    return SpoolFile.create(tmp_path / "spools", new_id())


def fail_with(number: int) -> Callable[..., int]:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


def test_only_its_owner_can_read_it(file: SpoolFile) -> None:
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700
    file.close()


def test_a_spool_is_an_orphan_once_its_lock_is_gone(file: SpoolFile) -> None:
    folder = file.path.parent
    assert list(orphans(folder)) == []
    file.append(encode(admitted()))
    file.close()
    (orphan,) = orphans(folder)
    assert len(orphan.read()) == 1
    assert list(orphans(folder)) == [], "who has it keeps all others away"
    orphan.remove()
    orphan.close()
    assert list(folder.iterdir()) == []


def test_a_damaged_orphan_is_kept_for_people_and_read_once(file: SpoolFile) -> None:
    file.close()
    (orphan,) = orphans(file.path.parent)
    orphan.remove(keep_damaged=True)
    orphan.close()
    assert list(orphans(file.path.parent)) == []
    assert [path.suffix for path in file.path.parent.iterdir()] == [".damaged"]


def test_a_file_that_was_taken_for_an_orphan_while_it_was_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = spool_file._locked
    stolen: list[Path] = []

    def steal_first(descriptor: int, path: Path) -> bool:
        if not stolen:
            stolen.append(path)
            path.unlink()
        return locked(descriptor, path)

    monkeypatch.setattr(spool_file, "_locked", steal_first)
    file = SpoolFile.create(tmp_path, new_id())
    assert stolen == [file.path]
    assert file.path.exists()
    file.close()


def test_there_may_be_no_folder(tmp_path: Path) -> None:
    assert list(orphans(tmp_path / "nowhere")) == []


def test_a_spool_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SpoolError, match=r"outage-x\.spool cannot be made: Not a directory"):
        SpoolFile.create(tmp_path / "file" / "spools", "x")


@pytest.mark.parametrize("step", ["write", "fsync"])
def test_a_write_that_fails_leaves_nothing_behind(file: SpoolFile, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    file.append(encode(admitted()))
    if step == "write":
        # The disk takes a part of it.
        write, full = os.write, fail_with(errno.ENOSPC)

        def write_a_part(descriptor: int, data: bytes) -> int:
            monkeypatch.setattr(os, "write", full)
            return write(descriptor, bytes(data)[:40])

        monkeypatch.setattr(os, "write", write_a_part)
    else:
        monkeypatch.setattr(os, "fsync", fail_with(errno.ENOSPC))
    with pytest.raises(SpoolError, match=r"\.spool cannot be written: No space left on device"):
        file.append(encode(admitted()))
    monkeypatch.undo()
    contents = file.read()
    assert (len(contents), contents.damages) == (1, [])
    file.close()


def test_emptied_and_written_in_one_go(file: SpoolFile) -> None:
    file.append(encode(admitted()))
    line = admitted()
    file.append(encode(line), from_empty=True)
    assert list(file.read().reservations) == [line.reservation.id]
    file.close()


async def test_those_who_wait_share_an_fsync(file: SpoolFile, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    sync = os.fsync

    def count(descriptor: int) -> None:
        synced.append(descriptor)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", count)
    spool = Spool(file)

    async def write() -> None:
        spool.append(encode(admitted()))
        await spool.written()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(spool.run)
        async with trio.open_nursery() as writers:
            for _ in range(100):
                writers.start_soon(write)
        assert len(file.read()) == 100
        nursery.cancel_scope.cancel()
    assert 1 <= len(synced) <= 3
    file.close()


async def test_nothing_is_written_after_a_failure_until_it_is_emptied(
    file: SpoolFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(file)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(spool.run)
        monkeypatch.setattr(os, "fsync", fail_with(errno.EIO))
        spool.append(encode(admitted()))
        with pytest.raises(SpoolError):
            await spool.written()
        monkeypatch.undo()
        spool.append(encode(admitted()))
        with pytest.raises(SpoolError):
            await spool.written()
        assert len(file.read()) == 0
        await spool.empty()
        spool.append(encode(admitted()))
        await spool.written()
        assert len(file.read()) == 1
        nursery.cancel_scope.cancel()
    file.close()
