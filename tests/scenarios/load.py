"""Clients that ask for one thing after another, each at a path of its own, so that every request can be found again.

The scripted provider knows none of the models that they ask for and answers 404: that is how an answer of the provider
is told from one of the proxy. What else a client got is noted with its path.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import h11
import trio
from attrs import define, field

from tests.harness import client

CLIENTS = 16
#: The answer of the provider.
SERVED = 404
#: Seconds between the requests of one client: it is about faults, not about speed.
_PAUSE = 0.01
#: What may happen to a client whose server is killed.
_BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError)


@define
class Load:
    """What the clients of one token got.

    Attributes:
        secret: of the token.
        name: the beginning of the models' names.
        answers: by path: what came back, in the order in which it did.
        slowest: seconds that the longest refusal took.
        unanswered: requests that have no answer, or none yet.
    """

    secret: str
    name: str = "m"
    answers: dict[str, client.Response] = field(factory=dict)
    slowest: float = 0.0
    unanswered: int = 0
    stopping: bool = False
    _numbers: Iterator[int] = field(factory=itertools.count)

    @property
    def statuses(self) -> Counter[int]:
        """How often each status came."""
        return Counter(answer.status for answer in self.answers.values())

    @property
    def served(self) -> int:
        """How many had their answer from the provider."""
        return self.statuses[SERVED]

    @property
    def refused(self) -> int:
        """How many had theirs from the proxy."""
        return len(self.answers) - self.served

    async def keep_on(self, url: str, delay: float = 0.0) -> None:
        """Ask until cancelled or `stopping`, whatever happens to the server meanwhile.

        Every second client has the provider take `delay` seconds, so that requests are under way at any moment.
        """
        async with trio.open_nursery() as nursery:
            for number in range(CLIENTS):
                nursery.start_soon(self._client, url, delay if number % 2 else 0.0)

    async def _client(self, url: str, delay: float) -> None:
        headers = [("Authorization", f"Bearer {self.secret}")]
        if delay:
            headers.append(("x-scripted-delay", str(delay)))
        while not self.stopping:
            with suppress(*_BROKEN):
                async with client.connect(url) as connection:
                    while not self.stopping:
                        self.unanswered += 1
                        await self._ask(connection, headers)
                        self.unanswered -= 1
                        await trio.sleep(_PAUSE)
            await trio.sleep(0.02)

    async def _ask(self, connection: client.Connection, headers: client.Headers) -> None:
        path = f"/v1/models/{self.name}-{next(self._numbers)}"
        asked = trio.current_time()
        await connection.request("GET", path, headers)
        answer = self.answers[path] = await connection.response()
        if answer.status != SERVED:
            self.slowest = max(self.slowest, trio.current_time() - asked)
            # A client that is told to come later does not come at once.
            await trio.sleep(_PAUSE * 5)
