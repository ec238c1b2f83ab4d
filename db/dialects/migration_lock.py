"""Waiting for the migration lock on a server, with a deadline, and with a message that names the holder.

The server does the waiting, so a waiting process continues at once when the holder has finished or died. From time to
time it asks the server who the holder is, and reports it.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable

from attrs import frozen

from db.dsn.target import Target
from db.errors import Contention

#: Seconds until the holder is reported: most migrations are done by then.
PATIENCE = 1.0
#: Seconds until it is reported again.
AGAIN = 10.0


@frozen
class Holder:
    """The process that migrates.

    Attributes:
        connection: the server's number of the session.
        program: its application name; empty if unknown, as are the next two.
        address: the client's address.
        activity: what it is doing, and since when.
        cure: the statement that ends the session.
    """

    connection: int
    program: str
    address: str
    activity: str
    cure: str

    def __str__(self) -> str:
        details = [f"connection {self.connection}", self.address and f"from {self.address}", self.activity]
        return f"{self.program or 'another process'} ({', '.join(filter(None, details))})"


def program(name: str) -> str:
    """The application name of a session that migrates; it has the process id, by which others can find it."""
    return f"{name} on {socket.gethostname()}, pid {os.getpid()}"[:63]  # PostgreSQL cuts names there


def acquire(
    target: Target,
    deadline: float,
    tell: Callable[[str], None],
    *,
    take: Callable[[float], bool],
    holder: Callable[[], Holder | None],
) -> None:
    """Wait for the lock, and report its holder.

    Args:
        target: the database.
        deadline: how long to wait, in seconds.
        tell: called with a sentence that names the holder, after `PATIENCE` and then every `AGAIN` seconds.
        take: waits for the lock on the server for a maximum of seconds; returns whether it has the lock.
        holder: finds the holder; None if the lock is free.

    Raises:
        Contention: the lock was held until the deadline; the message names the holder.
    """
    end = time.monotonic() + deadline
    step = PATIENCE
    while not take(min(step, max(0.0, end - time.monotonic()))):
        step = AGAIN
        found = holder()
        left = end - time.monotonic()
        if left <= 0:
            raise Contention(f"{target}: {_reason(found, deadline)}")
        if found is not None:
            tell(f"{target}: {found} is migrating it; waiting for that, for {math.ceil(left)} s more at most")


def _reason(found: Holder | None, deadline: float) -> str:
    who = "another process" if found is None else str(found)
    cure = "try again" if found is None else f"try again, or, if it hangs, end it: {found.cure}"
    return f"{who} is migrating it, and was not done within MIGRATION_LOCK_TIMEOUT ({deadline:g} s); {cure}"
