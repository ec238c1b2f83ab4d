"""Requests that wait for running ones to end, because only these are in the way of a limit."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from itertools import chain
from operator import attrgetter

from attrs import define, field

from llm_proxy.ledger.batch import PendingAdmission
from llm_proxy.limits import Blocked

#: Maximum number of requests that wait; beyond it, they are refused at once.
MAX_BLOCKED = 1000
#: Requests of one limit that are judged again in one transaction.
_RETRIED = 32
#: Seconds between attempts: settlements of other workers are not announced.
_RETRY = 0.05


@define(eq=False)
class BlockedRequests:
    """Requests by the limit that they wait for, in order of arrival. They hold no lock."""

    #: Trio's time of the next retry; infinite if there are none.
    retry_at: float = field(default=math.inf, init=False)
    _by_limit: dict[str, list[PendingAdmission]] = field(factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return sum(map(len, self._by_limit.values()))

    def __iter__(self) -> Iterator[PendingAdmission]:
        return chain.from_iterable(self._by_limit.values())

    @property
    def limits(self) -> Collection[str]:
        """The limits that requests wait for."""
        return self._by_limit.keys()

    def take(self, now: float) -> list[PendingAdmission]:
        """Remove and return the requests to judge again; refuse those that have waited long enough."""
        taken: list[PendingAdmission] = []
        for limit_id, queue in list(self._by_limit.items()):
            for one in queue:
                if one.blocked is not None and now >= one.waits_until:
                    one.answer(one.blocked.error)
            # Clients that have disconnected take no room from others.
            waiting = [one for one in queue if not one.answered]
            taken += waiting[:_RETRIED]
            if len(waiting) > _RETRIED:
                self._by_limit[limit_id] = waiting[_RETRIED:]
            else:
                del self._by_limit[limit_id]
        for one in taken:
            one.queued = now
        self.retry_at = now + _RETRY if self._by_limit else math.inf
        return sorted(taken, key=attrgetter("arrived"))

    def put(self, blocked: list[tuple[PendingAdmission, Blocked]], now: float) -> None:
        """Let requests wait, in order of arrival, or refuse them: if they must not wait, or if too many do."""
        for one, decision in blocked:
            waits = one.blocked is not None
            if not decision.seconds or not (waits or len(self) < MAX_BLOCKED):
                one.answer(decision.error)
                continue
            if not waits:
                one.waits_until = one.arrived + decision.seconds
            one.blocked = decision
            self._by_limit.setdefault(decision.limit_id, []).append(one)
        for limit_id in {decision.limit_id for _, decision in blocked} & self._by_limit.keys():
            self._by_limit[limit_id].sort(key=attrgetter("arrived"))
        if self._by_limit:
            self.retry_at = min(self.retry_at, now + _RETRY)

    def clear(self) -> None:
        self._by_limit.clear()
        self.retry_at = math.inf
