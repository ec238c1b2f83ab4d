"""A supervisor that runs several worker processes on the same sockets, and replaces them one by one."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import attrs

STEADY: Final = 5.0
"""Seconds after which a worker counts as started successfully."""
FIRST_DELAY: Final = 0.1
MAX_DELAY: Final = 30.0
ATTEMPTS: Final = 3
"""Starts per worker before the supervisor gives up, if no worker was ever steady. Killed workers do not count."""
_KILL_MARGIN: Final = 15.0
"""Seconds after the drain in which a worker ends.

Longer than the application needs for its last settlements (`DRAIN_TIMEOUT` and `READY_TIMEOUT` of `services`, which
this layer must not import).
"""
_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP})
_SUCCESS: Final = frozenset({0, -signal.SIGTERM, -signal.SIGUSR1})
_MAX_LINE: Final = 4000
"""Bytes. A writable pipe has room for as many (PIPE_BUF)."""


def print_to_stderr(message: str) -> None:
    """Write to stderr without waiting: if nobody reads, the message is lost and the supervisor continues.

    It bypasses `sys.stderr`, which would keep unwritten text and fail again at the end of the process.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in message.splitlines():
            poll = select.poll()
            poll.register(2, select.POLLOUT)
            if not poll.poll(0):
                return
            os.write(2, line.encode("utf-8", "backslashreplace")[:_MAX_LINE] + b"\n")


WorkerMain = Callable[[Sequence[socket.socket], int, Callable[[], None]], None]
"""Serves on these sockets until SIGTERM as the worker with this number, and calls the function when it serves."""


@attrs.define
class _Slot:
    """One worker: its process if it runs, else when to start the next one."""

    pid: int | None = None
    started: float = 0.0
    next_start: float = 0.0
    delay: float = FIRST_DELAY


@attrs.define(eq=False)
class Supervisor:
    """Runs `worker_main` in `workers` child processes until SIGTERM or SIGINT.

    Use it in the main thread, before any other thread exists. The children are forks that share the listening sockets.
    A child that ends without a request is replaced, after a delay that doubles from 0.1 to 30 s while it keeps failing.
    SIGTERM and the first SIGINT are sent to the children as SIGTERM. Children that still run 15 seconds after
    `shutdown_grace`, or at a second SIGINT, are killed. If the supervisor itself is killed, its children drain and end.

    SIGHUP replaces the children one by one: one drains and ends, and when its successor serves, the next one follows.
    The sockets stay open and the other children accept, so no connection is refused.

    One line on standard error reports each worker that ends unexpectedly, and the start and end of a replacement.

    Attributes:
        worker_main: serves on the sockets until SIGTERM; an exception is printed and makes the child's status 1. The
            number, below `workers`, is unique among the running children; a successor has the same number.
        sockets: bound sockets; they are closed here when the shutdown begins.
        shutdown_grace: `ServerConfig.shutdown_grace` of the workers, in seconds.
        before_replacing: called in the parent at SIGHUP; if it returns False, no child is replaced.
    """

    worker_main: WorkerMain
    sockets: Sequence[socket.socket]
    workers: int
    shutdown_grace: float
    before_replacing: Callable[[], bool] = lambda: True
    # The numbers of the workers that are still to be replaced; the first one is being replaced.
    _to_replace: list[int] = attrs.field(init=False, factory=list)
    # The process that was told to end for that; 0 if there was none at the time.
    _replaced_pid: int | None = attrs.field(init=False, default=None)
    _slots: list[_Slot] = attrs.field(init=False)
    _failures: int = attrs.field(init=False, default=0)
    _ever_steady: bool = attrs.field(init=False, default=False)
    _success: bool = attrs.field(init=False, default=True)
    _kill_at: float | None = attrs.field(init=False, default=None)
    _lifeline: tuple[int, int] = attrs.field(init=False, factory=os.pipe)
    # A child writes its number here when it serves.
    _ready: tuple[int, int] = attrs.field(init=False, factory=os.pipe)

    def __attrs_post_init__(self) -> None:
        self._slots = [_Slot() for _ in range(self.workers)]
        os.set_blocking(self._ready[0], False)

    def run(self) -> int:
        """Return 0 if all workers ended successfully after a signal, 1 if one did not or if none could be started."""
        with _signals() as (wakeup, received):
            while True:
                now = time.monotonic()
                self._reap(now)
                self._read_ready()
                self._handle_signals(received, now)
                self._replace_next()
                given_up = not self._ever_steady and self._failures >= ATTEMPTS * len(self._slots)
                if self._kill_at is None and given_up:
                    print_to_stderr("no worker could be started")
                    self._success = False
                    self._stop(now)
                if self._kill_at is None:
                    self._start(now)
                elif not any(slot.pid for slot in self._slots):
                    break
                elif now >= self._kill_at:
                    self._send(signal.SIGKILL)
                select.select([wakeup.fileno(), self._ready[0]], [], [], self._time_to_wait(now))
                with contextlib.suppress(BlockingIOError):
                    wakeup.recv(4096)
        for end in (*self._lifeline, *self._ready):
            os.close(end)
        return 0 if self._success else 1

    def _time_to_wait(self, now: float) -> float | None:
        if self._kill_at is not None:
            return max(0.0, self._kill_at - now) if self._kill_at > now else None
        times = [slot.next_start for slot in self._slots if slot.pid is None]
        if not self._ever_steady:
            times += [slot.started + STEADY for slot in self._slots if slot.pid]
        return max(0.0, min(times) - now) if times else None

    def _handle_signals(self, received: list[int], now: float) -> None:
        while received:
            number = received.pop(0)
            if number in {signal.SIGTERM, signal.SIGINT}:
                if self._kill_at is None:
                    self._stop(now)
                elif number == signal.SIGINT:
                    self._kill_at = now
            elif number == signal.SIGHUP and self._kill_at is None and self.before_replacing():
                print_to_stderr(f"replacing {len(self._slots)} workers, one by one")
                self._to_replace = [*self._to_replace[:1], *range(len(self._slots))]

    def _read_ready(self) -> None:
        """Read which workers serve now. If one of them is the successor of a replaced worker, the next one follows."""
        with contextlib.suppress(BlockingIOError):
            for number in os.read(self._ready[0], 4096):
                is_successor = self._replaced_pid not in {None, self._slots[number].pid}
                if is_successor and self._to_replace[:1] == [number]:
                    self._replaced_pid = None
                    del self._to_replace[0]
                    if not self._to_replace:
                        print_to_stderr("all workers are replaced")

    def _replace_next(self) -> None:
        """Tell the next worker to end. Its successor is started like that of any other worker."""
        if self._to_replace and self._replaced_pid is None and self._kill_at is None:
            pid = self._slots[self._to_replace[0]].pid
            self._replaced_pid = pid or 0
            if pid is not None:
                os.kill(pid, signal.SIGUSR1)

    def _stop(self, now: float) -> None:
        self._kill_at = now + self.shutdown_grace + _KILL_MARGIN
        self._send(signal.SIGTERM)
        for sock in self.sockets:  # else the kernel takes connections that no worker accepts
            sock.close()

    def _send(self, number: int) -> None:
        for slot in self._slots:
            if slot.pid is not None:
                os.kill(slot.pid, number)

    def _reap(self, now: float) -> None:
        for slot in self._slots:
            if slot.pid is None:
                continue
            pid, status = os.waitpid(slot.pid, os.WNOHANG)
            steady = now - slot.started >= STEADY
            self._ever_steady = self._ever_steady or steady
            if pid:
                self._worker_ended(slot, os.waitstatus_to_exitcode(status), now, steady=steady)

    def _worker_ended(self, slot: _Slot, code: int, now: float, *, steady: bool) -> None:
        pid, slot.pid = slot.pid, None
        if self._kill_at is not None:
            self._success = self._success and code in _SUCCESS
            return
        if pid == self._replaced_pid and code in _SUCCESS:
            slot.next_start, slot.delay = now, FIRST_DELAY
            return
        if code >= 0:
            # It ended by itself. A worker that was killed does not show that another one could not serve.
            self._failures += 1
        delay = FIRST_DELAY if steady else slot.delay
        slot.next_start = now + delay
        slot.delay = min(2 * delay, MAX_DELAY)
        cause = f"with status {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
        print_to_stderr(f"worker {pid} ended {cause}; another one starts in {delay:g} s")

    def _start(self, now: float) -> None:
        for number, slot in enumerate(self._slots):
            if slot.pid is None and slot.next_start <= now:
                # A signal between the fork and the child's own handlers would be lost in the handlers of this process.
                previous = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
                pid = os.fork()
                if pid == 0:
                    self._run_worker(number, previous)
                signal.pthread_sigmask(signal.SIG_SETMASK, previous)
                slot.pid, slot.started = pid, now

    def _run_worker(self, number: int, signal_mask: Iterable[int]) -> None:
        """Run a worker in the new process; never returns."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            # Terminals send SIGHUP to all processes; only the parent handles it.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            for default in (signal.SIGTERM, signal.SIGCHLD):
                signal.signal(default, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, signal_mask)
            lifeline, parents_end = self._lifeline
            os.close(parents_end)
            threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
            os.close(self._ready[0])
            self.worker_main(self.sockets, number, lambda: self._report_ready(number))
            code = 0
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        except BaseException:  # noqa: BLE001 - the parent's stack must not be unwound in the child
            print_to_stderr(traceback.format_exc())
        finally:
            os._exit(code)

    def _report_ready(self, number: int) -> None:
        os.write(self._ready[1], bytes([number]))


def _end_with_parent(lifeline: int) -> None:
    """Wait until the parent, which holds the other end of this pipe, has ended; then end this process."""
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _signals() -> Iterator[tuple[socket.socket, list[int]]]:
    """Collect the signals of a supervisor; the socket becomes readable when there is one."""
    received: list[int] = []
    wakeup, sender = socket.socketpair()
    for end in (wakeup, sender):
        end.settimeout(0)
    previous = {number: signal.signal(number, lambda number, _: received.append(number)) for number in _SIGNALS}
    previous_fd = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    try:
        yield wakeup, received
    finally:
        signal.set_wakeup_fd(previous_fd)
        for number, handler in previous.items():
            signal.signal(number, handler)
        wakeup.close()
        sender.close()
