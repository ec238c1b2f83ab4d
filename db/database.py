"""A database, as the rest of the program sees it: run a plain function in one transaction.

A query function takes a `Connection` and returns records; it neither awaits nor commits. `read` and `write` carry it
to a thread, begin, run it, commit and come back: one hop per transaction, never one per statement. The whole function
may run again after a conflict, so it must change nothing but the database.

Waiting for a connection happens in trio, where it is fair and can be cancelled. Once a function has started it runs
to its end, cancelled or not, so that the fate of its commit is known and no connection is left behind; its deadlines
are those of the driver (`options.Options`).
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from itertools import takewhile
from typing import NoReturn, TypeVar, TypeVarTuple

import trio
from attrs import evolve, frozen
from outcome import Error, Outcome, Value, capture
from sqlalchemy import Connection, Engine, ExceptionContext, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from db.dialects import Backend, backend_for, clock
from db.dialects import failure as failures
from db.dialects.failure import FULL_HOUSE, Failure, FailureKind
from db.dialects.server import ServerFacts
from db.dsn.target import Target
from db.errors import (
    BrokenReference,
    CommitUnknown,
    Contention,
    DatabaseError,
    Duplicate,
    Locked,
    Refused,
    SchemaMismatch,
    Unavailable,
)
from db.options import Options
from db.statistics import COMMIT_UNKNOWN, Connections, Statistics, cause

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: How often a function runs at most when it loses against others.
_ATTEMPTS = 5
#: The pause before the second run, in seconds, on average; each further pause is twice as long.
_FIRST_PAUSE = 0.005

_ERRORS: dict[FailureKind, type[DatabaseError]] = {
    FailureKind.CONTENTION: Contention,
    FailureKind.LOCKED: Locked,
    FailureKind.DISCONNECTED: Unavailable,
    FailureKind.UNANSWERED: Unavailable,
    FailureKind.UNAVAILABLE: Unavailable,
    FailureKind.READ_ONLY: Unavailable,
    FailureKind.DUPLICATE: Duplicate,
    FailureKind.REFERENCE: BrokenReference,
    FailureKind.SCHEMA: SchemaMismatch,
    FailureKind.REFUSED: Refused,
}

#: Kinds of failures in which a commit may have happened.
_UNANSWERED = (FailureKind.DISCONNECTED, FailureKind.UNANSWERED)


@frozen
class _Side:
    """Reading or writing: on which connections, how many at once, and whether to try again after waiting for a lock."""

    engine: Engine
    limiter: trio.CapacityLimiter
    writes: bool
    patient: bool = True


class _Retry(Exception):
    """The transaction was rolled back and may run again: at once, or after a pause. `error` is for when it may not."""

    def __init__(self, error: DatabaseError, kind: FailureKind) -> None:
        super().__init__()
        self.error = error
        self.cause = cause(kind)
        self.at_once = kind not in (FailureKind.CONTENTION, FailureKind.LOCKED)


class Database:
    """One database, open. Made by `open_database` and `opened`."""

    def __init__(self, target: Target, options: Options, *, exclusive: bool = True) -> None:
        """Nothing is opened yet. Raises BadDsn for TLS files that cannot be used."""
        self.target = target
        self.options = options
        self.statistics = Statistics()
        self._backend: Backend = backend_for(target, options, exclusive=exclusive)
        shared = len(self._backend.pools) == 1
        limiter = trio.CapacityLimiter(self._backend.writers)
        self._writing = _Side(self._backend.write, limiter, writes=True)
        self._unless_locked = _Side(self._backend.write_unless_locked, limiter, writes=True, patient=False)
        if not shared:
            limiter = trio.CapacityLimiter(options.pool_size)
        self._reading = _Side(self._backend.read, limiter, writes=False)
        # Readers leave one connection of a common pool to writers: the ledger must not wait for slow reports.
        for engine in {self._backend.write, self._backend.write_unless_locked, self._backend.read}:
            event.listen(engine, "handle_error", self._refuse_value)
        self._readers = trio.Semaphore(max(1, options.pool_size - shared))

    async def read(self, fn: Callable[[Connection, *Ts], T], *args: *Ts) -> T:
        """Run `fn` in a transaction that can only read, and that sees one state of the database throughout.

        Raises the family of `db.errors.DatabaseError`, and whatever `fn` raises.
        """
        async with self._readers:
            return await self._run(self._reading, fn, args)

    async def write(self, fn: Callable[[Connection, *Ts], T], *args: *Ts) -> T:
        """Run `fn` in a transaction and commit it; an exception rolls it back, and after `Contention` it runs again.

        Raises the family of `db.errors.DatabaseError`, and whatever `fn` raises. After `CommitUnknown` the
        transaction is there or not; after any other error it is not.
        """
        return await self._run(self._writing, fn, args)

    async def write_unless_locked(
        self, fn: Callable[[Connection, *Ts], T], *args: *Ts, then: Callable[[T], None] | None = None
    ) -> T:
        """`write` that gives up where another transaction holds a row for long, instead of waiting and trying again.

        `then` gets the result in trio's thread after the commit, one pass of the scheduler before the caller.
        Raises Locked then, and what `write` raises.
        """
        return await self._run(self._unless_locked, fn, args, then)

    async def end_frozen(self) -> str | None:
        """End transactions of other processes of ours that are frozen, where the server does not do that by itself.

        Returns:
            What keeps it from doing so; None if nothing does. Raises as `write` does.
        """
        return await self._run(self._unless_locked, self._backend.end_frozen, ())

    def read_now(self, fn: Callable[[Connection, *Ts], T], *args: *Ts) -> T:
        """`read` in the calling thread."""
        return self._run_now(self._reading, fn, args)

    def write_now(self, fn: Callable[[Connection, *Ts], T], *args: *Ts) -> T:
        """`write` in the calling thread."""
        return self._run_now(self._writing, fn, args)

    def describe(self, connection: Connection) -> ServerFacts:
        """The version, limits and clock of the server; a function for `read` and `read_now`."""
        facts = self._backend.facts(connection)
        before = datetime.now(UTC)
        theirs = clock(connection)
        ours = before + (datetime.now(UTC) - before) / 2
        return evolve(facts, clock_skew=theirs - ours)

    def sizes(self, connection: Connection) -> Mapping[str, int]:
        """How large it is: its `bytes`, and of SQLite `wal_bytes`, `pages` and `free_pages`; a function for `read`."""
        return self._backend.sizes(connection)

    @contextmanager
    def migrating(self, deadline: float, tell: Callable[[str], None] | None = None) -> Iterator[Connection]:
        """A connection without a deadline of its own that holds the lock of migrations until the block ends.

        Everything in it is one transaction where the database can define tables in one; it commits at the end.

        Args:
            deadline: how long to wait for the lock, in seconds.
            tell: told in a sentence who holds it, where that takes a moment, and again every ten seconds.

        Raises:
            Contention: another process held the lock for the whole time; the message says which.
        """
        try:
            with self._backend.migrating(deadline, tell or _keep_silent) as connection:
                yield connection
        except (DBAPIError, PoolTimeout) as error:
            raise self._error(self._failure(error), writes=True) from error

    @property
    def connections(self) -> Connections:
        """The state of the pool now."""
        pools = self._backend.pools
        limiters = {self._writing.limiter, self._reading.limiter}
        return Connections(
            in_use=sum(pool.checkedout() for pool in pools),
            idle=sum(pool.checkedin() for pool in pools),
            limit=sum(int(limiter.total_tokens) for limiter in limiters),
            waiting=self._readers.statistics().tasks_waiting
            + sum(limiter.statistics().tasks_waiting for limiter in limiters),
        )

    def open(self) -> None:
        """Make ready for use: a SQLite file is locked and opened, a server is not asked yet. Blocks."""
        try:
            self._backend.open()
        except SQLAlchemyError as error:
            self._backend.close()
            raise self._error(self._failure(error), writes=True) from error

    def close(self) -> None:
        """Close every connection that is not in use. Blocks."""
        self._backend.close()

    async def _run(
        self,
        side: _Side,
        fn: Callable[[Connection, *Ts], T],
        args: tuple[*Ts],
        then: Callable[[T], None] | None = None,
    ) -> T:
        pauses = _pauses(self.options.statement_timeout)
        while True:
            try:
                return await _in_thread(side.limiter, partial(self._attempt, side, fn, args), then)
            except _Retry as retry:
                await trio.sleep(self._pause(pauses, retry))

    def _run_now(self, side: _Side, fn: Callable[[Connection, *Ts], T], args: tuple[*Ts]) -> T:
        pauses = _pauses(self.options.statement_timeout)
        while True:
            try:
                return self._attempt(side, fn, args)
            except _Retry as retry:
                time.sleep(self._pause(pauses, retry))

    def _attempt(self, side: _Side, fn: Callable[[Connection, *Ts], T], args: tuple[*Ts]) -> T:
        used = committing = False
        try:
            self._backend.check_files()
        except Unavailable:
            self.statistics.failure(cause(FailureKind.UNAVAILABLE))
            raise
        try:
            with side.engine.connect() as connection:
                used = "used" in connection.info
                transaction = connection.begin()
                try:
                    result = fn(connection, *args)
                    committing = side.writes
                    transaction.commit()
                except BaseException as error:
                    roll_back = not committing or self._is_answered(error)
                    _abandon(connection, roll_back=roll_back, committing=committing)
                    raise
                connection.info["used"] = True
                self.statistics.commit("write" if side.writes else "read")
                return result
        except Contention as error:
            raise _Retry(error, FailureKind.CONTENTION) from None
        except (DBAPIError, PoolTimeout, StatementError) as error:
            self._raise(error, side, committing=committing, used=used)

    def _is_answered(self, error: BaseException) -> bool:
        """Whether the database has said that it did not commit: one of the statements in front of that has failed."""
        return isinstance(error, DBAPIError) and self._failure(error).kind not in _UNANSWERED

    def _refuse_value(self, context: ExceptionContext) -> None:
        """Call a value that the driver cannot even send refused, as one that the database does not take is.

        Raises Refused.
        """
        if isinstance(context.original_exception, OverflowError | UnicodeError):
            self.statistics.failure(cause(FailureKind.REFUSED))
            raise Refused(f"{self.target}: {failures.REFUSED.words}") from context.original_exception

    def _raise(self, error: SQLAlchemyError, side: _Side, *, committing: bool, used: bool) -> NoReturn:
        if not isinstance(error, DBAPIError | PoolTimeout) and isinstance(error, StatementError) and error.orig:
            raise error.orig from error  # a value of the wrong kind, found by a type of `db.types`
        failure = self._failure(error)
        if committing and failure.kind in _UNANSWERED:
            self.statistics.failure(COMMIT_UNKNOWN)
            raise CommitUnknown(f"{self.target}: {failure.words} during a commit; its fate is unknown") from error
        meant = self._error(failure, writes=side.writes)
        # A connection that served before may lead to a server that has stopped since, or is read-only now.
        stale = used and failure.ends_connection(writes=side.writes)
        if failure.kind is FailureKind.CONTENTION or (failure.kind is FailureKind.LOCKED and side.patient) or stale:
            meant.__cause__ = error
            raise _Retry(meant, failure.kind)
        self.statistics.failure(cause(failure.kind))
        raise meant from error

    def _pause(self, pauses: Iterator[float], retry: _Retry) -> float:
        pause = next(pauses, None)
        if pause is None:
            self.statistics.failure(retry.cause)
            raise retry.error
        self.statistics.retry(retry.cause)
        return 0 if retry.at_once else pause

    def _failure(self, error: SQLAlchemyError) -> Failure:
        if isinstance(error, PoolTimeout):
            return FULL_HOUSE
        orig = error.orig if isinstance(error, StatementError) else None
        return self._backend.failure(error if orig is None else orig)

    def _error(self, failure: Failure, *, writes: bool) -> DatabaseError:
        if failure.kind is FailureKind.READ_ONLY and not writes:
            return Refused(f"{self.target}: a function that only reads tried to write")
        return _ERRORS[failure.kind](f"{self.target}: {failure.words}")


async def _in_thread(
    limiter: trio.CapacityLimiter, work: Callable[[], T], then: Callable[[T], None] | None = None
) -> T:
    """Run a function in a thread to its end, cancelled or not; `then` gets its result before this task runs again.

    `trio.to_thread.run_sync` costs half as much again: it names the thread, and makes ready for calls back from it.
    """
    await trio.lowlevel.checkpoint_if_cancelled()
    task, token = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()

    def finish(result: Outcome[T]) -> None:
        if then is not None and isinstance(result, Value):
            called = capture(then, result.value)
            if isinstance(called, Error):
                result = called
        trio.lowlevel.reschedule(task, result)

    def deliver(result: Outcome[T]) -> None:
        token.run_sync_soon(finish, result)

    try:
        limiter.acquire_nowait()
    except trio.WouldBlock:
        await limiter.acquire()
    try:
        trio.lowlevel.start_thread_soon(work, deliver)
        result: T = await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        return result
    finally:
        limiter.release()


def _abandon(connection: Connection, *, roll_back: bool, committing: bool) -> None:
    """Give up a transaction. What cannot be rolled back for certain goes with its connection."""
    transaction = connection.get_transaction()
    try:
        if roll_back and transaction is not None and not connection.invalidated:
            transaction.rollback()
            if committing:
                # To SQLAlchemy, a transaction whose commit has failed is over.
                connection.connection.rollback()
            return
    except (SQLAlchemyError, connection.dialect.loaded_dbapi.Error):
        pass
    with suppress(SQLAlchemyError):
        connection.invalidate()


def _keep_silent(words: str) -> None:
    """The default for `tell`."""


def _pauses(seconds: float) -> Iterator[float]:
    """Pauses between attempts; none any more once those have taken `seconds`, from now on, together.

    So a lock that was waited for in vain as long as a statement may take is not waited for again.
    """
    end = time.monotonic() + seconds
    longest = (_FIRST_PAUSE * 2**number for number in range(1, _ATTEMPTS))
    pauses = (pause * random.uniform(0.25, 0.75) for pause in longest)  # noqa: S311 - it spreads retries, no more
    return takewhile(lambda _: time.monotonic() < end, pauses)


@contextmanager
def opened(target: Target, options: Options, *, exclusive: bool = True) -> Iterator[Database]:
    """Open a database for a `with` block, in programs without trio.

    Args:
        target: where it is.
        options: how to connect.
        exclusive: False leaves a SQLite file to a server that has it, and only reads; it means nothing elsewhere.

    Raises:
        BadDsn: TLS files cannot be used, or the SQLite file is at an impossible place.
        FileInUse: another process has the SQLite file.
        Unavailable: the SQLite file cannot be opened.
    """
    database = Database(target, options, exclusive=exclusive)
    database.open()
    try:
        yield database
    finally:
        database.close()


@asynccontextmanager
async def open_database(target: Target, options: Options) -> AsyncIterator[Database]:
    """Open a database for an `async with` block. Raises as `opened` does."""
    database = Database(target, options)
    await trio.to_thread.run_sync(database.open)
    try:
        yield database
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(database.close)
