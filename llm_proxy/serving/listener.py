"""Listening sockets: binding them, and accepting from them whatever happens."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Final

import trio

from llm_proxy.serving.asgi import Address

_NO_ROOM: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_BACK_OFF: Final = 0.1
"""Seconds without accepting after the process or the system has run out of files or memory."""


def bind(host: str, port: int) -> tuple[socket.socket, ...]:
    """Bind a TCP socket for every address of `host`; an empty host means every address of this machine.

    Raises:
        OSError: `host` is not known, or an address cannot be bound.
    """
    sockets: list[socket.socket] = []
    flags = socket.AI_PASSIVE if not host else 0
    try:
        for family, kind, protocol, _, address in dict.fromkeys(
            socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
        ):
            if port == 0 and sockets:  # every address gets the port that the system chose for the first
                address = (address[0], sockets[0].getsockname()[1], *address[2:])
            sock = socket.socket(family, kind, protocol)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return tuple(sockets)


def name_of(sock: socket.socket, *, peer: bool = False) -> Address | None:
    """Return an end's address as ASGI wants it; None when it has none or is gone."""
    try:
        name = sock.getpeername() if peer else sock.getsockname()
    except OSError:
        return None
    if sock.family == socket.AF_UNIX:
        return (os.fsdecode(name), None) if name else None
    return name[0], name[1]


async def accept(
    listener: socket.socket,
    handle: Callable[[socket.socket], None],
    room: Callable[[], bool],
    make_room: Callable[[], object],
) -> None:
    """Accept for ever, and never fail: what `accept` can raise concerns one connection, or passes.

    Raises:
        trio.ClosedResourceError: the listener was closed.
    """
    while True:
        await trio.lowlevel.wait_readable(listener)
        while room():
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.EBADF:
                    raise trio.ClosedResourceError from error
                if error.errno in _NO_ROOM:
                    make_room()
                    await trio.sleep(_BACK_OFF)
                break
            handle(sock)
        else:
            make_room()
            await trio.sleep(_BACK_OFF)
