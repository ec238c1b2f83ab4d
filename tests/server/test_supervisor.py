from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from attrs import define

from llm_proxy.health.readiness import READY_TIMEOUT
from llm_proxy.server.supervisor import _KILL_MARGIN, ATTEMPTS
from llm_proxy.services import DRAIN_TIMEOUT

ROOT = Path(__file__).parents[2]
TIMEOUT = 15.0
"""Timeout in seconds, for a busy machine."""


@define
class Program:
    process: subprocess.Popen[str]
    port: int

    def ask(self, path: str = "/") -> int:
        """Return the id of the process that answers; wait until the first worker listens."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
            try:
                connection.request("GET", path)
                return int(connection.getresponse().read())
            except ConnectionError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.01)
            finally:
                connection.close()

    def ask_once(self) -> int:
        """Return the id of the process that answers; a refused or broken connection is an error."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        try:
            connection.request("GET", "/")
            return int(connection.getresponse().read())
        finally:
            connection.close()

    def children(self) -> set[int]:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return {int(child) for child in path.read_text().split()}

    def workers(self, count: int, other_than: frozenset[int] = frozenset()) -> set[int]:
        """Wait until this number of workers have answered, and return their ids."""
        deadline = time.monotonic() + TIMEOUT
        seen: set[int] = set()
        while len(seen) < count:
            assert time.monotonic() < deadline
            seen |= {self.ask()} & self.children() - other_than
        return seen

    def hold(self) -> http.client.HTTPConnection:
        """Send a request that never ends, and wait until a worker has begun it."""
        self.ask()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        connection.request("GET", "/hold")
        time.sleep(0.2)
        return connection


@contextmanager
def program(workers: int, *, grace: float = 10, mode: str = "", broken: Path | None = None) -> Iterator[Program]:
    command = [sys.executable, "-m", "tests.server.supervisor_target", str(workers), str(grace)]
    env = os.environ | {"MODE": mode} | ({} if broken is None else {"BROKEN": str(broken)})
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        assert process.stdout is not None
        started = Program(process, int(process.stdout.readline()))
        try:
            yield started
        finally:
            if process.poll() is None:
                for child in started.children():
                    os.kill(child, signal.SIGKILL)
                process.kill()


def has_ended(pid: int) -> bool:
    """Whether a process has ended, also if it is a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_ends_supervisor_and_workers_with_status_0(workers: int, number: signal.Signals) -> None:
    with program(workers) as running:
        pids = running.workers(workers) if workers else {running.ask()}
        running.process.send_signal(number)
        assert running.process.wait(TIMEOUT) == 0
        assert all(has_ended(pid) for pid in pids)


def test_workers_share_one_port_and_dead_workers_are_replaced() -> None:
    with program(2) as running:
        before = running.workers(2)
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        after = running.workers(2, other_than=frozenset({victim}))
        assert len(after & before) == 1
        running.process.terminate()
        assert running.process.wait(TIMEOUT) == 0
        assert running.process.stderr is not None
        assert f"worker {victim} ended by SIGKILL; another one starts in 0.1 s" in running.process.stderr.read()


@pytest.mark.parametrize("reader", ["closed", "stopped"])
def test_a_supervisor_does_not_wait_for_a_reader_of_stderr(reader: str) -> None:
    with program(2) as running:
        before = running.workers(2)
        assert running.process.stderr is not None
        if reader == "closed":
            running.process.stderr.close()
        else:
            fill(running.process.stderr.fileno())
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        running.workers(2, other_than=frozenset({victim}))
        running.process.send_signal(signal.SIGHUP)
        running.workers(2, other_than=frozenset(before))
        running.process.terminate()
        assert running.process.wait(TIMEOUT) == 0


@pytest.mark.parametrize("reader", ["closed", "stopped"])
def test_a_supervisor_gives_up_for_any_reader_of_stderr(reader: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    with program(2, broken=broken) as running:
        running.workers(2)
        assert running.process.stderr is not None
        broken.touch()
        if reader == "closed":
            running.process.stderr.close()
        else:
            fill(running.process.stderr.fileno())
        for worker in running.children():
            os.kill(worker, signal.SIGKILL)
        assert running.process.wait(TIMEOUT) == 1


def fill(pipe: int) -> None:
    """Fill a pipe, through its reader's end."""
    writer = os.open(f"/proc/self/fd/{pipe}", os.O_WRONLY | os.O_NONBLOCK)
    for size in (4096, 1):
        with suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * size)
    os.close(writer)


def test_a_worker_that_ends_by_itself_is_replaced() -> None:
    with program(1) as running:
        first = running.ask()
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=TIMEOUT)
        connection.request("GET", "/die")
        with pytest.raises(ConnectionError):
            connection.getresponse()
        connection.close()
        assert running.ask() != first
        running.process.terminate()
        assert running.process.wait(TIMEOUT) == 0


def test_a_supervisor_gives_up_if_no_worker_can_start() -> None:
    with program(2, mode="broken") as running:
        assert running.process.wait(TIMEOUT) == 1
        assert running.process.stderr is not None
        messages = running.process.stderr.read()
    assert messages.count("RuntimeError: no worker can start") == 6
    for pause in ("0.1", "0.2", "0.4"):
        assert messages.count(f"ended with status 1; another one starts in {pause} s") == 2
    assert messages.endswith("no worker could be started\n")


def test_a_supervisor_does_not_give_up_if_workers_are_killed() -> None:
    with program(1) as running:
        for _ in range(ATTEMPTS + 1):
            os.kill(running.ask(), signal.SIGKILL)
        running.ask()
        running.process.terminate()
        assert running.process.wait(TIMEOUT) == 0


def test_a_worker_with_an_error_makes_the_status_1() -> None:
    with program(1, mode="sour") as running:
        running.ask()
        running.process.terminate()
        assert running.process.wait(TIMEOUT) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_second_interrupt_kills_the_workers(workers: int) -> None:
    with program(workers, grace=1000) as running:
        held = running.hold()
        running.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert running.process.poll() is None
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(TIMEOUT) == workers  # workers had to be killed
        held.close()


def test_requests_finish_after_an_interrupt_of_the_process_group() -> None:
    """Ctrl-C reaches the workers too; they must not count it as a second interrupt."""
    with program(1, grace=0.5) as running:
        held = running.hold()
        (worker,) = running.children()
        for pid in (worker, running.process.pid):
            os.kill(pid, signal.SIGINT)
        time.sleep(0.2)
        assert not has_ended(worker)
        assert running.process.wait(TIMEOUT) == 0
        held.close()


def test_a_supervisor_waits_longer_than_the_last_settlements_may_take() -> None:
    needed = DRAIN_TIMEOUT + READY_TIMEOUT
    assert needed < _KILL_MARGIN
    schema = json.loads((ROOT / "helm/llm-proxy/values.schema.json").read_text())
    assert needed < schema["properties"]["shutdown"]["properties"]["marginSeconds"]["minimum"]


def test_workers_end_if_their_supervisor_is_killed() -> None:
    with program(2) as running:
        pids = running.workers(2)
        running.process.kill()
        running.process.wait(TIMEOUT)
        deadline = time.monotonic() + TIMEOUT
        while not all(has_ended(pid) for pid in pids):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_workers_are_replaced_one_by_one_without_refused_connections() -> None:
    with program(2, grace=1) as running:
        before = running.workers(2)
        held = running.hold()
        running.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 3 * TIMEOUT
        answered: set[int] = set()
        while not (answered - before and running.children().isdisjoint(before)):
            assert time.monotonic() < deadline
            answered.add(running.ask_once())
        held.close()
        assert len(running.workers(2, other_than=frozenset(before))) == 2
        running.process.terminate()
        assert running.process.wait(TIMEOUT) == 0
        assert running.process.stderr is not None
        lines = running.process.stderr.read().splitlines()
        assert lines == ["replacing 2 workers, one by one", "all workers are replaced"]


def test_a_worker_that_cannot_be_replaced_does_not_stop_the_others(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    with program(2, broken=broken) as running:
        before = running.workers(2)
        broken.touch()
        running.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + TIMEOUT
        while len(running.children() & before) == 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for _ in range(50):
            assert running.ask_once() in before
        broken.unlink()
        assert len(running.workers(2, other_than=frozenset(before))) == 2
        running.process.terminate()
        assert running.process.wait(TIMEOUT) == 0
