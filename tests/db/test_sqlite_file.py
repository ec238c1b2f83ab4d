from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, insert, select

from db import Connection
from db.database import open_database, opened
from db.dialects.sqlite import location
from db.dsn import Target
from db.errors import BadDsn, Contention, FileInUse, Unavailable
from db.options import Options

METADATA = MetaData()
ROWS = Table("rows_of_test", METADATA, Column("id", Integer, primary_key=True))


def add(connection: Connection, number: int) -> None:
    connection.execute(insert(ROWS), [{"id": number}])


def numbers(connection: Connection) -> list[int]:
    return list(connection.scalars(select(ROWS.c.id).order_by(ROWS.c.id)))


def pragma(connection: Connection, name: str) -> object:
    return connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()


def lock_of(connection: Connection) -> sqlite3.Connection:
    raw = connection.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)
    return raw


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return Target("sqlite", path=tmp_path / "new" / "folder" / "llm-proxy.db")


def path_of(target: Target) -> Path:
    assert target.path is not None
    return target.path


def test_a_second_process_is_refused(target: Target) -> None:
    with opened(target, Options()):
        program = (
            "import sys; from pathlib import Path; from db.database import opened; from db.dsn import Target;"
            "from db.errors import FileInUse; from db.options import Options\n"
            "try:\n"
            "    opened(Target('sqlite', path=Path(sys.argv[1])), Options()).__enter__()\n"
            "except FileInUse as error:\n"
            "    print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(target.path)], capture_output=True, text=True, check=True, timeout=30
        )
    assert f"(pid {os.getpid()})" in done.stdout
    assert str(target.path) in done.stdout
    assert "one process per SQLite file" in done.stdout


def test_so_is_a_second_opening_in_the_same_process(target: Target) -> None:
    with opened(target, Options()), pytest.raises(FileInUse), opened(target, Options()):
        pass
    with opened(target, Options()):
        pass


def test_a_process_that_was_killed_leaves_no_lock(target: Target) -> None:
    program = (
        "import os, sys; from pathlib import Path; from db.database import opened; from db.dsn import Target;"
        "from db.options import Options\n"
        "with opened(Target('sqlite', path=Path(sys.argv[1])), Options()): os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(target.path)], check=False, timeout=30)
    assert done.returncode == -9
    with opened(target, Options()) as database:
        database.write_now(METADATA.create_all)


def test_others_may_read_beside_the_owner(target: Target) -> None:
    with opened(target, Options()) as owner:
        owner.write_now(METADATA.create_all)
        owner.write_now(add, 1)
        with opened(target, Options(), exclusive=False) as guest:
            assert guest.read_now(numbers) == [1]
            owner.write_now(add, 2)
            assert guest.read_now(numbers) == [1, 2]
            with pytest.raises(Unavailable, match="can only be read"):
                guest.write_now(add, 3)
        owner.write_now(add, 4)
    with opened(target, Options(), exclusive=False) as guest:
        assert guest.read_now(numbers) == [1, 2, 4]
    with opened(target, Options()) as owner:
        assert owner.read_now(numbers) == [1, 2, 4]


def test_a_guest_makes_no_file(target: Target) -> None:
    with pytest.raises(Unavailable, match="cannot be opened"), opened(target, Options(), exclusive=False):
        pass
    assert not path_of(target).exists()


def test_files_are_for_their_owner_alone(target: Target) -> None:
    path = path_of(target)
    with opened(target, Options()) as database:
        database.write_now(METADATA.create_all)
        modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in path.parent.iterdir()}
    assert modes == dict.fromkeys([path.name + end for end in ("", "-wal", "-shm", ".lock")], 0o600)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_file_that_others_could_read_is_closed_to_them(target: Target) -> None:
    path = path_of(target)
    path.parent.mkdir(parents=True)
    path.touch(0o644)
    with opened(target, Options()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_existing_folder_stays_as_it_is(target: Target) -> None:
    folder = path_of(target).parent
    folder.mkdir(parents=True, mode=0o755)
    with opened(target, Options()):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o755


@pytest.mark.parametrize(("synchronous", "number"), [("FULL", 2), ("NORMAL", 1)])
def test_how_durable_a_commit_is(target: Target, synchronous: str, number: int) -> None:
    options = Options(sqlite_synchronous="FULL" if synchronous == "FULL" else "NORMAL")
    with opened(target, options) as database:
        assert database.write_now(pragma, "synchronous") == number
        assert database.write_now(pragma, "journal_mode") == "wal"
        assert database.write_now(pragma, "foreign_keys") == 1


def test_the_log_is_folded_in_at_the_end(target: Target) -> None:
    path = path_of(target)
    with opened(target, Options()) as database:
        database.write_now(METADATA.create_all)
        database.read_now(numbers)
    assert sorted(entry.name for entry in path.parent.iterdir()) == [path.name, path.name + ".lock"]


async def test_another_program_that_holds_the_file_is_contention(target: Target) -> None:
    calls: list[Connection] = []
    async with open_database(target, Options()) as database:
        await database.write(lambda connection: lock_of(connection).execute("PRAGMA busy_timeout = 1").close())
        shell = sqlite3.connect(path_of(target), isolation_level=None)
        shell.execute("BEGIN IMMEDIATE")
        with pytest.raises(Contention, match="locked by another program"):
            await database.write(calls.append)
        assert calls == []
        shell.close()
        await database.write(calls.append)
        assert len(calls) == 1


def pretend(monkeypatch: pytest.MonkeyPatch, proc: Path, place: Path, kind: str) -> None:
    """Let the file system that holds `place` be of another type."""
    real = location.mount_of(place)
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    mine = next(line for line in lines if line.startswith(f"{real.number} "))
    changed = mine.replace(f" - {real.kind} ", f" - {kind} ")
    proc.mkdir()
    (proc / "fdinfo").symlink_to("/proc/self/fdinfo")
    (proc / "mountinfo").write_text("\n".join(changed if line == mine else line for line in lines))
    monkeypatch.setattr(location, "_PROC", proc)


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "ceph", "lustre", "fuse.sshfs", "fuse.s3fs", "fuse.rclone"])
def test_a_network_file_system_is_refused(
    target: Target, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, tmp_path / "proc", tmp_path, kind)
    for exclusive in (True, False):
        with (
            pytest.raises(BadDsn, match=f"is on a network file system \\({kind}\\), where SQLite's write-ahead log"),
            opened(target, Options(), exclusive=exclusive),
        ):
            pass
        path_of(target).touch()


@pytest.mark.parametrize("kind", ["9p", "vboxsf", "drvfs"])
def test_a_folder_of_the_host_is_refused(
    target: Target, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, tmp_path / "proc", tmp_path, kind)
    with pytest.raises(BadDsn, match=f"of the machine that hosts this one \\({kind}\\)"), opened(target, Options()):
        pass


@pytest.mark.parametrize("kind", ["ext4", "overlay", "tmpfs", "xfs", "virtiofs", "fuseblk", "fuse.fuse-overlayfs"])
def test_what_is_on_this_machine_is_not(
    target: Target, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, tmp_path / "proc", tmp_path, kind)
    assert location.mount_of(tmp_path).kind == kind
    with opened(target, Options()):
        pass


def test_a_symbolic_link_does_not_hide_the_file_system(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What counts is where the file is, not where its name is."""
    link = tmp_path / "link.db"
    link.symlink_to("/proc/self/there-is-no-such-file.db")
    with pytest.raises(Unavailable, match="cannot be opened"), opened(Target("sqlite", path=link), Options()):
        pass
    path_of(target).parent.mkdir(parents=True)
    link.unlink()
    link.symlink_to(path_of(target))
    pretend(monkeypatch, tmp_path / "proc", tmp_path, "nfs4")
    with (
        pytest.raises(BadDsn, match=f"{path_of(target)} is on a network"),
        opened(Target("sqlite", path=link), Options()),
    ):
        pass


def test_a_link_that_leads_to_itself(tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(link)
    with pytest.raises(BadDsn, match="leads back to itself"), opened(Target("sqlite", path=link), Options()):
        pass


def test_where_the_system_does_not_tell_it_is_trusted(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(location, "_PROC", tmp_path / "none")
    assert location.mount_of(tmp_path).kind == ""
    with opened(target, Options()):
        pass


def test_the_file_system_of_a_folder(tmp_path: Path) -> None:
    assert location.mount_of(Path("/proc/self")).kind == "proc"
    assert location.mount_of(tmp_path).kind not in ("", "proc")


def test_a_file_that_is_mounted_alone_is_refused(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its log and its lock would stay in the container, where others who mount it do not see them."""
    path = path_of(target)
    with opened(target, Options()):
        pass
    mount_of = location.mount_of
    alone = location.Mount(-1, "ext4")
    monkeypatch.setattr(location, "mount_of", lambda place: alone if place == path else mount_of(place))
    with pytest.raises(BadDsn, match="mounted as a single file"), opened(target, Options()):
        pass


def test_another_name_leads_to_the_same_lock(target: Target, tmp_path: Path) -> None:
    names = [tmp_path / "link.db", tmp_path / "folder" / "llm-proxy.db"]
    with opened(target, Options()):
        names[0].symlink_to(path_of(target))
        names[1].parent.symlink_to(path_of(target).parent)
        for name in names:
            with (
                pytest.raises(FileInUse, match=f"pid {os.getpid()}\\) is using {name}; one process"),
                opened(Target("sqlite", path=name), Options()),
            ):
                pass
    for name in names:
        with opened(Target("sqlite", path=name), Options()):
            assert not (tmp_path / "link.db-wal").exists()


def test_a_second_hard_link_is_refused(target: Target, tmp_path: Path) -> None:
    """The log belongs to one name; who came by the other would not see it."""
    name = tmp_path / "other.db"
    with opened(target, Options()):
        name.hardlink_to(path_of(target))
        for exclusive in (True, False):
            with (
                pytest.raises(BadDsn, match=f"{name} has 2 names .*-samefile {name}"),
                opened(Target("sqlite", path=name), Options(), exclusive=exclusive),
            ):
                pass
    with pytest.raises(BadDsn, match="has 2 names"), opened(target, Options()):
        pass
    name.unlink()
    with opened(target, Options()):
        pass


def test_a_process_on_another_host_is_named_with_it(target: Target) -> None:
    """The same folder in two containers: numbers of processes say nothing by themselves."""
    with opened(target, Options()):
        path_of(target).with_name("llm-proxy.db.lock").write_text("7 web-2\n")
        with pytest.raises(FileInUse, match=r"another llm-proxy process \(pid 7 on web-2\) is using"):
            opened(target, Options()).__enter__()


def test_an_owner_who_comes_and_goes_leaves_a_reader_of_the_same_process_its_locks(target: Target) -> None:
    """Else SQLite would take the owner for the last one, and throw the log away under the reader."""
    with opened(target, Options()) as owner:
        owner.write_now(METADATA.create_all)
    with opened(target, Options(), exclusive=False) as guest:
        for number in range(3):
            assert guest.read_now(numbers) == list(range(number))
            with opened(target, Options()) as owner:
                owner.write_now(add, number)


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(BadDsn, match="is a folder"), opened(Target("sqlite", path=tmp_path), Options()):
        pass


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    target = Target("sqlite", path=tmp_path / "file" / "x.db")
    with pytest.raises(BadDsn, match="must be a folder"), opened(target, Options()):
        pass


def test_a_file_that_is_moved_away_is_noticed_and_so_is_its_return(target: Target, tmp_path: Path) -> None:
    path = path_of(target)
    with opened(target, Options()) as database:
        database.write_now(METADATA.create_all)
        away = path.rename(tmp_path / "away.db")
        for run in (database.write_now, database.read_now):
            with pytest.raises(Unavailable, match=f"{path} was deleted or replaced"):
                run(numbers)
        path.touch()
        with pytest.raises(Unavailable, match="was deleted or replaced"):
            database.write_now(numbers)
        away.replace(path)
        assert database.write_now(numbers) == []


def test_a_log_that_is_deleted_is_noticed_and_stopping_keeps_what_it_holds(target: Target) -> None:
    path = path_of(target)
    with opened(target, Options()) as database:
        database.write_now(METADATA.create_all)
        database.write_now(add, 1)
        path.with_name(path.name + "-wal").unlink()
        with pytest.raises(Unavailable, match="-wal was deleted or replaced"):
            database.write_now(add, 2)
    with opened(target, Options()) as database:
        assert database.read_now(numbers) == [1]
