"""However a provider answers, no step of an exchange holds up the event loop beyond the bound, and the body passes."""

from __future__ import annotations

import gzip
import time

import brotli
import pytest
import trio
import zstandard
from attrs import define, field

from tests.gateway.exchanges import ended
from tests.gateway.upstream.stage import Peer

#: Seconds of CPU time that a step of a task may take.
BOUND = 0.01

BRACKETS = b'{"a":' + b"[]" * 6_000_000
EVENTS = b'data:{"usage":{}}\n\n' * 40_000
ANSWERS = {
    "gzip-brackets": (b"application/json", b"gzip", gzip.compress(BRACKETS)),
    "gzip-within-the-ratio": (
        b"application/json",
        b"gzip",
        gzip.compress(b'{"a":[' + b'{"b":[1,[2]],"c":"d"},' * 100_000 + bytes(range(35, 91)) * 1000),
    ),
    "br-brackets": (b"application/json", b"br", brotli.compress(BRACKETS, quality=4)),
    "zstd-brackets": (b"application/json", b"zstd", zstandard.compress(BRACKETS)),
    "plain-brackets": (b"application/json", b"identity", BRACKETS[:2_000_000]),
    "gzip-events": (b"text/event-stream", b"gzip", gzip.compress(EVENTS)),
    "plain-events": (b"text/event-stream", b"identity", EVENTS),
}


@define(eq=False)
class Longest(trio.abc.Instrument):
    """Measures the CPU time of the longest step that a task takes."""

    seconds: float = 0.0
    _began: float = field(factory=time.thread_time)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.seconds = max(self.seconds, time.thread_time() - self._began)


@pytest.mark.parametrize("kind", ANSWERS)
async def test_no_step_takes_longer_than_the_bound(kind: str) -> None:
    content_type, coding, body = ANSWERS[kind]

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n\r\n"
            % (content_type, coding, len(body))
        )
        for start in range(0, len(body), 65536):
            await peer.send(body[start : start + 65536])
        await trio.sleep_forever()

    found: list[float] = []
    for _ in range(3):  # page faults and the garbage collector may fall into one run, but not into each
        longest = Longest()
        trio.lowlevel.add_instrument(longest)
        try:
            result = (await ended(handler)).result
        finally:
            trio.lowlevel.remove_instrument(longest)
        found.append(longest.seconds)
        assert result.outcome == "ok"
        assert result.response_bytes == len(body)
    assert min(found) < BOUND, found
