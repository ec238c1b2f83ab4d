"""Waits for a moment to some microseconds.

The event loop's own waiting is by epoll, whose timeout is in whole milliseconds and is rounded up (epoll_wait(2)): more
than many requests take. A timer that is a file (timerfd_create(2)) wakes it on time. Where there is none the event loop
has to do, which on kqueue is as fine.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from types import TracebackType
from typing import Self

import trio

_MONOTONIC = 1
_NANOSECONDS = 1_000_000_000
#: Shorter than what it takes to wait.
_AT_ONCE = 20e-6


class _Setting(ctypes.Structure):
    """`struct itimerspec`: an interval, which is zero for once, and the time until the first."""

    _fields_ = (
        ("interval_seconds", ctypes.c_long),
        ("interval_nanoseconds", ctypes.c_long),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    )


class Timer:
    """Waits for one moment at a time. Use it in a `with` block."""

    def __init__(self) -> None:
        """Open the timer, where the system has one."""
        self._file = -1
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None)
            self._file = self._libc.timerfd_create(_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file >= 0:
            os.close(self._file)

    async def wait_until(self, moment: float) -> None:
        """Return when `time.perf_counter` has come to a moment; always lets others run."""
        left = moment - time.perf_counter()
        if left < _AT_ONCE:
            await trio.lowlevel.checkpoint()
        elif self._file < 0:
            await trio.sleep(left)
        else:
            seconds, rest = divmod(int(left * _NANOSECONDS), _NANOSECONDS)
            # Setting the timer also takes back an earlier setting that nobody waits for any more.
            self._libc.timerfd_settime(self._file, 0, ctypes.byref(_Setting(0, 0, seconds, rest)), None)
            await trio.lowlevel.wait_readable(self._file)
