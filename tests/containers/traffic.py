"""Traffic of every kind: answers, streams, refusals, errors of the provider, a client that leaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import trio
from attrs import Factory, define

from tests.harness import client
from tests.harness.deployment import Deployment, chat_body, chat_headers


@define
class Traffic:
    """Clients of a deployment, and how often each status was answered.

    Attributes:
        deployment: what they ask.
        secret: of a token without limits.
        revoked: of one that was revoked.
        limited: of one whose limit is reached soon.
    """

    deployment: Deployment
    secret: str
    revoked: str
    limited: str
    statuses: Counter[int] = Factory(Counter)

    @classmethod
    def make(cls, deployment: Deployment) -> Traffic:
        """Make the tokens; blocks."""
        revoked = deployment.new_token()
        deployment.server.manage("DELETE", f"/tokens/{revoked['id']}")
        return cls(deployment, deployment.new_secret(), revoked["token"], deployment.new_secret(max_requests=2))

    async def round(self) -> None:
        """One request of each kind, at the same time, each on a connection of its own."""
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(self._chat, self.secret)
            for pace in ("0.02", "0.005"):
                nursery.start_soon(self._stream, ("x-scripted-chunks", "12"), ("x-scripted-gap", pace))
            for status in ("500", "404"):
                nursery.start_soon(self._chat, self.secret, ("x-scripted-status", status))
            nursery.start_soon(self._chat, self.secret, ("x-scripted-abort", "0"))
            for secret in (self.revoked, self.limited, "sk-nobody"):
                nursery.start_soon(self._chat, secret)

    async def until(self, holds: Callable[[], bool], within: float) -> None:
        """One round after another until it holds."""
        with trio.fail_after(within):
            while not await trio.to_thread.run_sync(holds):
                await self.round()

    async def _chat(self, secret: str, *headers: tuple[str, str]) -> None:
        self.statuses[(await self.deployment.chat(secret, *headers)).status] += 1

    async def _stream(self, *headers: tuple[str, str]) -> None:
        url = self.deployment.server.url
        sent = chat_headers(self.secret, *headers)
        response = await client.exchange(url, "POST", "/v1/chat/completions", sent, chat_body(stream=True))
        self.statuses[response.status] += 1
