"""Handles of processes."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from benchmarks.processes import Process, ProcessFailed, cpu_seconds, family

SPIN = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass\n"
WAIT = "import signal; signal.pause()"


def python(code: str) -> Process:
    return Process.start([sys.executable, "-c", code])


def test_cpu_time_counts_threads_and_descendants_living_and_dead() -> None:
    code = f"""
import subprocess, sys, threading, signal
spin = {SPIN.format("start + 0.2")!r}
def burn():
    import time
    end = time.thread_time() + 0.2
    while time.thread_time() < end: pass
thread = threading.Thread(target=burn); thread.start(); thread.join()
subprocess.run([sys.executable, "-c", {SPIN.format(0.2)!r}])
child = subprocess.Popen([sys.executable, "-c", {SPIN.format(0.2)!r} + "print('spun', flush=True)\\n{WAIT}"],
                         stdout=subprocess.PIPE)
child.stdout.readline()
print("ready", flush=True)
signal.pause()
"""
    with python(code) as process:
        assert process.read_line() == b"ready"
        assert process.cpu_seconds() >= 0.55
        assert len(family(process.pid)) == 2
        assert process.resident_bytes() > 5_000_000
        children = family(process.pid)[1:]
        process.kill()
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{child}/cmdline").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert cpu_seconds(process.pid) == 0


def test_lines_are_read_one_by_one() -> None:
    with python("print('one\\ntwo', flush=True); print('{\"three\": 3}')") as process:
        assert process.read_line() == b"one"
        assert process.read_line() == b"two"
        assert process.read_json() == {"three": 3}


def test_silence_and_an_early_end_are_failures(tmp_path: Path) -> None:
    with python(WAIT) as process, pytest.raises(ProcessFailed, match="said nothing"):
        process.read_line(timeout=0.05)
    with python("raise SystemExit(3)") as process, pytest.raises(ProcessFailed, match="status 3"):
        process.read_line()


def test_stop_returns_the_status_and_kills_after_the_timeout() -> None:
    with python(WAIT) as process:
        states = [process.running, process.stop(), process.running]
    assert states == [True, -signal.SIGTERM, False]
    code = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); {WAIT}"
    with python(code) as process:
        process.read_line()
        assert process.stop(timeout=0.05) == -signal.SIGKILL


def test_environment_and_stderr_are_the_callers(tmp_path: Path) -> None:
    errors = tmp_path / "err"
    code = "import os, sys; print(os.environ['MARK']); sys.stderr.write('oops')"
    with Process.start([sys.executable, "-c", code], env={"MARK": "here"}, stderr=errors) as process:
        assert process.read_line() == b"here"
        assert process.wait() == 0
    assert errors.read_text() == "oops"
    assert "MARK" not in os.environ
