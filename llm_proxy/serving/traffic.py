"""What a server is busy with: its connections, and the requests that are running on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import trio


class Connection(Protocol):
    """A connection as the server sees it, of either protocol."""

    @property
    def idle_since(self) -> float | None:
        """Trio's time since when the connection waits for a request; None while it has one."""

    def close_if_idle(self) -> None:
        """Close the connection soon unless a request is running or has begun to arrive on it."""

    def abort(self) -> None:
        """Reset the connection at once, whoever is reading or writing."""


class Traffic:
    """Counts running requests and knows all open connections of one server.

    Attributes:
        draining: the server was told to stop; every response from now on ends its connection.
        running: requests that an application is handling.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self.draining = False
        self.running = 0
        self.connections: set[Connection] = set()
        self._changed = trio.Event()

    @contextmanager
    def connection(self, connection: Connection) -> Iterator[None]:
        """Keep `connection` among the open ones while the block runs."""
        self.connections.add(connection)
        try:
            yield
        finally:
            self.connections.discard(connection)
            self.notify()

    def notify(self) -> None:
        """Wake whoever waits for a change of these figures."""
        self._changed.set()

    async def change(self) -> None:
        """Wait until a connection has ended or, while draining, a request has."""
        self._changed = trio.Event()
        await self._changed.wait()

    def begin_request(self) -> None:
        """Count a request in."""
        self.running += 1

    def end_request(self) -> None:
        """Count a request out."""
        self.running -= 1
        if self.draining:
            self.notify()

    def idlest(self) -> Connection | None:
        """Return the connection that has been idle for the longest time."""
        idle = [(since, id(c), c) for c in self.connections if (since := c.idle_since) is not None]
        return min(idle)[2] if idle else None
