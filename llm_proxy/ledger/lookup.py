"""What a running request needs of the database beside its admission and its settlement, shared by all that wait for it.

`Lookups` reads tokens for requests whose bodies have not arrived yet, in one SELECT. `ObjectRecords` writes which
objects requests have created, in one INSERT, before their clients can use these objects.

A request must have a valid token before its body is read, and it is admitted only after its body. The lookup locks
nothing and counts nothing, and its decision is not final: admission judges the request again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import trio
from attrs import define, field

from db.database import Database
from db.errors import REFUSALS, DatabaseError
from db.queries import ledger as queries
from db.queries import objects
from db.records import Account, ProviderObject, Token
from llm_proxy.errors import DatabaseAway, DatabaseUnavailable, Overloaded

#: Seconds that an answer is held back until the objects in it are recorded.
RECORD_PATIENCE = 1.0
#: Maximum number of requests that wait for a lookup. Each holds its head and at most one read of its body.
MAX_WAITING = 1000


@define(eq=False)
class _Round:
    """The digests of one SELECT, and what it found; None if the database did not answer."""

    digests: set[bytes] = field(factory=set)
    done: trio.Event = field(factory=trio.Event)
    found: dict[bytes, tuple[Token, Account]] | None = None


@define(eq=False)
class Lookups:
    """Runs one SELECT at a time, for all requests that arrived since the previous one started. `run` does the work."""

    _database: Database
    #: Maximum seconds that a request waits.
    deadline: float
    waiting: int = 0
    _next: _Round = field(factory=_Round)
    _wanted: trio.Event = field(factory=trio.Event)

    async def find(self, digest: bytes) -> tuple[Token, Account] | None:
        """The token with this digest and its project; None if there is none.

        Raises:
            Overloaded: too many requests wait already.
            DatabaseAway: the database did not answer.
            DatabaseUnavailable: it did not answer in time.
        """
        if self.waiting >= MAX_WAITING:
            raise Overloaded
        this = self._next
        this.digests.add(digest)
        self._wanted.set()
        self.waiting += 1
        try:
            with trio.move_on_after(self.deadline) as patience:
                await this.done.wait()
        finally:
            self.waiting -= 1
        if patience.cancelled_caught:
            raise DatabaseUnavailable
        if this.found is None:
            raise DatabaseAway
        return this.found.get(digest)

    async def run(self) -> None:
        """Look up until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            this, self._next = self._next, _Round()
            try:
                # The writer logs an error when it sees the same.
                with suppress(DatabaseError):
                    this.found = await self._database.read(queries.look_up, this.digests)
            finally:
                this.done.set()


@define(eq=False)
class _Records:
    """Objects that are written together, and whether they are in the database."""

    objects: list[ProviderObject] = field(factory=list)
    done: trio.Event = field(factory=trio.Event)
    written: bool = False


@define(eq=False)
class ObjectRecords:
    """Writes one transaction at a time, with all objects since the previous one started. `run` does the work."""

    _database: Database
    _next: _Records = field(factory=_Records)
    _wanted: trio.Event = field(factory=trio.Event)

    async def record(self, made: Sequence[ProviderObject]) -> bool:
        """Whether the objects are in the database; if not, they may come there later."""
        this = self._next
        this.objects += made
        self._wanted.set()
        with trio.move_on_after(RECORD_PATIENCE):
            await this.done.wait()
        return this.written

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            this, self._next = self._next, _Records()
            try:
                # The writer logs an error when it sees the same.
                with suppress(DatabaseError, *REFUSALS):
                    await self._database.write_unless_locked(objects.record, this.objects)
                    this.written = True
            finally:
                this.done.set()
