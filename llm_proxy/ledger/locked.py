"""Requests whose token's row is locked by another transaction: they keep their place and are retried."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain

from attrs import define, field

from llm_proxy.ledger.batch import PendingAdmission

#: Seconds until the first retry, and maximum; each pause is twice as long as the one before.
FIRST_PAUSE = 0.01
LONGEST_PAUSE = 0.1


@define(eq=False)
class LockedRequests:
    """Locked requests by token, in order of arrival.

    Attributes:
        retry_at: trio's time of the next retry; infinite if there are none.
    """

    retry_at: float = field(default=math.inf, init=False)
    _pause: float = field(default=FIRST_PAUSE, init=False)
    _by_token: dict[bytes, deque[PendingAdmission]] = field(factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return sum(map(len, self._by_token.values()))

    def __iter__(self) -> Iterator[PendingAdmission]:
        return chain.from_iterable(self._by_token.values())

    def join(self, one: PendingAdmission) -> bool:
        """Queue a new request behind those of the same token; False if there are none."""
        queue = self._by_token.get(one.request.digest)
        if queue is None:
            return False
        queue.append(one)
        return True

    def take(self, limit: int) -> list[PendingAdmission]:
        """Remove and return the requests to retry now; drop those that were answered meanwhile."""
        taken: list[PendingAdmission] = []
        for digest, queue in list(self._by_token.items()):
            while queue and len(taken) < limit:
                one = queue.popleft()
                if not one.answered:
                    taken.append(one)
            if not queue:
                del self._by_token[digest]
        if not self._by_token:
            self.retry_at = math.inf
        return taken

    def put_back(self, pending: Sequence[PendingAdmission], now: float) -> None:
        """Put requests that are still locked back first in their token's queue; other tokens are retried before."""
        for one in reversed(pending):
            digest = one.request.digest
            queue = self._by_token.pop(digest, deque())
            queue.appendleft(one)
            self._by_token[digest] = queue
        self._pause = min(2 * self._pause, LONGEST_PAUSE) if pending else FIRST_PAUSE
        self.retry_at = now + self._pause if self._by_token else math.inf
