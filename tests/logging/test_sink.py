from __future__ import annotations

import os
import select
import socket
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from llm_proxy.logging.sink import LogError, Sink


def test_a_line_after_one_that_was_cut_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[bytes] = []

    def put(line: bytes) -> int:
        taken.append(line[:5])
        return len(taken[-1])

    sink = Sink(None)
    with closing(sink):
        monkeypatch.setattr(sink, "_put", put)
        for line in (b"one\n", b"too long\n", b"two\n", b"six\n"):
            sink.write(line, 0)
    assert b"".join(taken) == b"one\ntoo l\ntwo\nsix\n"
    assert sink.lost == 1


def test_held_lines_are_written_together_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "proxy.log"
    sink = Sink(path)
    put, calls = sink._put, []

    def count(text: bytes) -> int:
        calls.append(text)
        return put(text)

    monkeypatch.setattr(sink, "_put", count)
    monkeypatch.setattr(select, "PIPE_BUF", 4096)
    line = b"x" * 999 + b"\n"
    with closing(sink):
        sink.write(b"zero\n", 7)
        for number in range(9):
            sink.hold(b"%d" % number + line, 7)
        assert path.read_bytes() == b"zero\n"
        sink.flush()
        assert [len(text) for text in calls] == [5, 4004, 4004, 1001]  # at most what a pipe takes whole
        sink.hold(b"one\n", 7)
        sink.write(b"two\n", 7)
        sink.hold(b"three\n", 7)
    assert path.read_bytes().endswith(b"8" + line + b"one\ntwo\nthree\n")
    assert sink.lost == 0


def test_each_line_that_is_cut_or_refused_is_lost_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[bytes] = []

    def put(text: bytes) -> int:
        if not taken or taken[-1] == b"":
            taken.append(text[:6])
        else:
            taken.append(b"")
            raise BlockingIOError
        return len(taken[-1])

    sink = Sink(None)
    with closing(sink):
        sink.write(b"", 0)
        taken.clear()
        monkeypatch.setattr(sink, "_put", put)
        for _ in range(2):
            for line in (b"one\n", b"two\n", b"six\n"):
                sink.hold(line, 0)
            sink.flush()
    assert taken == [b"one\ntw", b""]
    assert sink.lost == 5


@pytest.mark.parametrize("kind", ["FIFO that no process reads", "socket"])
def test_a_log_file_that_would_wait_for_a_reader_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "log"
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "socket":
            listener.bind(str(place))
        else:
            os.mkfifo(place)
        with pytest.raises(LogError, match=rf"{place} cannot be opened: it is a {kind}; set LOG_FILE to a file, "):
            Sink(place)


def test_a_fifo_with_a_reader_is_a_log_file_and_loses_lines_when_the_reader_leaves(tmp_path: Path) -> None:
    fifo = tmp_path / "log"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    sink = Sink(fifo)
    with closing(sink):
        sink.write(b"one\n", 0)
        assert os.read(reader, 100) == b"one\n"
        os.close(reader)
        sink.write(b"two\n", 0)
    assert sink.lost == 1


def test_two_threads_that_notice_a_rotation_at_once_close_the_old_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "proxy.log"
    both_opening = threading.Barrier(2, timeout=0.2)
    closed: list[int] = []
    open_file, close_file = os.open, os.close

    def open_together(*arguments: Any) -> int:
        with suppress(threading.BrokenBarrierError):
            both_opening.wait()
        return open_file(*arguments)

    def close(descriptor: int) -> None:
        closed.append(descriptor)
        close_file(descriptor)

    monkeypatch.setattr(os, "close", close)
    sink = Sink(path)
    with closing(sink):
        path.rename(path.with_suffix(".1"))
        monkeypatch.setattr(os, "open", open_together)
        writers = [threading.Thread(target=sink.write, args=(b"{}\n", second)) for second in (1, 2)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
    assert (len(closed), len(set(closed)), sink.lost) == (2, 2, 0)
    assert path.read_text() == "{}\n{}\n"
