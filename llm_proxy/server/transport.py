"""A connected socket as a Trio stream, with a deadline on everything that is written to it."""

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

RECEIVE_SIZE: Final = 64 * 1024
HANG_UP_POLL: Final = 1.0
"""Seconds between two looks at a connection that cannot be read for lack of room."""

LINGER_GAP: Final = 2.0
LINGER_TOTAL: Final = 8.0
_LOOKS: Final = 4
_NOT_SENT_LOW_WATER: Final = 16 * 1024
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class SocketTransport(trio.abc.HalfCloseableStream):
    """One end of a connection.

    It differs from `trio.SocketStream` in three ways. Reading waits for data before it asks the kernel for some, which
    is what a server nearly always has to do, and makes every read a scheduling point. Writing returns at once, without
    a scheduling point, when the kernel takes everything. And a peer that takes nothing for `write_timeout` seconds has
    its connection reset: whoever was writing gets `trio.BrokenResourceError`, also from under a shield.
    """

    def __init__(self, sock: socket.socket, write_timeout: float) -> None:
        """Take over a connected stream socket."""
        sock.settimeout(0)
        self._socket = sock
        self._fd = sock.fileno()
        self._write_timeout = write_timeout
        self._writing = False
        self._closed = False
        if sock.family != socket.AF_UNIX:
            self._set_where_known("TCP_NODELAY", 1)
            self._set_where_known("TCP_NOTSENT_LOWAT", _NOT_SENT_LOW_WATER)
            self._set_where_known("TCP_USER_TIMEOUT", int(write_timeout * 1000))

    def _set_where_known(self, option: str, value: int) -> None:
        number = getattr(socket, option, None)
        if number is not None:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, number, value)

    @property
    def socket(self) -> socket.socket:
        """The socket, for its addresses and options."""
        return self._socket

    @property
    def closed(self) -> bool:
        """Whether this end was closed."""
        return self._closed

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for data and return it; `b""` at the end of what the peer sends.

        Raises:
            trio.BrokenResourceError: the peer reset the connection.
            trio.ClosedResourceError: this end was closed.
        """
        while True:
            if self._closed:
                raise trio.ClosedResourceError
            await trio.lowlevel.wait_readable(self._fd)
            try:
                return self._socket.recv(max_bytes or RECEIVE_SIZE)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error

    @property
    def readable(self) -> bool:
        """Whether data, or the end of it, has arrived and was not read."""
        if self._closed:
            return False
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Hand everything to the kernel.

        Raises:
            trio.BrokenResourceError: the peer is gone, or took nothing for `write_timeout` seconds and was reset.
            trio.ClosedResourceError: this end was closed.
            trio.BusyResourceError: another task is writing.
        """
        if self._closed:
            raise trio.ClosedResourceError
        if self._writing:
            raise trio.BusyResourceError("another task is writing to this connection")
        try:
            sent = self._socket.send(data)
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
        """Write as the kernel makes room, which it does in large steps: a slow peer may take long to free the next one.

        So the queue of what is still to be sent is looked at as well, `_LOOKS` times in each `write_timeout`.
        """
        queued, taken = self._queued, trio.current_time()
        while data:
            look = min(trio.current_time() + self._write_timeout / _LOOKS, taken + self._write_timeout)
            with trio.CancelScope(deadline=look) as pause:
                await trio.lowlevel.wait_writable(self._fd)
            if not pause.cancelled_caught:
                try:
                    data = data[self._socket.send(data) :]
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

    def offer(self, data: bytes) -> None:
        """Send a few bytes now, unless others are on their way that have the same effect on the peer."""
        if data and not self._writing and not self._queued:
            with contextlib.suppress(OSError):
                self._socket.send(data)

    @property
    def _queued(self) -> int:
        """Bytes that the kernel has and the peer's has not confirmed; 0 where the system does not tell."""
        return self._count(termios.TIOCOUTQ)

    @property
    def unread(self) -> int:
        """Bytes that have arrived and were not read; 0 where the system does not tell."""
        return self._count(termios.FIONREAD)

    def _count(self, request: int) -> int:
        count = array("i", [0])
        with contextlib.suppress(OSError, ValueError):
            fcntl.ioctl(self._socket.fileno(), request, count)
        return count[0]

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the kernel has room; part of Trio's stream interface."""
        if self._closed:
            raise trio.ClosedResourceError
        await trio.lowlevel.wait_writable(self._fd)

    async def wait_hang_up(self) -> None:
        """Return once the peer has left, without reading what it sent before."""
        poll = select.poll()
        poll.register(self._fd, getattr(select, "POLLRDHUP", 0))
        while not self._closed and not poll.poll(0):  # noqa: ASYNC110 - the kernel tells nobody
            await trio.sleep(HANG_UP_POLL)

    async def send_eof(self) -> None:
        """Tell the peer that nothing more will come. A peer that is gone is no error."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        await trio.lowlevel.checkpoint()

    async def linger(self) -> None:
        """Close in such a way that the peer can read what was sent to it.

        A socket that is closed with unread data in it makes the kernel send a reset, which destroys an answer that is
        still on its way. So: end of data first, then read and forget until the peer has closed as well, is silent for
        two seconds, or eight seconds have passed (RFC 9112 section 9.6).
        """
        with trio.move_on_after(LINGER_TOTAL), contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self.send_eof()
            with trio.move_on_after(LINGER_GAP) as gap:
                while await self.receive_some():
                    gap.deadline = trio.current_time() + LINGER_GAP
        self.close()

    def abort(self) -> None:
        """Reset the connection, so that the peer sees an error and not the end of a response."""
        if not self._closed:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self.close()

    def close(self) -> None:
        """Close at once; tasks that wait for this connection get `trio.ClosedResourceError`."""
        if not self._closed:
            self._closed = True
            trio.lowlevel.notify_closing(self._fd)
            self._socket.close()

    async def aclose(self) -> None:
        """Close; part of Trio's stream interface."""
        self.close()
        await trio.lowlevel.checkpoint()
