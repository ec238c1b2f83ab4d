"""When the next request begins.

A closed loop sends it when an answer is complete, and so finds out how much a server can do. It cannot find out how
long people wait: while the server stalls, it asks nothing. An open loop has a plan of moments that owes nothing to the
server, as people's requests do, and times are counted from those moments; a request for which no connection is free
waits in line, and its waiting counts. Latency that is counted from the sending instead leaves that out, which is known
as coordinated omission.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count, islice, takewhile
from random import Random
from typing import Literal, Protocol

import trio
from attrs import frozen

from llm_proxy.load.tally import TIMED_OUT, Tally
from llm_proxy.load.timer import Timer

Arrivals = Literal["even", "poisson"]


@frozen
class Plan:
    """How much load, and how it comes.

    Attributes:
        connections: that are open at most, each with one request at a time.
        requests: after so many no more begin; None for no such limit.
        seconds: likewise, after that time.
        rate: requests per second of an open loop; None for a closed one.
        arrivals: of an open loop: evenly spaced, or as independent people come (a Poisson process).
        seed: of the Poisson process.
        timeout: seconds after which a request is given up, its waiting in line included.
    """

    connections: int = 32
    requests: int | None = None
    seconds: float | None = None
    rate: float | None = None
    arrivals: Arrivals = "even"
    seed: int = 1
    timeout: float = 300.0

    @property
    def planned(self) -> int | None:
        """How many requests there will be; None where only the server decides. Poisson arrivals come to about that."""
        if self.rate is None or self.seconds is None:
            return self.requests
        within = max(1, round(self.rate * self.seconds))
        return within if self.requests is None else min(within, self.requests)

    def moments(self) -> Iterator[float]:
        """Return when the requests of an open loop begin, in seconds from the start."""
        if self.rate is None:
            raise ValueError("a closed loop has no moments")
        times = (number / self.rate for number in count()) if self.arrivals == "even" else self._poisson(self.rate)
        if self.seconds is not None:
            end = self.seconds
            times = takewhile(lambda moment: moment < end, times)
        return islice(times, self.requests)

    def _poisson(self, rate: float) -> Iterator[float]:
        source = Random(self.seed)  # noqa: S311 - load is random, not secret
        moment = 0.0
        while True:
            moment += source.expovariate(rate)
            yield moment


class Pace(Protocol):
    """Tells each free connection when its next request was to begin."""

    async def take(self) -> float | None:
        """Wait until a request begins, and return the moment that it was meant to; None when no more do."""


class ClosedLoop:
    """The next request begins at once."""

    def __init__(self, plan: Plan, began: float) -> None:
        """Count from this moment of `time.perf_counter`."""
        self._left = plan.requests
        self._deadline = None if plan.seconds is None else began + plan.seconds

    async def take(self) -> float | None:
        """Return the present."""
        now = time.perf_counter()
        if self._deadline is not None and now >= self._deadline:
            return None
        if self._left is not None:
            if not self._left:
                return None
            self._left -= 1
        return now


class OpenLoop:
    """The next request begins when the plan says so, or as soon after it as a connection is free.

    Connections that are free stand in a queue, and the first of them waits for the next moment; so a moment that has
    passed already when it is taken found no connection free.
    """

    def __init__(self, plan: Plan, began: float, timer: Timer, tally: Tally) -> None:
        """Count from this moment of `time.perf_counter`."""
        self._moments = plan.moments()
        self._timeout = plan.timeout
        self._began = began
        self._timer = timer
        self._tally = tally
        self._queue = trio.Lock()

    async def take(self) -> float | None:
        """Wait for the next moment of the plan; those that waited for longer than the timeout are given up."""
        free = time.perf_counter()
        async with self._queue:
            for offset in self._moments:
                moment = self._began + offset
                now = time.perf_counter()
                if now < moment:
                    await self._timer.wait_until(moment)
                    now = time.perf_counter()
                elif now - moment > self._timeout:
                    self._tally.failures[TIMED_OUT] += 1
                    continue
                self._tally.lag.add(max(0.0, now - max(moment, free)))
                self._tally.waited += moment < free
                return moment
        return None
