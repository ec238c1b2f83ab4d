"""A database in numbers, for whoever shows them: its connections now, and what became of its transactions."""

from __future__ import annotations

import threading
import time
from typing import Final, Literal

from attrs import define, field, frozen

from db.dialects.failure import Kind

#: Why a transaction runs again: what the database layer mends by itself.
RETRIES: Final = (Kind.CONTENTION, Kind.DISCONNECTED, Kind.READ_ONLY)
#: What a commit whose fate is not known is counted as.
COMMIT_UNKNOWN: Final = "commit_unknown"


@frozen
class Connections:
    """The state of the pool at one moment.

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
class Tally:
    """Counts from any thread. Nothing of it is on the path of a statement.

    Attributes:
        committed: transactions that succeeded.
        retries: how often one was run again, by cause.
        failures: those that failed for good, by cause; an error of the function itself is none.
        last_success: when one last succeeded, in seconds since 1970; None where none has yet.
    """

    committed: dict[str, int] = field(factory=lambda: {"read": 0, "write": 0})
    retries: dict[str, int] = field(factory=lambda: dict.fromkeys(map(cause, RETRIES), 0))
    failures: dict[str, int] = field(factory=lambda: dict.fromkeys([*map(cause, Kind), COMMIT_UNKNOWN], 0))
    last_success: float | None = None
    _lock: threading.Lock = field(factory=threading.Lock, repr=False)

    def commit(self, kind: Literal["read", "write"]) -> None:
        """Count a transaction that succeeded."""
        with self._lock:
            self.committed[kind] += 1
            self.last_success = time.time()

    def retry(self, why: str) -> None:
        """Count a transaction that runs again."""
        with self._lock:
            self.retries[why] += 1

    def failure(self, why: str) -> None:
        """Count a transaction that failed for good."""
        with self._lock:
            self.failures[why] += 1


def cause(kind: Kind) -> str:
    """The name that a kind of failure is counted under."""
    return "contention" if kind is Kind.LOCKED else kind.name.lower()
