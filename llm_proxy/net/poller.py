"""Waits for data on sockets, and notices that peers close their side, with one task for all connections of a trio run.

Trio's own wait for a socket costs a system call each time, because it registers the socket for one event only. Here
each socket is registered once, edge-triggered, in one epoll instance, and one task waits for that instance
(epoll(7); ADR 31). A socket that has been read until it was empty is not read again before the next event. Linux also
reports when a peer has closed its side (EPOLLRDHUP) or has reset the connection (EPOLLHUP, EPOLLERR).

On systems without that, trio waits, and nobody is told of a disconnect.
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Callable
from typing import Any, Final

import trio
from trio.lowlevel import Abort, Task, checkpoint, current_task, reschedule, wait_readable, wait_task_rescheduled

# Not in the type stubs of every platform, nor in every platform's module.
_epoll: Any = getattr(select, "epoll", None)
_RESET: Final[int] = getattr(select, "EPOLLHUP", 0) | getattr(select, "EPOLLERR", 0)
_CLOSED: Final[int] = getattr(select, "EPOLLRDHUP", 0) | _RESET
_EVENTS: Final[int] = getattr(select, "EPOLLIN", 0) | getattr(select, "EPOLLRDHUP", 0) | getattr(select, "EPOLLET", 0)

#: Whether this system reports disconnects.
AVAILABLE: Final = _epoll is not None and hasattr(select, "EPOLLRDHUP")


class Watch:
    """One socket that is watched. One task at a time may wait for it."""

    __slots__ = ("_descriptor", "_on_closed", "_poller", "_ready", "_task", "_was_reset", "peer_closed")

    def __init__(self, poller: Poller | None, descriptor: int) -> None:
        self._poller = poller
        self._descriptor = descriptor
        self._ready = False
        self._task: Task | None = None
        self._on_closed: Callable[[bool], None] | None = None
        self._was_reset = False
        #: Whether the peer has closed its side of the connection.
        self.peer_closed = False

    async def readable(self) -> None:
        """Wait until there may be something to read, or the end of the stream. A checkpoint.

        Raises:
            trio.ClosedResourceError: `close` was called, before or meanwhile.
            trio.BusyResourceError: another task waits.
        """
        if self._ready:
            await checkpoint()
        elif self._poller is None and self._descriptor >= 0:
            await wait_readable(self._descriptor)
        elif self._descriptor >= 0:
            if self._task is not None:
                raise trio.BusyResourceError("another task is reading from this connection")
            self._task = current_task()
            await wait_task_rescheduled(self._give_up)
        if self._descriptor < 0:
            raise trio.ClosedResourceError

    def _give_up(self, _: object) -> Abort:
        self._task = None
        return Abort.SUCCEEDED

    def emptied(self) -> None:
        """Note that everything was read. What arrives from now on is an event; the end of the stream was one."""
        self._ready = self.peer_closed

    def on_closed(self, callback: Callable[[bool], None] | None) -> None:
        """Call `callback` when the peer closes its side, or now if it has; with True if the connection is lost."""
        self._on_closed = callback
        if callback is not None and self.peer_closed:
            callback(self._was_reset)

    def happened(self, events: int) -> None:
        """Take the events of an epoll instance."""
        self._ready = True
        self._wake()
        if events & _CLOSED:
            self.peer_closed = True
            self._was_reset |= bool(events & _RESET)
            if self._on_closed is not None:
                self._on_closed(self._was_reset)

    def _wake(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            reschedule(task)

    def close(self) -> None:
        """Stop watching, before the socket is closed. A task that waits gets trio.ClosedResourceError. Idempotent."""
        self._on_closed = None
        if self._descriptor >= 0:
            if self._poller is not None:
                self._poller.forget(self._descriptor, self)
            self._descriptor = -1
            self._wake()


class Poller:
    """Watches the sockets of a trio run; `watch` makes it when it is needed first."""

    def __init__(self) -> None:
        self._epoll = _epoll()
        self._watches: dict[int, Watch] = {}

    def add(self, descriptor: int) -> Watch:
        """Watch a socket. Raises OSError if the system has no room for it."""
        watched = Watch(self, descriptor)
        self._epoll.register(descriptor, _EVENTS)
        self._watches[descriptor] = watched
        return watched

    def forget(self, descriptor: int, watched: Watch) -> None:
        """Stop watching. If the socket is closed already, another connection may have its number: do nothing then."""
        if self._watches.get(descriptor) is watched:
            del self._watches[descriptor]
            with contextlib.suppress(OSError, ValueError):  # the socket or this object is closed already
                self._epoll.unregister(descriptor)

    async def run(self) -> None:
        with contextlib.closing(self._epoll):
            while True:
                await wait_readable(self._epoll.fileno())
                for descriptor, events in self._epoll.poll(0):
                    watched = self._watches.get(descriptor)
                    if watched is not None:
                        watched.happened(events)


_current: trio.lowlevel.RunVar[Poller] = trio.lowlevel.RunVar("llm_proxy.net.poller")


def watch(descriptor: int) -> Watch:
    """Watch a socket until `Watch.close`. Raises OSError if the system has no room for it."""
    if not AVAILABLE:
        return Watch(None, descriptor)
    try:
        poller = _current.get()
    except LookupError:
        poller = Poller()
        _current.set(poller)
        trio.lowlevel.spawn_system_task(poller.run)
    return poller.add(descriptor)
