"""The worker's own spool: lines that are on the disk before a byte goes upstream, many at a time.

Those who want something written meanwhile share the next write and its fsync, in a thread (group commit, as in the
writer). There is no deadline for a disk that hangs: who waits brings one along.
"""

from __future__ import annotations

from functools import partial

import trio
from attrs import define, field

from llm_proxy.ledger.outage.spool_file import SpoolError, SpoolFile


@define(eq=False)
class _Group:
    """Lines that are written together; `failure` says why they were not."""

    lines: list[bytes] = field(factory=list)
    from_empty: bool = False
    done: trio.Event = field(factory=trio.Event)
    failure: SpoolError | None = None


class Spool:
    """Appends to one file. `run` does the work."""

    def __init__(self, file: SpoolFile) -> None:
        """Take over an empty file."""
        self._file = file
        self._next = _Group()
        self._wake = trio.Event()
        self._thread = trio.CapacityLimiter(1)
        #: What went wrong; nothing is written any more until the spool is emptied.
        self.failure: SpoolError | None = None

    def __str__(self) -> str:
        """The path of the file."""
        return str(self._file.path)

    def append(self, line: bytes) -> None:
        """Have a line written soon, if it can be; nobody waits for it."""
        if self.failure is None:
            self._next.lines.append(line)
            self._wake.set()

    async def written(self) -> None:
        """Wait until everything that was appended so far is on the disk.

        Raises:
            SpoolError: it is not.
        """
        failure = self.failure
        if failure is not None:
            # Callers try again in loops: other tasks must get their turn.
            await trio.lowlevel.checkpoint()
            raise failure
        group = self._next
        self._wake.set()
        await group.done.wait()
        if group.failure is not None:
            raise group.failure

    async def empty(self) -> None:
        """Forget everything that was appended so far, and try again where writing has failed.

        Raises:
            SpoolError: it is still there, or may be.
        """
        self.failure = None
        self._next.lines.clear()
        self._next.from_empty = True
        await self.written()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            group, self._next = self._next, _Group()
            if self.failure is not None and not group.from_empty:
                # Whatever the last write left behind, nothing may come after it.
                group.failure = self.failure
                group.done.set()
                continue
            write = partial(self._file.append, b"".join(group.lines), from_empty=group.from_empty)
            try:
                await trio.to_thread.run_sync(write, limiter=self._thread)
            except SpoolError as error:
                self.failure = group.failure = error
            group.done.set()
