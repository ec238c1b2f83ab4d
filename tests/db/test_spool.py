from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from db.errors import Contention, FileInUse, Unavailable
from db.spool import SpoolFile

#: Writes records until it is killed, and prints the number of each one that is on the disk.
WRITER = """
import sys
from pathlib import Path
from db.spool import SpoolFile

file = SpoolFile.open(Path(sys.argv[1]))
number = 0
while True:
    file.append([b"%d" % number, b"x" * (number % 5000)])
    print(number, flush=True)
    number += 1
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spools" / "outage-x.db"


@pytest.fixture
def file(path: Path) -> Iterator[SpoolFile]:
    opened = SpoolFile.open(path)
    yield opened
    opened.close()


def copy(path: Path, folder: Path) -> Path:
    """Copy an open spool as a killed process would leave it."""
    folder.mkdir()
    for suffix in ("", "-wal"):
        shutil.copyfile(path.with_name(path.name + suffix), folder / (path.name + suffix))
    return folder / path.name


def reread(path: Path) -> tuple[list[bytes], bool]:
    opened = SpoolFile.open(path)
    try:
        return opened.read()
    finally:
        opened.close()


def test_only_its_owner_can_read_any_of_its_files(file: SpoolFile) -> None:
    file.append([b"a"])
    folder = file.path.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == dict.fromkeys(
        (file.path.name + suffix for suffix in ("", "-wal", "-shm", ".lock")), 0o600
    )


def test_a_commit_waits_for_the_disk(file: SpoolFile) -> None:
    full = 2  # sqlite.org, "PRAGMA synchronous"
    found = file._database.write_now(lambda connection: connection.exec_driver_sql("PRAGMA synchronous").scalar_one())
    assert found == full


def test_records_are_read_in_the_order_in_which_they_were_written(file: SpoolFile) -> None:
    expected = [b"%d" % number for number in range(1200)]
    file.append(expected[:700])
    file.append(expected[700:])
    file.append([])
    assert file.read() == (expected, False)


def test_a_spool_has_one_owner_until_it_is_closed(file: SpoolFile) -> None:
    file.append([b"a"])
    with pytest.raises(FileInUse):
        SpoolFile.open(file.path)
    file.close()
    assert reread(file.path) == ([b"a"], False)


def test_a_removed_spool_leaves_nothing_behind_even_if_it_is_closed_later(file: SpoolFile) -> None:
    file.append([b"a"])
    file.remove()
    assert list(file.path.parent.iterdir()) == []
    file.close()
    assert list(file.path.parent.iterdir()) == []


def test_emptied_and_written_in_one_transaction(file: SpoolFile) -> None:
    file.append([b"a", b"b"])
    file.append([b"c"], from_empty=True)
    assert file.read() == ([b"c"], False)
    file.append([], from_empty=True)
    assert file.read() == ([], False)


def test_a_spool_that_cannot_be_created_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match=r"outage-x\.db cannot be created: Not a directory"):
        SpoolFile.open(tmp_path / "file" / "spools" / "outage-x.db")


def test_a_spool_that_sqlite_cannot_use_says_why_and_names_no_other_setting(file: SpoolFile) -> None:
    file.close()
    os.link(file.path, file.path.with_name("another"))
    with pytest.raises(Unavailable, match=r"^/\S+outage-x\.db has 2 names \(hard links\)[^;]*$"):
        SpoolFile.open(file.path)


def test_a_full_disk_leaves_what_was_written_before(file: SpoolFile) -> None:
    file.append([b"a"])
    file._database.write_now(lambda connection: connection.exec_driver_sql("PRAGMA max_page_count = 1").close())
    with pytest.raises(Unavailable, match=r"outage-x\.db: the disk is full"):
        file.append([b"b", b"x" * 10_000])
    assert file.read() == ([b"a"], False)


def test_a_file_that_another_program_locks_is_refused_in_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("db.dialects.sqlite.BUSY_TIMEOUT", 0.01)
    file = SpoolFile.open(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Contention):
            file.append([b"a"])
    file.close()


def test_a_crash_at_any_byte_of_a_write_keeps_all_earlier_records(file: SpoolFile, tmp_path: Path) -> None:
    sizes: list[int] = []
    log = file.path.with_name(file.path.name + "-wal")
    for number in range(4):
        file.append([b"%d" % number])
        sizes.append(log.stat().st_size)
    for step, at in enumerate(range(0, sizes[-1] + 1, 509)):
        crashed = copy(file.path, tmp_path / f"crash-{step}")
        os.truncate(crashed.with_name(crashed.name + "-wal"), at)
        whole = sum(size <= at for size in sizes)
        assert reread(crashed) == ([b"%d" % number for number in range(whole)], False)


@pytest.mark.parametrize("written", [1, 20, 300])
def test_a_killed_process_loses_no_record_and_doubles_none(path: Path, written: int) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(written):
            writer.stdout.readline()
        writer.kill()
        # The pipe keeps what was printed before.
        last = int((writer.stdout.read().split() or [str(written - 1)])[-1])
    records, damaged = reread(path)
    numbers = [int(record) for record in records[::2]]
    assert not damaged
    assert numbers == list(range(len(numbers)))
    assert len(numbers) - 1 in (last, last + 1), "one more may have been written than printed"


def test_a_file_that_is_no_database_is_kept_under_another_name(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"rubbish" * 1000)
    with pytest.raises(Unavailable, match="not a SQLite database"):
        SpoolFile.open(path)
    assert [one.name for one in path.parent.iterdir() if one.suffix != ".lock"] == [path.name + ".damaged"]
    assert reread(path) == ([], False)


def test_a_damaged_page_costs_only_the_records_behind_it(file: SpoolFile) -> None:
    expected = [b"%d" % number + b"x" * 1000 for number in range(2000)]
    file.append(expected)
    file.close()
    with file.path.open("r+b") as raw:
        raw.seek(-40_000, os.SEEK_END)
        raw.write(b"\xff" * 8192)
    opened = SpoolFile.open(file.path)
    found, damaged = opened.read()
    assert damaged
    assert 500 < len(found) < 2000
    assert found == expected[: len(found)]
    opened.remove(damaged=True)
    opened.close()
    assert [one.name for one in file.path.parent.iterdir()] == [file.path.name + ".damaged"]
