"""The news that a client has ended its side of a connection, or is gone, for all connections at the price of one.

To notice that a client leaves while its request runs, somebody has to wait for its connection to become readable. A
task of its own per request that does so costs more than parsing the request does. Linux can tell on its own account
when a peer has ended its side (EPOLLRDHUP) or reset its connection (EPOLLHUP, EPOLLERR): each socket is entered once
into an epoll instance of the server's, edge-triggered, and one task waits for that.

Applications come to it by an ASGI extension: `scope["extensions"][EXTENSION]["notify"]` takes a function which is
called, from within the event loop, when the client of this request leaves; at once where it has left already. Where it
returns true, the application's task is cancelled, by the scope that the connection has anyway. An application that does
not use it, or runs where it does not exist, waits for `http.disconnect`. `["arrived"]` says whether `receive`
would return a piece of the body, or its end, without waiting.
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Callable
from typing import Any, Final

import trio

#: The ASGI extension by which a server offers to tell when the client of a request leaves.
EXTENSION: Final = "llm_proxy.hang_up"

# Not in the type stubs of every platform, nor in every platform's module.
_epoll: Any = getattr(select, "epoll", None)
_EVENTS: Final[int] = getattr(select, "EPOLLRDHUP", 0) | getattr(select, "EPOLLET", 0)
_GONE: Final[int] = getattr(select, "EPOLLHUP", 0) | getattr(select, "EPOLLERR", 0)


class HangUps:
    """Waits for all peers at once. `run` does the work."""

    def __init__(self) -> None:
        """Open the epoll instance; raises OSError where there are no descriptors left."""
        self._poll = _epoll()
        self._listeners: dict[int, Callable[[bool], None]] = {}

    @staticmethod
    def available() -> bool:
        """Whether this system can tell."""
        return _epoll is not None and bool(_EVENTS)

    def watch(self, descriptor: int, listener: Callable[[bool], None]) -> None:
        """Call `listener` when the peer of this socket has ended its side; with True when the connection is gone."""
        self._listeners[descriptor] = listener
        self._poll.register(descriptor, _EVENTS)

    def forget(self, descriptor: int, listener: Callable[[bool], None]) -> None:
        """Stop watching. Where the socket was closed before, its number may be another connection's by now."""
        if self._listeners.get(descriptor) == listener:
            del self._listeners[descriptor]
            with contextlib.suppress(OSError):
                self._poll.unregister(descriptor)

    async def run(self) -> None:
        """Tell the listeners, until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._poll.fileno())
            for descriptor, events in self._poll.poll(0):
                listener = self._listeners.get(descriptor)
                if listener is not None:
                    listener(bool(events & _GONE))

    def close(self) -> None:
        """Close the epoll instance, when nothing is watched any more."""
        self._poll.close()
