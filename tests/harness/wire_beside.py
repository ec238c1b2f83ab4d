"""A `Wire` in a thread of its own, for fixtures of a whole module and for tests that block."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import trio
from attrs import frozen

from tests.harness.wire import Wire, wire_to


@frozen
class WireBeside:
    """The methods of `Wire`, to be called from threads without trio."""

    host: str
    port: int
    _wire: Wire
    _token: trio.lowlevel.TrioToken

    def freeze(self) -> None:
        """Let nothing through; connections stay open."""
        trio.from_thread.run_sync(self._wire.freeze, trio_token=self._token)

    def thaw(self) -> None:
        """Let everything through again."""
        trio.from_thread.run_sync(self._wire.thaw, trio_token=self._token)

    def cut(self) -> int:
        """Reset all open connections; say how many they were."""
        return trio.from_thread.run_sync(self._wire.cut, trio_token=self._token)

    def refuse(self) -> None:
        """Take no new connections."""
        trio.from_thread.run_sync(self._wire.refuse, trio_token=self._token)

    def accept(self) -> None:
        """Take connections again."""
        trio.from_thread.run(self._wire.accept, trio_token=self._token)


@contextmanager
def wire_beside(host: str, port: int) -> Iterator[WireBeside]:
    """A faultless wire to a host and port, until something is done to it."""
    made: queue.SimpleQueue[WireBeside] = queue.SimpleQueue()
    done = trio.Event()

    async def keep() -> None:
        async with wire_to(host, port) as wire:
            made.put(WireBeside(wire.host, wire.port, wire, trio.lowlevel.current_trio_token()))
            await done.wait()

    thread = threading.Thread(target=trio.run, args=(keep,))
    thread.start()
    beside = made.get(timeout=30)
    try:
        yield beside
    finally:
        trio.from_thread.run_sync(done.set, trio_token=beside._token)
        thread.join()
