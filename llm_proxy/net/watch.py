"""Deadlines at the cost of a dictionary entry.

A cancel scope round every wait costs as much as the wait itself. But all waits of one kind are allowed the same time,
so the one that began first is due first: a queue in order of arrival, and one task that sleeps until its head is due.
"""

from __future__ import annotations

from typing import Protocol

import trio


class Watched(Protocol):
    """What can be too slow."""

    def expire(self, watch: Watch) -> None:
        """It was too slow for `watch`: end it, at once and without waiting."""


class Watch:
    """Expires whatever is watched for longer than `seconds`. Belongs to one trio run.

    The task that looks after it is started when there is something to watch, and ends when there is nothing left.
    """

    __slots__ = ("_due", "_on_duty", "seconds")

    def __init__(self, seconds: float) -> None:
        """Allow `seconds` to everything that is watched."""
        self.seconds = seconds
        self._due: dict[Watched, float] = {}
        self._on_duty = False

    def start(self, watched: Watched) -> float:
        """Watch from now on, and return until when; what is watched already starts anew."""
        due = self._due
        if watched in due:
            del due[watched]
        due[watched] = end = trio.current_time() + self.seconds
        if not self._on_duty:
            self._on_duty = True
            trio.lowlevel.spawn_system_task(self._look_after)
        return end

    def stop(self, watched: Watched) -> None:
        """Watch no longer; nothing happens if it was not watched."""
        self._due.pop(watched, None)

    async def _look_after(self) -> None:
        try:
            while self._due:
                # While this sleeps, it holds on to nobody.
                due = next(iter(self._due.values()))
                if due > trio.current_time():
                    await trio.sleep_until(due)
                else:
                    watched = next(iter(self._due))
                    del self._due[watched]
                    watched.expire(self)
                    del watched
        finally:
            self._on_duty = False
