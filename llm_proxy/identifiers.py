"""Names for things: request ids that sort by time, and random ids for everything else.

Request ids are UUIDs of version 7 (RFC 9562, section 5.7): 48 bits of Unix milliseconds, a 12-bit sequence (the
`rand_a` field as a counter, section 6.2, method 1) and 62 random bits. The order of ids is the order of time, which
serves the ledger's listing and pruning without a further index.
"""

from __future__ import annotations

import os
import random
import threading
import time
import uuid
from typing import Final

_SEQUENCE_END: Final = 1 << 12
_VARIANT: Final = 2 << 62


class RequestIds:
    """A source of version 7 UUIDs, each greater than the one before, whatever the clock does.

    Safe to use from several threads. The random bits keep the ids of different processes apart; they are no secret,
    so a fast generator seeded by the system will do.
    """

    __slots__ = ("_getrandbits", "_lock", "_millisecond", "_prefix", "_sequence")

    def __init__(self) -> None:
        """Start from a fresh seed."""
        self._millisecond = 0
        self._prefix = ""
        self._sequence = 0
        self.reseed()

    def reseed(self) -> None:
        """Draw a new seed, as a forked child must: it would repeat its parent's random bits, and may hold its lock."""
        self._lock = threading.Lock()
        self._getrandbits = random.Random(os.urandom(32)).getrandbits  # noqa: S311 (uniqueness, not secrecy)

    def __call__(self) -> str:
        """Give the next id in canonical text form."""
        now = time.time_ns() // 1_000_000
        with self._lock:
            if now > self._millisecond:
                self._begin(now)
            else:
                # The same millisecond, or a clock that was set back: count on from where we are.
                self._sequence += 1
                if self._sequence == _SEQUENCE_END:
                    self._begin(self._millisecond + 1)
            low = f"{_VARIANT | self._getrandbits(62):x}"
            return f"{self._prefix}{self._sequence:03x}-{low[:4]}-{low[4:]}"

    def _begin(self, millisecond: int) -> None:
        self._millisecond = millisecond
        self._sequence = 0
        text = f"{millisecond:012x}"
        self._prefix = f"{text[:8]}-{text[8:]}-7"


#: The process's source of request ids.
request_id: Final = RequestIds()
os.register_at_fork(after_in_child=request_id.reseed)


def new_id() -> str:
    """Make an id for a project, a token or a worker: a random UUID (version 4) in canonical text form."""
    return str(uuid.uuid4())
