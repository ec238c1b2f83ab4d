"""Timeouts that cost one dictionary entry each.

A cancel scope around each wait costs as much as the wait itself. But all waits of one kind have the same timeout, so
the one that began first expires first. A queue in order of arrival and one task that sleeps until the first entry
expires are enough.
"""

from __future__ import annotations

from typing import Protocol

import trio
from attrs import define, field


class Expirable(Protocol):
    """Something that can time out."""

    def expire(self, wheel: TimeoutWheel) -> None:
        """End what `wheel` has timed. Must not wait."""


@define(eq=False)
class TimeoutWheel:
    """Expires its entries after `seconds`. Belongs to one trio run.

    Its task starts with the first entry and ends when no entry is left.
    """

    seconds: float
    _due: dict[Expirable, float] = field(factory=dict, init=False, repr=False)
    _running: bool = field(default=False, init=False)

    def start(self, entry: Expirable) -> float:
        """Start or restart the timeout of `entry`; return the time of expiry."""
        due = self._due
        if entry in due:
            del due[entry]
        due[entry] = end = trio.current_time() + self.seconds
        if not self._running:
            self._running = True
            trio.lowlevel.spawn_system_task(self._run)
        return end

    def stop(self, entry: Expirable) -> None:
        self._due.pop(entry, None)

    async def _run(self) -> None:
        try:
            while self._due:
                # Keep no reference to an entry while this task sleeps.
                due = next(iter(self._due.values()))
                if due > trio.current_time():
                    await trio.sleep_until(due)
                else:
                    entry = next(iter(self._due))
                    del self._due[entry]
                    entry.expire(self)
                    del entry
        finally:
            self._running = False
