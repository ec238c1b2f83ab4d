"""Several processes on the same sockets: a supervisor that keeps them running, and replaces them one by one."""

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
"""Seconds after which a worker counts as having started well."""
FIRST_DELAY: Final = 0.1
LONGEST_DELAY: Final = 30.0
ATTEMPTS: Final = 3
"""Starts that each worker gets, as long as none has ever been steady, before the supervisor gives up.

Only those that gave up by themselves count.
"""
_KILL_MARGIN: Final = 5.0
_OURS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP})
_WELL: Final = frozenset({0, -signal.SIGTERM, -signal.SIGUSR1})


_LONGEST_LINE: Final = 4000
"""Bytes; a pipe that has room at all has room for so many (PIPE_BUF)."""


def say(message: str) -> None:
    """Write to stderr, and lose what nobody takes: a supervisor must not wait for a reader, nor end with it.

    It bypasses `sys.stderr`, which would keep what it could not write and fail once more at the end of the process.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in message.splitlines():
            poll = select.poll()
            poll.register(2, select.POLLOUT)
            if not poll.poll(0):
                return
            os.write(2, line.encode("utf-8", "backslashreplace")[:_LONGEST_LINE] + b"\n")


WorkerMain = Callable[[Sequence[socket.socket], int, Callable[[], None]], None]
"""Serves on these sockets until SIGTERM, as the worker of this number, and calls the function once it serves."""


def supervise(
    worker_main: WorkerMain,
    sockets: Sequence[socket.socket],
    *,
    workers: int,
    shutdown_grace: float,
    before_roll: Callable[[], bool] = lambda: True,
) -> int:
    """Run `worker_main` in `workers` child processes until SIGTERM or SIGINT; return an exit status.

    Call it from the main thread, before any other thread exists. The children are forks that share the listening
    sockets. One that ends without having been asked to is replaced, after a pause that doubles from 0.1 to 30 s while
    it keeps failing. SIGTERM and the first SIGINT are handed to the children as SIGTERM; those that are still there
    five seconds after `shutdown_grace`, or at a second SIGINT, are killed. Should the supervisor itself be killed, its
    children drain and end.

    SIGHUP replaces the children one by one: one drains and ends, the next one in its place serves, then it is the next
    one's turn. The sockets stay open all the while, and the others accept, so no connection is refused.

    One line on standard error tells of each worker that died, and of the beginning and the end of a roll.

    Args:
        worker_main: serves on the sockets until SIGTERM; what it raises is printed and makes the child's status 1. The
            number, below `workers`, is one that no other living child has; who replaces a child has its number.
        sockets: bound sockets; they are closed here when the shutdown begins.
        workers: how many processes.
        shutdown_grace: what the workers were given as `ServeConfig.shutdown_grace`, in seconds.
        before_roll: called in the parent at SIGHUP; where it returns False, nothing is replaced.

    Returns:
        0 when all workers ended well after a signal, 1 when one did not or when none could ever be started.
    """
    return _Supervisor(worker_main, sockets, workers, shutdown_grace, before_roll).run()


@attrs.define
class _Slot:
    """A place for one worker: its process while there is one, else when to start the next."""

    pid: int | None = None
    started: float = 0.0
    next_start: float = 0.0
    delay: float = FIRST_DELAY


class _Supervisor:
    def __init__(
        self,
        worker_main: WorkerMain,
        sockets: Sequence[socket.socket],
        workers: int,
        shutdown_grace: float,
        before_roll: Callable[[], bool],
    ) -> None:
        self._before_roll = before_roll
        # The numbers of the workers whose turn is yet to come; the first of them is being replaced.
        self._to_roll: list[int] = []
        # The process that was told to end for that; 0 where there was none at the time.
        self._told: int | None = None
        self._worker_main = worker_main
        self._sockets = sockets
        self._shutdown_grace = shutdown_grace
        self._slots = [_Slot() for _ in range(workers)]
        self._failures = 0
        self._ever_steady = False
        self._ended_well = True
        self._kill_at: float | None = None
        self._lifeline = os.pipe()
        # A child writes its number here once it serves.
        self._news: tuple[int, int] = os.pipe()
        os.set_blocking(self._news[0], False)

    def run(self) -> int:
        with _signals() as (wakeup, received):
            while True:
                now = time.monotonic()
                self._reap(now)
                self._hear()
                self._obey(received, now)
                self._roll()
                if self._kill_at is None and self._is_hopeless():
                    say("no worker could be started")
                    self._ended_well = False
                    self._stop(now)
                if self._kill_at is None:
                    self._start(now)
                elif not any(slot.pid for slot in self._slots):
                    break
                elif now >= self._kill_at:
                    self._send(signal.SIGKILL)
                select.select([wakeup.fileno(), self._news[0]], [], [], self._patience(now))
                with contextlib.suppress(BlockingIOError):
                    wakeup.recv(4096)
        for end in (*self._lifeline, *self._news):
            os.close(end)
        return 0 if self._ended_well else 1

    def _is_hopeless(self) -> bool:
        return not self._ever_steady and self._failures >= ATTEMPTS * len(self._slots)

    def _patience(self, now: float) -> float | None:
        """Return for how many seconds nothing has to be done."""
        if self._kill_at is not None:
            return max(0.0, self._kill_at - now) if self._kill_at > now else None
        moments = [slot.next_start for slot in self._slots if slot.pid is None]
        if not self._ever_steady:
            moments += [slot.started + STEADY for slot in self._slots if slot.pid]
        return max(0.0, min(moments) - now) if moments else None

    def _obey(self, received: list[int], now: float) -> None:
        while received:
            number = received.pop(0)
            if number in {signal.SIGTERM, signal.SIGINT}:
                if self._kill_at is None:
                    self._stop(now)
                elif number == signal.SIGINT:
                    self._kill_at = now
            elif number == signal.SIGHUP and self._kill_at is None and self._before_roll():
                say(f"replacing {len(self._slots)} workers, one by one")
                self._to_roll = [*self._to_roll[:1], *range(len(self._slots))]

    def _hear(self) -> None:
        """Take note of the workers that serve now: where one has taken another's place, it is the next one's turn."""
        with contextlib.suppress(BlockingIOError):
            for number in os.read(self._news[0], 4096):
                rolling = self._to_roll[:1] == [number] and self._told not in {None, self._slots[number].pid}
                if rolling:
                    self._told = None
                    del self._to_roll[0]
                    if not self._to_roll:
                        say("all workers are replaced")

    def _roll(self) -> None:
        """Have the worker end whose turn it is; the next one takes its place as that of any other would."""
        if self._to_roll and self._told is None and self._kill_at is None:
            pid = self._slots[self._to_roll[0]].pid
            self._told = pid or 0
            if pid is not None:
                os.kill(pid, signal.SIGUSR1)

    def _stop(self, now: float) -> None:
        self._kill_at = now + self._shutdown_grace + _KILL_MARGIN
        self._send(signal.SIGTERM)
        for sock in self._sockets:  # else the kernel goes on taking connections that no worker will accept
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
                self._bury(slot, os.waitstatus_to_exitcode(status), now, steady=steady)

    def _bury(self, slot: _Slot, code: int, now: float, *, steady: bool) -> None:
        pid, slot.pid = slot.pid, None
        if self._kill_at is not None:
            self._ended_well = self._ended_well and code in _WELL
            return
        if pid == self._told and code in _WELL:
            slot.next_start, slot.delay = now, FIRST_DELAY
            return
        if code >= 0:
            # It gave up by itself; one that was killed says nothing about whether another could serve.
            self._failures += 1
        delay = FIRST_DELAY if steady else slot.delay
        slot.next_start = now + delay
        slot.delay = min(2 * delay, LONGEST_DELAY)
        cause = f"with status {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
        say(f"worker {pid} ended {cause}; another one starts in {delay:g} s")

    def _start(self, now: float) -> None:
        for number, slot in enumerate(self._slots):
            if slot.pid is None and slot.next_start <= now:
                # A signal between the fork and the child's own handlers would be lost in this process's handlers.
                former = signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)
                pid = os.fork()
                if pid == 0:
                    self._be_worker(number, former)
                signal.pthread_sigmask(signal.SIG_SETMASK, former)
                slot.pid, slot.started = pid, now

    def _be_worker(self, number: int, signal_mask: Iterable[int]) -> None:
        """Become a worker in the new process; never returns."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            # Terminals send SIGHUP to everybody; it means something to the parent alone.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            for ours in (signal.SIGTERM, signal.SIGCHLD):
                signal.signal(ours, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, signal_mask)
            lifeline, parents_end = self._lifeline
            os.close(parents_end)
            threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
            os.close(self._news[0])
            self._worker_main(self._sockets, number, lambda: self._tell(number))
            code = 0
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        except BaseException:  # noqa: BLE001 - the parent's stack must not be unwound in the child
            say(traceback.format_exc())
        finally:
            os._exit(code)

    def _tell(self, number: int) -> None:
        """Let the parent know that this worker serves."""
        os.write(self._news[1], bytes([number]))


def _end_with_parent(lifeline: int) -> None:
    """Wait for the end of the parent, which holds the other end of this pipe, and ask this process to end as well."""
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _signals() -> Iterator[tuple[socket.socket, list[int]]]:
    """Collect the signals that concern a supervisor; the socket becomes readable when there are some."""
    received: list[int] = []
    wakeup, sender = socket.socketpair()
    for end in (wakeup, sender):
        end.settimeout(0)
    former = {number: signal.signal(number, lambda number, _: received.append(number)) for number in _OURS}
    former_fd = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    try:
        yield wakeup, received
    finally:
        signal.set_wakeup_fd(former_fd)
        for number, handler in former.items():
            signal.signal(number, handler)
        wakeup.close()
        sender.close()
