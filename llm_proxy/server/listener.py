"""Listening sockets: bind them, and accept connections in spite of errors."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn

import trio

from llm_proxy.server.asgi import Address

_NO_ROOM: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_NOT_AVAILABLE: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})


def bind(host: str, port: int) -> tuple[socket.socket, ...]:
    """Bind a TCP socket for each address of `host`; an empty host means all addresses of this machine.

    For port 0 the system chooses one, the same for all addresses. An address that this machine does not have, such as
    an IPv6 address if IPv6 is disabled, is skipped if there is another one.

    Raises:
        OSError: `host` is unknown, or an address cannot be bound.
    """
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=0 if host else socket.AI_PASSIVE)
    for family, kind, protocol, _, address in dict.fromkeys(found):
        try:
            sock = _bind_one(family, kind, protocol, (address[0], port, *address[2:]))
        except OSError as error:
            if error.errno in _NOT_AVAILABLE:
                missing = error
                continue
            for sock in sockets:
                sock.close()
            raise
        sockets.append(sock)
        port = sock.getsockname()[1]
    if missing is not None and not sockets:
        raise missing
    return tuple(sockets)


def _bind_one(family: int, kind: int, protocol: int, address: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def address_of(sock: socket.socket, *, peer: bool = False) -> Address | None:
    """Return the address of this end, or of the peer, in the form of ASGI; None if there is none."""
    try:
        name = sock.getpeername() if peer else sock.getsockname()
    except OSError:
        return None
    if sock.family == socket.AF_UNIX:
        return (os.fsdecode(name), None) if name else None
    return name[0], name[1]


async def accept_forever(
    listener: socket.socket,
    handle: Callable[[socket.socket], object],
    has_room: Callable[[], bool],
    make_room: Callable[[], Awaitable[None]],
    turn: float = 0.0,
) -> NoReturn:
    """Accept connections and never fail: an error of `accept` concerns one connection, or is temporary.

    It accepts one connection of the non-blocking `listener` at a time, so that processes that share it share its
    connections too. `make_room` is called if there is no room, or if the process has no file descriptors left; it waits
    for some time. `turn` is how many seconds to wait after each connection: all processes that share the listener wake
    up for a burst of connections, and without this the first one would accept most of it.
    """
    while True:
        await trio.lowlevel.wait_readable(listener)
        if not has_room():
            await make_room()
            continue
        try:
            sock, _ = listener.accept()
        except OSError as error:
            if error.errno in _NO_ROOM:
                await make_room()
        else:
            handle(sock)
            if turn:
                await trio.sleep(turn)
