"""A database, as the rest of the program sees it: run a plain function in one transaction.

A query function takes a `Connection` and returns records; it neither awaits nor commits. `read` and `write` carry it
to a thread, begin, run it, commit and come back: one hop per transaction, never one per statement. Because the whole
function may run again after a conflict, it must not change anything but the database.

Waiting for a connection happens in trio, where it is fair and can be cancelled; once a function has started it runs
to its end, cancelled or not, so that the fate of its commit is known and no connection is left behind. Its deadlines
are those of the driver (`options.Options`).
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import NoReturn, TypeVar, TypeVarTuple

import trio
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError, StatementError

from db.dialects import Backend, backend_for
from db.dialects.failure import Failure, Kind
from db.dsn import Target
from db.errors import (
    BrokenReference,
    CommitUnknown,
    Contention,
    DatabaseError,
    Duplicate,
    Refused,
    SchemaMismatch,
    Unavailable,
)
from db.options import Options

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: How often a function runs at most when it loses against others, and the first pause in seconds; pauses double.
_ATTEMPTS = 5
_FIRST_PAUSE = 0.005


class _Conflict(Exception):
    """The transaction was rolled back and may be run again.

    Attributes:
        failure: what to tell when it may not be run again.
        stale: the connection had gone, rather than the race been lost.
    """

    def __init__(self, failure: Failure, *, stale: bool) -> None:
        super().__init__()
        self.failure = failure
        self.stale = stale


class Database:
    """One database, open. Made by `open_database` and `opened`."""

    def __init__(self, target: Target, options: Options) -> None:
        """Nothing is opened yet. Raises BadDsn for TLS files that cannot be used."""
        self.target = target
        self.options = options
        self._backend: Backend = backend_for(target, options)
        if self._backend.separate_reader:
            self._write_limiter = trio.CapacityLimiter(1)
            self._read_limiter = trio.CapacityLimiter(options.pool_size)
            self._read_gate = self._read_limiter
        else:
            self._write_limiter = self._read_limiter = trio.CapacityLimiter(1)

    def open(self) -> None:
        """Make ready for use. A server is not asked yet; a SQLite file is locked and opened. Blocks."""
        try:
            self._backend.open()
        except SQLAlchemyError as error:
            self._raise(error, write=True)

    def close(self) -> None:
        """Close every connection. Blocks."""
        self._backend.close()

    @property
    def checked_out(self) -> int:
        """Connections in use at this moment."""
        return sum(engine.pool.checkedout() for engine in {self._backend.read, self._backend.write})  # type: ignore[attr-defined]

    async def read(self, fn: Callable[[Connection, *Ts], T], *args: *Ts) -> T:
        """Run `fn` in a transaction that can only read, and sees one state of the database throughout.

        Raises the family of `db.errors.DatabaseError`, and whatever `fn` raises.
        """
        return await self._run(self._backend.read, self._read_limiter, fn, args)

    async def write(self, fn: Callable[[Connection, *Ts], T], *args: *Ts) -> T:
        """Run `fn` in a transaction and commit it; an exception rolls it back.

        Raises the family of `db.errors.DatabaseError`, and whatever `fn` raises.
        """
        return await self._run(self._backend.write, self._write_limiter, fn, args)

    def read_now(self, fn: Callable[[Connection, *Ts], T], *args: *Ts) -> T:
        """`read` in the calling thread."""
        return self._run_now(self._backend.read, fn, args)

    def write_now(self, fn: Callable[[Connection, *Ts], T], *args: *Ts) -> T:
        """`write` in the calling thread."""
        return self._run_now(self._backend.write, fn, args)

    async def _run(
        self, engine: Engine, limiter: trio.CapacityLimiter, fn: Callable[[Connection, *Ts], T], args: tuple[*Ts]
    ) -> T:
        pauses = self._pauses()
        while True:
            try:
                return await trio.to_thread.run_sync(
                    self._attempt, engine, fn, args, abandon_on_cancel=False, limiter=limiter
                )
            except _Conflict as conflict:
                await trio.sleep(self._pause(pauses, conflict))

    def _run_now(self, engine: Engine, fn: Callable[[Connection, *Ts], T], args: tuple[*Ts]) -> T:
        pauses = self._pauses()
        while True:
            try:
                return self._attempt(engine, fn, args)
            except _Conflict as conflict:
                time.sleep(self._pause(pauses, conflict))

    def _pauses(self) -> Iterator[float]:
        pause = _FIRST_PAUSE
        for _ in range(_ATTEMPTS - 1):
            yield pause * random.uniform(0.5, 1.5)  # noqa: S311 - spreads retries, guards nothing
            pause *= 2

    def _pause(self, pauses: Iterator[float], conflict: _Conflict) -> float:
        pause = next(pauses, None)
        if pause is None:
            raise self._error(conflict.failure, write=True) from conflict.__cause__
        return pause

    def _attempt(self, engine: Engine, fn: Callable[[Connection, *Ts], T], args: tuple[*Ts]) -> T:
        write = engine is self._backend.write
        committing = False
        try:
            with engine.connect() as connection:
                transaction = connection.begin()
                try:
                    result = fn(connection, *args)
                    committing = True
                    transaction.commit()
                except BaseException:
                    transaction.rollback()
                    raise
                return result
        except DBAPIError as error:
            self._raise(error, write=write, committing=committing)

    def _raise(self, error: SQLAlchemyError, *, write: bool, committing: bool = False) -> NoReturn:
        if isinstance(error, StatementError) and error.orig is not None:
            failure = self._backend.failure(error.orig)
            if failure.kind is Kind.CONTENTION:
                raise _Conflict(failure, stale=False) from error
            raise self._error(failure, write=write) from error
        raise error

    def _error(self, failure: Failure, *, write: bool) -> DatabaseError:
        return _ERRORS[failure.kind](f"{self.target}: {failure.words}")


_ERRORS: dict[Kind, type[DatabaseError]] = {
    Kind.CONTENTION: Contention,
    Kind.DISCONNECTED: Unavailable,
    Kind.UNAVAILABLE: Unavailable,
    Kind.READ_ONLY: Unavailable,
    Kind.DUPLICATE: Duplicate,
    Kind.REFERENCE: BrokenReference,
    Kind.SCHEMA: SchemaMismatch,
    Kind.REFUSED: Refused,
}


@contextmanager
def opened(target: Target, options: Options) -> Iterator[Database]:
    """A database for the time of a `with` block, without trio."""
    database = Database(target, options)
    database.open()
    try:
        yield database
    finally:
        database.close()


@asynccontextmanager
async def open_database(target: Target, options: Options) -> AsyncIterator[Database]:
    """A database for the time of an `async with` block."""
    database = Database(target, options)
    await trio.to_thread.run_sync(database.open)
    try:
        yield database
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(database.close)
