"""When the next request begins.

A closed loop sends it when a response is complete, and measures how much a server can do. It cannot measure how long
users wait: while the server stalls, it sends nothing. With a fixed rate requests have planned starts that do not depend
on the server, as those of users do, and durations count from those starts. If no connection is free, a request waits in
a queue, and its waiting counts. A latency that counts from sending would omit it, which is known as coordinated
omission.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count, islice, takewhile
from random import Random
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import trio
from attrs import frozen

if TYPE_CHECKING:
    from llm_proxy.load.measurements import Measurements

Arrivals = Literal["even", "poisson"]
#: The failure of a request that took longer than the timeout. Other failures have the names of their exceptions.
TIMED_OUT: Final = "Timeout"


@frozen
class LoadPlan:
    """How much load, and when requests begin."""

    connections: int = 32  # each with one request at a time
    requests: int | None = None  # start no more than this number of requests; None for no limit
    seconds: float | None = None  # start no request after this time; None for no limit
    rate: float | None = None  # requests per second; None for a closed loop
    arrivals: Arrivals = "even"  # with a rate: evenly spaced, or as from independent users (a Poisson process)
    seed: int = 1  # of the Poisson process
    timeout: float = 300.0  # give up a request after this number of seconds, including its time in the queue

    @property
    def planned(self) -> int | None:
        """Number of requests, with Poisson arrivals approximately; None if it depends on the server."""
        if self.rate is None or self.seconds is None:
            return self.requests
        within = max(1, round(self.rate * self.seconds))
        return within if self.requests is None else min(within, self.requests)

    def starts(self) -> Iterator[float]:
        """Return when the requests of a fixed rate begin, in seconds from the start of the load."""
        if self.rate is None:
            raise ValueError("a closed loop has no planned starts")
        times = (number / self.rate for number in count()) if self.arrivals == "even" else self._poisson(self.rate)
        if self.seconds is not None:
            end = self.seconds
            times = takewhile(lambda start: start < end, times)
        return islice(times, self.requests)

    def _poisson(self, rate: float) -> Iterator[float]:
        source = Random(self.seed)  # noqa: S311 - load is random, not secret
        start = 0.0
        while True:
            start += source.expovariate(rate)
            yield start


class ClosedLoop:
    """The next request begins at once."""

    def __init__(self, plan: LoadPlan, began: float) -> None:
        self._left = plan.requests
        self._deadline = None if plan.seconds is None else began + plan.seconds

    async def next_start(self) -> float | None:
        """Wait until a request begins, and return the time from which it counts; None if there are no more."""
        now = time.perf_counter()
        if self._deadline is not None and now >= self._deadline:
            return None
        if self._left is not None:
            if not self._left:
                return None
            self._left -= 1
        return now


class FixedRate:
    """The next request begins at its planned start, or as soon after it as a connection is free.

    Free connections wait in a queue, and the first one waits for the next planned start. So if that has passed already,
    no connection was free.
    """

    def __init__(self, plan: LoadPlan, began: float, measured: Measurements) -> None:
        self._starts = plan.starts()
        self._timeout = plan.timeout
        self._began = began
        self._measured = measured
        self._queue = trio.Lock()

    async def next_start(self) -> float | None:
        """Wait for the next planned start; requests that waited longer than the timeout are given up.

        The generator's own lag is added to the planned start: the event loop wakes up to a millisecond late.
        """
        free = time.perf_counter()
        async with self._queue:
            for offset in self._starts:
                start = self._began + offset
                now = time.perf_counter()
                if now < start:
                    await trio.sleep(start - now)
                    now = time.perf_counter()
                elif now - start > self._timeout:
                    self._measured.failures[TIMED_OUT] += 1
                    continue
                lag = max(0.0, now - max(start, free))
                self._measured.lag.add(lag)
                self._measured.waited += start < free
                return start + lag
        return None


Pace: TypeAlias = ClosedLoop | FixedRate
