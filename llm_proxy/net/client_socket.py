"""A connection to a server: a non-blocking socket, plain or TLS, with trio to wait for it.

It is trio's socket stream without its layers: a request and its response cost one `send`, one wait and one `recv`.
Closing is synchronous, for TLS too: it does not wait for the peer's close_notify.
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

from llm_proxy.net import poller
from llm_proxy.net.tls import RECORD_SIZE, TlsInTls

#: Most bytes that one `receive` returns.
READ_SIZE: Final = 65536


class ClientSocket:
    """One connected socket. `receive` and `send` may wait at the same time, in one task each.

    All methods raise OSError if the connection is lost, which includes TLS errors (`ssl.SSLError`), and
    trio.ClosedResourceError if `close` is called while they wait.
    """

    __slots__ = ("_poll", "_recv", "_send", "_socket", "fileno", "is_tls", "watch")

    def __init__(self, connected: socket.socket | TlsInTls) -> None:
        """Take over a connected, non-blocking socket; with TLS, after its handshake.

        Raises OSError if the system has no room to watch it.
        """
        self._socket = connected
        self._recv = connected.recv
        self._send = connected.send
        self.fileno = connected.fileno
        self.is_tls = isinstance(connected, ssl.SSLSocket | TlsInTls)
        self.watch = poller.watch(connected.fileno())
        self._poll = select.poll()
        self._poll.register(connected, select.POLLIN)

    @property
    def peer(self) -> str:
        return str(self._socket.getpeername()[0])

    def send_now(self, data: bytes | memoryview) -> int:
        """Send what can be sent without waiting, and return its length.

        With TLS, 0 may mean that a part was sent: continue with the same bytes.
        """
        try:
            return self._send(data)
        except (BlockingIOError, ssl.SSLWantWriteError):
            return 0

    async def send(self, data: memoryview) -> int:
        """Send at least one byte of `data`, and return how many were sent. A checkpoint only if it has to wait."""
        if self.is_tls:
            data = data[:RECORD_SIZE]
        while True:
            try:
                return self._send(data)
            except (BlockingIOError, ssl.SSLWantWriteError):
                await wait_writable(self._socket)

    async def send_all(self, data: bytes) -> None:
        """Send all of `data`. A checkpoint only if it has to wait."""
        sent = self.send_now(data)
        if sent < len(data):
            view = memoryview(data)[sent:]
            while view:
                view = view[await self.send(view) :]

    async def receive(self) -> bytes:
        """Wait for bytes; empty at an orderly end of the stream (with TLS: after a close_notify). A checkpoint."""
        if self.is_tls:
            # The TLS object may hold decrypted bytes, which no poll can see.
            with contextlib.suppress(ssl.SSLWantReadError):
                data = self._recv(READ_SIZE)
                await checkpoint()
                return data
            self.watch.emptied()
        while True:
            await self.watch.readable()
            try:
                data = self._recv(READ_SIZE)
            except (BlockingIOError, ssl.SSLWantReadError):
                self.watch.emptied()
                continue
            if len(data) < READ_SIZE:
                self.watch.emptied()
            return data

    async def start_tls(
        self, context: ssl.SSLContext, server_hostname: str, *, need_close_notify: bool = True
    ) -> ClientSocket:
        """Do a TLS handshake over this connection, also if it is TLS already, and return the encrypted connection.

        This object must not be used any more. If the handshake fails, the connection is closed. TLS inside of TLS
        always needs a close_notify; see `connect`.
        """
        encrypted: ssl.SSLSocket | TlsInTls | None = None
        self.watch.close()
        try:
            if isinstance(self._socket, socket.socket) and not self.is_tls:
                encrypted = context.wrap_socket(
                    self._socket,
                    server_hostname=server_hostname,
                    do_handshake_on_connect=False,
                    suppress_ragged_eofs=not need_close_notify,
                )
            else:
                encrypted = TlsInTls(self._socket, context, server_hostname)
            while True:
                try:
                    encrypted.do_handshake()
                except ssl.SSLWantReadError:
                    await wait_readable(encrypted)
                except ssl.SSLWantWriteError:
                    await wait_writable(encrypted)
                else:
                    return ClientSocket(encrypted)
        except BaseException:
            (encrypted or self._socket).close()
            raise

    def is_quiet(self) -> bool:
        """Whether the idle connection is alive with nothing to read. One system call.

        The end of the stream, an error or unexpected data make the connection unusable.
        """
        if not self.is_tls:
            return not self._poll.poll(0)
        # Session tickets and key updates (RFC 8446 section 4.6) are not data: TLS processes them and returns nothing.
        try:
            self._recv(1)
        except ssl.SSLWantReadError:
            return True
        except OSError:
            pass
        return False

    def close(self) -> None:
        """Close the socket at once. Tasks that wait for it get trio.ClosedResourceError. Idempotent."""
        if self._socket.fileno() != -1:
            self.watch.close()
            with contextlib.suppress(RuntimeError):  # outside of trio no task waits
                notify_closing(self._socket)
            # The descriptor is closed even if the system reports an error.
            with contextlib.suppress(OSError):
                self._socket.close()


async def connect(
    host: str,
    port: int,
    context: ssl.SSLContext | None,
    *,
    server_hostname: str | None = None,
    need_close_notify: bool = True,
) -> ClientSocket:
    """Connect to `host`, and do the TLS handshake if there is a `context`.

    The addresses of `host` are tried by RFC 6555 ("happy eyeballs"). The certificate must have the name
    `server_hostname`, or `host` if it is None. With TLS and `need_close_notify`, the end of TCP without a close_notify
    is an error, and not the end of the stream.

    Raises:
        OSError: the name is invalid or unknown, no address accepts a connection, or (`ssl.SSLError`) the TLS handshake
            failed.
    """
    try:
        stream = await trio.open_tcp_stream(host, port)
    except UnicodeError:
        raise OSError("no host can have this name") from None
    connected = socket.socket(fileno=stream.socket.detach())
    try:
        connected.settimeout(0)
        _enable_keepalive(connected)
        plain = ClientSocket(connected)
    except BaseException:
        connected.close()
        raise
    if context is None:
        return plain
    return await plain.start_tls(context, server_hostname or host, need_close_notify=need_close_notify)


def _enable_keepalive(connected: socket.socket) -> None:
    """Detect a vanished peer within about two minutes, also while a model thinks and no byte is sent."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)


def describe_error(error: OSError) -> str:
    """Describe an error in a few words of the system or of TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: {error.verify_message.rstrip('.')}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or 'broken off').replace('_', ' ').lower()}"
    if isinstance(error.__cause__, ExceptionGroup):
        # One cause per address of the name. Report the last one.
        causes = [cause for cause in error.__cause__.exceptions if isinstance(cause, OSError)]
        return describe_error(causes[-1]) if causes else "no address could be reached"
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return (error.strerror or str(error) or type(error).__name__).lower()
