"""A connection to the server: sockets by hand where it is plain, because a layer between costs as much as a request."""

from __future__ import annotations

import os
import socket
import ssl
from typing import Any, Protocol

import trio
from attrs import define, frozen

_READ = 262_144


class Wire(Protocol):
    """A connection. All methods but `close` raise OSError where it breaks."""

    async def send(self, data: bytes) -> None:
        """Send all of it."""

    async def receive(self) -> bytes:
        """Wait for bytes; empty once the other side has ended its own."""

    def gone(self) -> bool:
        """Whether the other side has closed it, or spoken out of turn, since it was last used."""

    def close(self) -> None:
        """Close it at once."""


@frozen
class Address:
    """What a host and a port resolve to."""

    family: int
    sockaddr: tuple[Any, ...]


async def resolve(host: str, port: int) -> list[Address]:
    """Look a host up, once for the whole load. Raises OSError."""
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(Address(family, sockaddr) for family, _, _, _, sockaddr in found))


async def connect(address: Address, host: str, tls: ssl.SSLContext | None) -> Wire:
    """Open a connection, with TLS where there is a context for it. Raises OSError."""
    sock = socket.socket(address.family)
    try:
        sock.settimeout(0)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            sock.connect(address.sockaddr)
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)
            if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(code, os.strerror(code)) from None
        if tls is None:
            return _Plain(sock)
        stream = trio.SSLStream(
            trio.SocketStream(trio.socket.from_stdlib_socket(sock)), tls, server_hostname=host, https_compatible=True
        )
        try:
            await stream.do_handshake()
        except trio.BrokenResourceError as error:
            raise _cause(error) from error
        return _Secure(sock, stream)
    except BaseException:
        sock.close()
        raise


@define
class _Plain:
    _sock: socket.socket

    async def send(self, data: bytes) -> None:
        sock = self._sock
        try:
            sent = sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent == len(data):
            return
        view = memoryview(data)[sent:]
        while view:
            await trio.lowlevel.wait_writable(sock)
            try:
                view = view[sock.send(view) :]
            except BlockingIOError:
                continue

    async def receive(self) -> bytes:
        sock = self._sock
        while True:
            await trio.lowlevel.wait_readable(sock)
            try:
                return sock.recv(_READ)
            except BlockingIOError:
                continue

    def gone(self) -> bool:
        return _speaks(self._sock)

    def close(self) -> None:
        self._sock.close()


@define
class _Secure:
    _sock: socket.socket
    _stream: trio.SSLStream[trio.SocketStream]

    async def send(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise _cause(error) from error

    async def receive(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some(_READ))
        except trio.BrokenResourceError as error:
            raise _cause(error) from error

    def gone(self) -> bool:
        # Session tickets (RFC 8446 section 4.6.1) arrive between answers, and are no reason to part.
        return _speaks(self._sock, only_end=True)

    def close(self) -> None:
        self._sock.close()


def _speaks(sock: socket.socket, *, only_end: bool = False) -> bool:
    try:
        return not (sock.recv(1, socket.MSG_PEEK) and only_end)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _cause(error: trio.BrokenResourceError) -> OSError:
    """What broke the connection, in the terms of plain sockets."""
    cause = error.__cause__
    return cause if isinstance(cause, OSError) else ConnectionResetError("the connection broke")
