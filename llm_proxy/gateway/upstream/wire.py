"""A connected byte stream to an upstream: a non-blocking socket, plain or TLS, waited for with trio.

It is trio's socket stream without the layers: a request and its response cost one `send`, one wait and one `recv`.
Closing is synchronous, for TLS too: it waits for nobody's close_notify.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
from typing import Final

import trio
from trio.lowlevel import checkpoint, notify_closing, wait_readable, wait_writable

#: Bytes read at once, and so the most that one `receive` returns.
READ_SIZE: Final = 65536

#: Bytes handed to TLS at once when the network is slower than we are: one record.
_RECORD: Final = 16384


class Wire:
    """One connected socket. `receive` and `send` may wait at the same time, in one task each.

    All methods raise OSError where the connection is lost, which includes TLS errors (`ssl.SSLError`), and
    trio.ClosedResourceError where `close` is called while they wait.
    """

    __slots__ = ("_poll", "_recv", "_send", "_socket", "fileno", "is_tls")

    def __init__(self, connected: socket.socket) -> None:
        """Take over a connected, non-blocking socket; an `ssl.SSLSocket` after its handshake."""
        self._socket = connected
        self._recv = connected.recv
        self._send = connected.send
        self.fileno = connected.fileno
        self.is_tls = isinstance(connected, ssl.SSLSocket)
        self._poll = select.poll()
        self._poll.register(connected, select.POLLIN | select.POLLRDHUP)

    def send_now(self, data: bytes | memoryview) -> int:
        """Send what can go without waiting, and return how much that was.

        After 0 from a TLS wire a part may have gone all the same: go on with the same bytes.
        """
        try:
            return self._send(data)
        except (BlockingIOError, ssl.SSLWantWriteError):
            return 0

    async def send(self, data: memoryview) -> int:
        """Send at least one byte of `data`, and return how much was sent. A checkpoint only where it has to wait."""
        if self.is_tls:
            data = data[:_RECORD]
        while True:
            try:
                return self._send(data)
            except (BlockingIOError, ssl.SSLWantWriteError):
                await wait_writable(self._socket)

    async def receive(self) -> bytes:
        """Wait for bytes; empty at an orderly end of the stream (with TLS: after a close_notify). A checkpoint."""
        if self.is_tls:
            # Decrypted bytes may wait inside the TLS object, where no poll can see them.
            with contextlib.suppress(ssl.SSLWantReadError):
                data = self._recv(READ_SIZE)
                await checkpoint()
                return data
        while True:
            await wait_readable(self._socket)
            try:
                return self._recv(READ_SIZE)
            except (BlockingIOError, ssl.SSLWantReadError):
                continue

    def is_quiet(self) -> bool:
        """Is the idle connection alive with nothing to read? One system call.

        The end of the stream, an error or data that nobody asked for make it useless.
        """
        if not self.is_tls:
            return not self._poll.poll(0)
        # Session tickets and key updates are no data: TLS takes them in and has nothing to hand out.
        try:
            self._recv(1)
        except ssl.SSLWantReadError:
            return True
        except OSError:
            pass
        return False

    def close(self) -> None:
        """Close the socket at once. Tasks that wait on it get trio.ClosedResourceError. Idempotent."""
        if self._socket.fileno() != -1:
            with contextlib.suppress(RuntimeError):  # outside of trio nobody waits
                notify_closing(self._socket)
            # The descriptor is gone whatever the system complains of.
            with contextlib.suppress(OSError):
                self._socket.close()


async def open_stream(host: str, port: int) -> trio.SocketStream:
    """Connect to `host`, trying its addresses by RFC 6555 ("happy eyeballs").

    Raises:
        OSError: no address could be connected to, or there can be none of that name.
    """
    try:
        return await trio.open_tcp_stream(host, port)
    except UnicodeError:
        raise OSError("no host can have this name") from None


async def dial(host: str, port: int, context: ssl.SSLContext | None) -> Wire:
    """Connect to `host`, and shake hands where TLS is wanted.

    Raises:
        OSError: no address could be connected to, or (`ssl.SSLError`) the TLS handshake failed.
    """
    stream = await open_stream(host, port)
    connected = socket.socket(fileno=stream.socket.detach())
    try:
        connected.settimeout(0)
        keep_alive(connected)
        if context is not None:
            connected = context.wrap_socket(
                connected, server_hostname=host, do_handshake_on_connect=False, suppress_ragged_eofs=False
            )
            await _handshake(connected)
        return Wire(connected)
    except BaseException:
        connected.close()
        raise


def keep_alive(connected: socket.socket | trio.socket.SocketType) -> None:
    """Notice a vanished peer within about two minutes, also while a model thinks and no byte moves."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)


async def _handshake(connected: ssl.SSLSocket) -> None:
    while True:
        try:
            connected.do_handshake()
        except ssl.SSLWantReadError:
            await wait_readable(connected)
        except ssl.SSLWantWriteError:
            await wait_writable(connected)
        else:
            return


def words(error: OSError) -> str:
    """What went wrong, for people, in a few words of the system's or of TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: {error.verify_message.rstrip('.')}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or 'broken off').replace('_', ' ').lower()}"
    if isinstance(error.__cause__, ExceptionGroup):
        # One cause per address of the name; the last one tried is as good as any.
        causes = [cause for cause in error.__cause__.exceptions if isinstance(cause, OSError)]
        return words(causes[-1]) if causes else "no address could be reached"
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return (error.strerror or str(error) or type(error).__name__).lower()
