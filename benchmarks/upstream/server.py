"""The listener, and the address that it announces."""

from __future__ import annotations

import socket
from collections.abc import Callable

import trio

from benchmarks.upstream.connection import Behaviour, Connection

_BACKLOG = 4096


def listen(host: str, port: int) -> socket.socket:
    """Return a non-blocking listening socket; port 0 picks a free one."""
    listener = socket.create_server((host, port), backlog=_BACKLOG)
    listener.settimeout(0)
    return listener


async def serve(listener: socket.socket, behaviour: Behaviour, announce: Callable[[str, int], None]) -> None:
    """Accept and serve connections until cancelled; `announce` is called with the address once that has begun."""
    host, port = listener.getsockname()[:2]
    number = 0
    async with trio.open_nursery() as nursery:
        announce(host, port)
        while True:
            await trio.lowlevel.wait_readable(listener)
            while True:
                try:
                    sock, _ = listener.accept()
                except BlockingIOError:
                    break
                except ConnectionError:
                    continue
                sock.settimeout(0)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                number += 1
                nursery.start_soon(Connection(sock, number, behaviour).run)
