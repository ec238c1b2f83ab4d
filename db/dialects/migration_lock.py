"""Waiting for the lock of migrations, on a server: never in silence, and never beyond the deadline.

The server does the waiting, so whoever waits goes on at once when the holder is done, or dead. In between, whoever
waits looks who the holder is, and says so.
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

#: How long to wait before anything is said of it, in seconds: most migrations are done by then.
PATIENCE = 1.0
#: How long to wait until it is said again, in seconds.
AGAIN = 10.0


@frozen
class Holder:
    """Who migrates.

    Attributes:
        connection: the server's number for the session.
        program: what it calls itself; empty where it does not tell, or we may not know.
        address: where it connects from, likewise.
        activity: what it is doing, and since when, likewise.
        cure: the statement that ends the session.
    """

    connection: int
    program: str
    address: str
    activity: str
    cure: str

    def __str__(self) -> str:
        """Give it in words, to be followed by a verb."""
        details = [f"connection {self.connection}", self.address and f"from {self.address}", self.activity]
        return f"{self.program or 'another process'} ({', '.join(filter(None, details))})"


def program(name: str) -> str:
    """Give what a session that migrates calls itself: with the process, which others may have to find and end."""
    return f"{name} on {socket.gethostname()}, pid {os.getpid()}"[:63]  # PostgreSQL cuts names there


def acquire(
    target: Target,
    deadline: float,
    tell: Callable[[str], None],
    *,
    take: Callable[[float], bool],
    holder: Callable[[], Holder | None],
) -> None:
    """Wait for the lock, and say for whom.

    Args:
        target: the database.
        deadline: how long to wait, in seconds.
        tell: told in a sentence who holds the lock, once that takes a moment and then now and again.
        take: waits for the lock on the server, for so many seconds at most; whether it was had.
        holder: finds out who has it; None when nobody has it any more.

    Raises:
        Contention: the lock was not to be had; the message says who has it.
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
