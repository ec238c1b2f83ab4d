"""Spool files of the previous version. `first_format.spool` was written by its own code."""
# ruff: noqa: ASYNC240 (nothing else runs while a small file is read)

from __future__ import annotations

import fcntl
import shutil
import zlib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from db.database import Database
from db.errors import FileInUse
from db.queries import ledger as queries
from db.queries import projects, tokens
from db.records import VOID, Result
from llm_proxy.ledger import Settlement
from llm_proxy.ledger.outage.first_format import FirstFormatFile
from llm_proxy.ledger.outage.replay import OrphanReplay, decode
from tests.db.queries.factories import a_project, a_token
from tests.ledger.test_transaction import counter, rows

SAMPLE = Path(__file__).with_name("first_format.spool").read_bytes()
LINES = SAMPLE.splitlines(keepends=True)
TOKEN_ID = "0192f0c1-0000-7000-8000-00000000d0d0"
PROJECT_ID = "0192f0c1-0000-7000-8000-00000000a0a0"


def request_id(number: int) -> str:
    return f"0192f0c1-0000-7000-8000-{number:012d}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outage-0192f0c1-0000-7000-8000-00000000beef.spool"


def read(path: Path, data: bytes) -> tuple[list[Settlement], bool]:
    path.write_bytes(data)
    file = FirstFormatFile.open(path)
    try:
        records, damaged = file.read()
    finally:
        file.close()
    found, undecodable = decode(records)
    return found, damaged or undecodable


def test_every_field_of_a_record_is_read(path: Path) -> None:
    found, damaged = read(path, SAMPLE)
    assert not damaged
    assert [settlement.row.id for settlement in found] == [request_id(number) for number in range(1, 5)]
    assert {settlement.digest for settlement in found} == {bytes(range(32))}
    ended, running, void, refused = (settlement.row for settlement in found)
    assert ended.result == Result(
        outcome="ok",
        status=200,
        model="gpt-5.4-mini",
        streamed=True,
        first_byte_us=120000,
        duration_us=900000,
        request_bytes=300,
        response_bytes=4000,
        input_tokens=12,
        output_tokens=34,
        cached_tokens=5,
        provider_request_id="req_1",
    )
    assert ended.reservation.admitted_at == datetime(2026, 11, 28, 12, 0, 1, 123456, tzinfo=UTC)
    assert ended.settled_at == datetime(2026, 11, 28, 12, 1, 1, 654321, tzinfo=UTC)
    assert ended.reservation.token_id == TOKEN_ID
    assert running.result.outcome == "unknown"
    assert running.reservation.path == "/v1/chat/completions"
    assert void.result.outcome == VOID.outcome
    assert (refused.result.status, refused.result.unmetered) == (404, True)


async def test_a_file_of_a_stopped_worker_is_replayed_once(database: Database, path: Path) -> None:
    project = evolve(a_project(), id=PROJECT_ID)
    token = evolve(a_token(PROJECT_ID), id=TOKEN_ID, digest=bytes(range(32)))
    await database.write(projects.create, project)
    await database.write(tokens.create, token)
    replay = OrphanReplay(path.parent, database, "another")
    for _ in range(2):
        path.write_bytes(SAMPLE)
        with capture_logs() as logs:
            await replay.run()
        assert [(line["requests"], line["unsettled"]) for line in logs] == [(4, 1)]
        assert not path.exists()
        assert rows(database) == (1, {"ok": 1, "void": 1, "rejected": 1})
        assert counter(database, token) == 3
        assert await database.read(queries.verify) == []


async def test_a_file_of_a_running_worker_is_left_alone(database: Database, path: Path) -> None:
    path.write_bytes(SAMPLE)
    with path.open("rb") as worker:
        fcntl.flock(worker, fcntl.LOCK_EX)
        with pytest.raises(FileInUse):
            FirstFormatFile.open(path)
        with capture_logs() as logs:
            await OrphanReplay(path.parent, database, "another").run()
    assert logs == []
    assert path.read_bytes() == SAMPLE


async def test_an_empty_file_is_removed_silently(database: Database, path: Path) -> None:
    path.touch()
    with capture_logs() as logs:
        await OrphanReplay(path.parent, database, "another").run()
    assert (logs, list(path.parent.iterdir())) == ([], [])


def test_a_file_without_its_name_is_still_read(path: Path) -> None:
    """Another worker was faster, and has removed it."""
    path.write_bytes(SAMPLE)
    file = FirstFormatFile.open(path)
    path.unlink()
    assert len(file.read()[0]) == len(LINES)
    file.remove()
    file.close()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spools") / "outage-x.spool"


@given(cut=st.integers(0, len(SAMPLE)))
def test_a_file_that_is_cut_off_anywhere_has_all_its_whole_lines(scratch: Path, cut: int) -> None:
    # A line without its line break is whole.
    whole = SAMPLE[:cut].count(b"\n") + (SAMPLE[cut : cut + 1] == b"\n")
    assert read(scratch, SAMPLE[:cut]) == read(scratch, b"".join(LINES[:whole]))


@given(bit=st.integers(0, 8 * len(SAMPLE) - 1))
def test_a_changed_bit_costs_one_line_at_most(scratch: Path, bit: int) -> None:
    data = bytearray(SAMPLE)
    data[bit // 8] ^= 1 << bit % 8
    found, _ = read(scratch, bytes(data))
    possible = [read(scratch, SAMPLE)[0]]
    possible += [read(scratch, b"".join(LINES[:at] + LINES[at + 1 :]))[0] for at in range(len(LINES))]
    assert found in possible


def test_a_damaged_line_in_the_middle_is_reported(path: Path) -> None:
    found, damaged = read(path, LINES[0][:60] + b"\n" + b"".join(LINES[1:]))
    assert (len(found), damaged) == (4, True)


def test_a_line_of_another_kind_is_damage(path: Path) -> None:
    body = b'{"type":"another","row":{}}'
    length = b"%08x" % len(body)
    line = b"%s %08x %s\n" % (length, zlib.crc32(length + body), body)
    found, damaged = read(path, line + SAMPLE)
    assert (len(found), damaged) == (4, True)


def test_a_damaged_file_is_kept_under_another_name(path: Path) -> None:
    shutil.copy(Path(__file__).with_name("first_format.spool"), path)
    file = FirstFormatFile.open(path)
    file.remove(damaged=True)
    file.close()
    assert [one.name for one in path.parent.iterdir()] == [path.name + ".damaged"]
