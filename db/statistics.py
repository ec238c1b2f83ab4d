"""Statistics of a database: its connections now, and the results of its transactions."""

from __future__ import annotations

import threading
import time
from typing import Final, Literal

from attrs import define, field, frozen

from db.dialects.failure import FailureKind

#: Failures after which a transaction is retried.
RETRIES: Final = (FailureKind.CONTENTION, FailureKind.DISCONNECTED, FailureKind.READ_ONLY)
#: The cause under which a commit with an unknown result is counted.
COMMIT_UNKNOWN: Final = "commit_unknown"


@frozen
class Connections:
    """The current state of the pool.

    Attributes:
        in_use: connections that carry a transaction.
        idle: open ones that wait for use.
        limit: how many may be open.
        waiting: tasks that wait for one.
    """

    in_use: int
    idle: int
    limit: int
    waiting: int


@define(eq=False)
class Statistics:
    """Counts from any thread.

    Attributes:
        committed: transactions that succeeded.
        retries: number of retries, by cause.
        failures: transactions that failed, by cause; an error of the function itself is not counted.
        last_success: time of the last success, seconds since the epoch; None before the first.
    """

    committed: dict[str, int] = field(factory=lambda: {"read": 0, "write": 0})
    retries: dict[str, int] = field(factory=lambda: dict.fromkeys(map(cause, RETRIES), 0))
    failures: dict[str, int] = field(factory=lambda: dict.fromkeys([*map(cause, FailureKind), COMMIT_UNKNOWN], 0))
    last_success: float | None = None
    _lock: threading.Lock = field(factory=threading.Lock, repr=False)

    def commit(self, kind: Literal["read", "write"]) -> None:
        with self._lock:
            self.committed[kind] += 1
            self.last_success = time.time()

    def retry(self, why: str) -> None:
        with self._lock:
            self.retries[why] += 1

    def failure(self, why: str) -> None:
        with self._lock:
            self.failures[why] += 1


def cause(kind: FailureKind) -> str:
    """The name under which a kind of failure is counted."""
    return "contention" if kind is FailureKind.LOCKED else kind.name.lower()
