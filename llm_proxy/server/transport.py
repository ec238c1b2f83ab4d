"""A connected socket as a Trio stream, with a timeout for all writes."""

from __future__ import annotations

import contextlib
import fcntl
import select
import socket
import struct
import termios
from array import array
from typing import Final

import trio

from llm_proxy.net import poller

RECEIVE_SIZE: Final = 64 * 1024
CLOSED_POLL: Final = 1.0
"""Seconds between two polls of a connection that is not read because its buffer is full."""
LINGER_GAP: Final = 2.0
LINGER_TOTAL: Final = 8.0
CHECKS: Final = 4
_TCP_OPTIONS: Final = {"TCP_NODELAY": 1, "TCP_NOTSENT_LOWAT": 16 * 1024}
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class SocketTransport(trio.abc.Stream):
    """One end of a connection.

    It differs from `trio.SocketStream` in three ways. Reading waits for data before it calls the kernel, because a
    server nearly always has to wait, and each read is a checkpoint. Writing returns at once, without a checkpoint, if
    the kernel takes all data. If the peer takes nothing for `write_timeout` seconds, the connection is reset and the
    writing task gets `trio.BrokenResourceError`, even if it is shielded.
    """

    def __init__(self, sock: socket.socket, write_timeout: float) -> None:
        sock.settimeout(0)
        self.socket = sock
        self._fd = sock.fileno()
        self.watch = poller.watch(self._fd)
        self._write_timeout = write_timeout
        self._writing = False
        self.closed = False
        if sock.family != socket.AF_UNIX:
            milliseconds = int(write_timeout * 1000)
            for option, value in {**_TCP_OPTIONS, "TCP_USER_TIMEOUT": milliseconds}.items():
                with contextlib.suppress(AttributeError, OSError):  # not every system has every option
                    sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for data and return it; `b""` at the end of the stream.

        Raises trio.BrokenResourceError after a reset by the peer, and trio.ClosedResourceError if this end is closed.
        """
        size = max_bytes or RECEIVE_SIZE
        while True:
            if self.closed:
                raise trio.ClosedResourceError
            await self.watch.readable()
            try:
                data = self.socket.recv(size)
            except BlockingIOError:
                self.watch.emptied()
                continue
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error
            if len(data) < size:
                self.watch.emptied()
            return data

    @property
    def readable(self) -> bool:
        """Whether unread data, or the end of the stream, has arrived."""
        if self.closed:
            return False
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Pass all data to the kernel.

        Raises:
            trio.BrokenResourceError: the connection is lost, or the peer took nothing for `write_timeout` seconds.
            trio.ClosedResourceError: this end is closed.
            trio.BusyResourceError: another task is writing.
        """
        if self.closed:
            raise trio.ClosedResourceError
        if self._writing:
            raise trio.BusyResourceError("another task is writing to this connection")
        try:
            sent = self.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error
        if sent < len(data):
            self._writing = True
            try:
                await self._send_rest(memoryview(data)[sent:])
            finally:
                self._writing = False

    async def _send_rest(self, data: memoryview) -> None:
        """Write when the kernel has room again. It frees room in large steps, and a slow peer may need long for one.

        So the length of the kernel's send queue is checked too, `CHECKS` times in each `write_timeout`.
        """
        queued, taken = self._queued, trio.current_time()
        while data:
            check = min(trio.current_time() + self._write_timeout / CHECKS, taken + self._write_timeout)
            with trio.CancelScope(deadline=check) as pause:
                await trio.lowlevel.wait_writable(self._fd)
            if not pause.cancelled_caught:
                try:
                    data = data[self.socket.send(data) :]
                except BlockingIOError:
                    continue
                except OSError as error:
                    raise trio.BrokenResourceError(str(error)) from error
                queued, taken = self._queued, trio.current_time()
            elif (left := self._queued) < queued:
                queued, taken = left, trio.current_time()
            elif trio.current_time() >= taken + self._write_timeout:
                self.abort()
                raise trio.BrokenResourceError(f"the peer took nothing for {self._write_timeout:g} s")

    def send_if_ready(self, data: bytes) -> None:
        """Send a few bytes now, unless unsent bytes have the same effect on the peer."""
        if data and not self._writing and not self._queued:
            with contextlib.suppress(OSError):
                self.socket.send(data)

    @property
    def _queued(self) -> int:
        """Sent bytes that the peer has not acknowledged; 0 if the system does not support it."""
        return self._count(termios.TIOCOUTQ)

    @property
    def unread(self) -> int:
        """Bytes that have arrived and were not read; 0 if the system does not support it."""
        return self._count(termios.FIONREAD)

    def _count(self, request: int) -> int:
        count = array("i", [0])
        with contextlib.suppress(OSError, ValueError):
            fcntl.ioctl(self.socket.fileno(), request, count)
        return count[0]

    async def wait_send_all_might_not_block(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError
        await trio.lowlevel.wait_writable(self._fd)

    async def wait_closed_by_peer(self) -> None:
        """Wait until the peer has closed its side, without reading."""
        poll = select.poll()
        poll.register(self._fd, getattr(select, "POLLRDHUP", 0))
        while not self.closed and not poll.poll(0):  # noqa: ASYNC110 - trio has no event for this
            await trio.sleep(CLOSED_POLL)

    async def linger(self) -> None:
        """Close so that the peer can read everything that was sent to it.

        If a socket with unread data is closed, the kernel sends a reset, which destroys a response that is still on its
        way. So: close this side first, then read and discard until the peer has closed too, is silent for two seconds,
        or eight seconds have passed (RFC 9112 section 9.6).
        """
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
        with trio.move_on_after(LINGER_TOTAL), contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            with trio.move_on_after(LINGER_GAP) as gap:
                while await self.receive_some():
                    gap.deadline = trio.current_time() + LINGER_GAP
        self.close()

    def abort(self) -> None:
        """Reset the connection, so that the peer gets an error and not the end of a response."""
        if not self.closed:
            with contextlib.suppress(OSError):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self.close()

    def close(self) -> None:
        """Close at once; tasks that wait for this connection get `trio.ClosedResourceError`."""
        if not self.closed:
            self.closed = True
            self.watch.close()
            trio.lowlevel.notify_closing(self._fd)
            self.socket.close()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()
