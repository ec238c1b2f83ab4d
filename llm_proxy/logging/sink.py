"""Writes log lines to a file, which log rotation may move, or to stderr; never waits for a slow reader."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final


class LogError(Exception):
    """The log file cannot be opened. The message names it and says why."""


class Sink:
    """Writes lines to stderr, or to a file. If log rotation moves the file, it is opened again within a second.

    Any thread may write. A lock protects the descriptor: if another thread closed it meanwhile, its number could
    already belong to another file or socket.
    """

    __slots__ = ("_checked", "_close", "_held", "_identity", "_lock", "_path", "_put", "_torn", "lost")

    def __init__(self, path: Path | None) -> None:
        """Open the file, or stderr if `path` is None. Raises `LogError`."""
        # Reentrant: the garbage collector may make this thread log while it writes a line.
        self._lock = threading.RLock()
        self._path = path
        self._torn = False
        self._held: list[bytes] = []
        self._checked = 0
        self._identity = (0, 0)
        self.lost = 0
        self._put: Callable[[bytes], int]
        self._close: Callable[[], None]
        if path is None:
            self._put, self._close = _open_stderr()
        else:
            self._put, self._close = _plain_stderr()
            try:
                self._open(path)
            except OSError as error:
                raise LogError(f"the log file {path} cannot be opened: {_reason(path, error)}; {_ALLOWED}") from error

    def write(self, line: bytes, second: int) -> None:
        """Write one line, including its newline, in one call or not at all. Never raises.

        `second` is the time: a moved file is detected once per second.
        """
        with self._lock:
            self.flush()
            try:
                if second != self._checked:
                    self._checked = second
                    if self._path is not None:
                        self._follow(self._path)
            except OSError:
                self.lost += 1
            else:
                self._write(line)

    def hold(self, line: bytes, second: int) -> None:
        """Keep a line until `flush`, or until something else is written. Never raises."""
        if second != self._checked:
            self.write(line, second)
        else:
            self._held.append(line)

    def flush(self) -> None:
        """Write the lines that are held, as many in one call as a pipe takes whole. Never raises."""
        if not self._held:
            return
        with self._lock:
            held, self._held = self._held, []
            text = b""
            for line in held:
                if len(text) + len(line) > select.PIPE_BUF and text:
                    self._write(text)
                    text = b""
                text += line
            if text:
                self._write(text)

    def _write(self, text: bytes) -> None:
        """Write whole lines in one call."""
        start = b"\n" if self._torn else b""
        try:
            written = self._put(start + text)
        except OSError:
            written = 0
        else:
            # A full pipe accepts part of a line: the next line must not continue it.
            self._torn = written != len(start) + len(text)
        self.lost += text.count(b"\n", max(0, written - len(start)))

    def close(self) -> None:
        """Close the file; later lines go to stderr."""
        with self._lock:
            self.flush()
            close = self._close
            self._path = None
            self._put, self._close = _plain_stderr()
            close()

    def _open(self, path: Path) -> None:
        # Without O_NONBLOCK, opening a FIFO waits until somebody reads it.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o640)
        found = os.fstat(descriptor)
        self._identity = (found.st_dev, found.st_ino)
        close = self._close
        self._put, self._close = partial(os.write, descriptor), partial(os.close, descriptor)
        close()

    def _follow(self, path: Path) -> None:
        try:
            found = path.stat()
        except FileNotFoundError:
            self._open(path)
        else:
            if (found.st_dev, found.st_ino) != self._identity:
                self._open(path)


_ALLOWED: Final = "set LOG_FILE to a file, to /dev/stdout or /dev/stderr, or to a FIFO that a process reads"


def _reason(path: Path, error: OSError) -> str | None:
    if error.errno != errno.ENXIO:
        return error.strerror
    return "it is a socket" if path.is_socket() else "it is a FIFO that no process reads"


def _open_stderr() -> tuple[Callable[[bytes], int], Callable[[], None]]:
    """Return a function that writes to stderr without waiting for its reader, if possible, and one that closes it."""
    try:
        mode = os.fstat(2).st_mode
    except OSError:  # started without a stderr: there is nowhere to write to
        return len, _nothing
    if stat.S_ISSOCK(mode):
        sock = socket.socket(fileno=os.dup(2))
        return lambda line: sock.send(line, socket.MSG_DONTWAIT), sock.close
    if stat.S_ISFIFO(mode) or os.isatty(2):
        # The flag belongs to the open file, which is shared with the parent process: open it again for this process.
        with suppress(OSError):
            descriptor = os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            return partial(os.write, descriptor), partial(os.close, descriptor)
    return _plain_stderr()


def _plain_stderr() -> tuple[Callable[[bytes], int], Callable[[], None]]:
    return partial(os.write, 2), _nothing


def _nothing() -> None:
    """There is nothing to close."""
