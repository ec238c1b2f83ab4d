"""Notices that peers close their side of a connection, with one task for all connections.

To notice that a client disconnects while its request runs, something has to wait until its connection is readable. One
task per request for that costs more than parsing the request. Linux reports when a peer has closed its side
(EPOLLRDHUP) or has reset the connection (EPOLLHUP, EPOLLERR): each socket is registered once, edge-triggered, in one
epoll instance, and one task waits for that instance.

A server offers this to applications as the ASGI extension `scope["extensions"][EXTENSION]`:

- `["on_disconnect"](callback)` sets a function that is called in the event loop when the client of this request
  disconnects, and immediately if it already has. If the function returns true, the application's task is cancelled by
  the cancel scope of the connection.
- `["body_arrived"]()` says whether `receive` would return a piece of the body, or its end, without waiting.

An application that does not use the extension, or runs on a server without it, waits for `http.disconnect`.
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Callable
from typing import Any, Final

import trio

EXTENSION: Final = "http.disconnect.callback"

# Not in the type stubs of every platform, nor in every platform's module.
_epoll: Any = getattr(select, "epoll", None)
_EVENTS: Final[int] = getattr(select, "EPOLLRDHUP", 0) | getattr(select, "EPOLLET", 0)
_RESET: Final[int] = getattr(select, "EPOLLHUP", 0) | getattr(select, "EPOLLERR", 0)


class ClientDisconnected(OSError):
    """The client of a request has disconnected: nothing can reach it any more."""

    def __init__(self, message: str = "the client has disconnected") -> None:
        super().__init__(message)


class DisconnectWatcher:
    """Watches any number of sockets. `run` does the work. Raises OSError if no file descriptor is left."""

    def __init__(self) -> None:
        self._poll = _epoll()
        self._callbacks: dict[int, Callable[[bool], None]] = {}

    @staticmethod
    def available() -> bool:
        return _epoll is not None and bool(_EVENTS)

    def add(self, descriptor: int, callback: Callable[[bool], None]) -> None:
        """Call `callback` when the peer has closed its side of this socket; with True if the connection is lost."""
        self._callbacks[descriptor] = callback
        self._poll.register(descriptor, _EVENTS)

    def remove(self, descriptor: int, callback: Callable[[bool], None]) -> None:
        """Stop watching. If the socket is closed already, another connection may have its number: do nothing then."""
        if self._callbacks.get(descriptor) == callback:
            del self._callbacks[descriptor]
            with contextlib.suppress(OSError):
                self._poll.unregister(descriptor)

    async def run(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._poll.fileno())
            for descriptor, events in self._poll.poll(0):
                callback = self._callbacks.get(descriptor)
                if callback is not None:
                    callback(bool(events & _RESET))

    def close(self) -> None:
        self._poll.close()
