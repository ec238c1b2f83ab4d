"""SQLite: one file, one process, one writer connection and read-only connections beside it."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.pool import QueuePool

from db.dialects import failure as failures
from db.dialects.failure import Failure, FailureKind
from db.dialects.server import ServerFacts
from db.dialects.sqlite.file import FileLock, identity, look, prepare
from db.dsn.target import Target
from db.errors import SchemaMismatch, Unavailable
from db.options import Options

#: How long a statement waits for another process's lock (a backup, a shell), in seconds.
BUSY_TIMEOUT = 5.0


class SqliteDialect(SQLiteDialect_pysqlite):
    """SQLAlchemy's dialect with transactions under our own control.

    Python's `sqlite3` begins transactions behind the caller's back, and deferred ones, which fail at once when they
    turn into writers while another writes. So its own are switched off and each begins here, as what it is.
    """

    supports_statement_cache = True

    def __init__(self, begin: str = "BEGIN", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._begin = begin

    def do_begin(self, dbapi_connection: Any) -> None:
        dbapi_connection.dbapi_connection.execute(self._begin)


registry.register("sqlite.llm_proxy", __name__, "SqliteDialect")


class SqliteBackend:
    """The engines of one SQLite database, and what its errors mean."""

    def __init__(self, target: Target, options: Options, *, exclusive: bool = True) -> None:
        """Nothing is opened yet. If not exclusive, it only reads, beside the process that has the file."""
        self._target = target
        self._options = options
        self._exclusive = exclusive
        self._lock: FileLock | None = None
        # Which files are open, by path; of the log it is known once it is there.
        self._open_files: dict[str, tuple[int, int] | None] = {}
        self.writers = 1
        if target.path is not None and not exclusive:
            self.pools: tuple[QueuePool, ...] = (_reader_pool(target.path, options),)
            self.write = self.write_unless_locked = self.read = _engine("BEGIN", self.pools[0])
            return
        self.pools = (_pool(self._connect_writer, 1),)
        # Only another program can lock it, and then it has the whole file.
        self.write = self.write_unless_locked = _engine("BEGIN IMMEDIATE", self.pools[0])
        self.read = self.write  # a database in memory is its one connection
        if target.path is not None:
            self.pools += (_reader_pool(target.path, options),)
            self.read = _engine("BEGIN", self.pools[1])

    def open(self) -> None:
        """Lock the file and connect the writer, if it is to write.

        Raises FileInUse, BadDsn, Unavailable, or the driver's error.
        """
        if self._target.path is not None:
            if self._exclusive:
                self._lock = prepare(self._target.path)
            else:
                look(self._target.path)
        # The writer comes first: it makes the file and its log, which read-only connections cannot.
        self.write.connect().close()
        if self._lock is not None:
            path = str(self._target.path)
            self._open_files[path] = identity(path)

    def check_files(self) -> None:
        """Notice that the file or its log was deleted or replaced while it is open: what is written would be lost.

        Raises Unavailable until the same file is there again.
        """
        for path, known in self._open_files.items():
            found = identity(path)
            if known is None:
                self._open_files[path] = found
            elif found != known:
                raise Unavailable(
                    f"SQLite file {path} was deleted or replaced while it is in use; move the same file back, or stop "
                    "the server and restore a backup"
                )

    def close(self) -> None:
        """Close every connection, the writer last: it folds the wal into the file. Gives the lock back."""
        for pool in reversed(self.pools):
            pool.dispose()
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        self._open_files.clear()

    def failure(self, error: BaseException) -> Failure:
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:
            return failures.REFUSED
        if code == sqlite3.SQLITE_ERROR and _MISSING.match(str(error)):
            return failures.SCHEMA
        return _BY_CODE.get(code) or _BY_CODE.get(code & 0xFF) or failures.REFUSED

    @contextmanager
    def migrating(self, deadline: float, tell: Callable[[str], None]) -> Iterator[Connection]:
        """One transaction, which commits at the end of the block; the lock of the file is held already.

        Foreign keys are checked at its end instead of after each statement, because a table is changed by rebuilding it
        (sqlite.org, "Making Other Kinds Of Table Schema Changes"); inside a transaction that cannot be switched.
        """
        with self.write.connect() as connection:
            raw: Any = connection.connection.driver_connection
            raw.execute("PRAGMA foreign_keys = OFF")
            try:
                with connection.begin():
                    yield connection
                    if connection.exec_driver_sql("PRAGMA foreign_key_check").first() is not None:
                        raise SchemaMismatch(f"{self._target}: rows refer to others that do not exist")
            finally:
                raw.execute("PRAGMA foreign_keys = ON")

    def facts(self, connection: Connection) -> ServerFacts:
        return ServerFacts(f"SQLite {sqlite3.sqlite_version}")

    def end_frozen(self, connection: Connection) -> str | None:
        """Do nothing: nobody else writes to the file."""
        return None

    def sizes(self, connection: Connection) -> Mapping[str, int]:
        """How large the database is, and of what its file consists."""
        asked = ("page_size", "page_count", "freelist_count")
        size, pages, free = (int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()) for name in asked)
        found = {"bytes": size * pages, "pages": pages, "free_pages": free}
        if self._target.path is not None:
            wal = self._target.path.with_name(self._target.path.name + "-wal")
            found["wal_bytes"] = wal.stat().st_size if wal.exists() else 0
        return found

    def _connect_writer(self) -> sqlite3.Connection:
        path = self._target.path
        connection = _connect(":memory:" if path is None else _uri(path, "rwc"))
        if path is not None:
            connection.execute("PRAGMA journal_mode = WAL")
            self._open_files[f"{path}-wal"] = None
        connection.execute(f"PRAGMA synchronous = {self._options.sqlite_synchronous}")
        connection.execute("PRAGMA foreign_keys = ON")
        # Room for the end of each token's part of the indices, where new rows go: 16 MiB instead of 2.
        connection.execute("PRAGMA cache_size = -16384")
        # The pages that take new rows are written again and again: back into the file a quarter as often, 16 MB of wal.
        connection.execute("PRAGMA wal_autocheckpoint = 4000")
        # A wal that has once grown large is cut back to this many bytes.
        connection.execute("PRAGMA journal_size_limit = 67108864")
        return connection


def _engine(begin: str, pool: QueuePool) -> Engine:
    return create_engine("sqlite+llm_proxy://", begin=begin, pool=pool, hide_parameters=True)


def _pool(connect: Callable[[], Any], size: int) -> QueuePool:
    return QueuePool(connect, pool_size=size, max_overflow=0, use_lifo=True, reset_on_return=None)


def _reader_pool(path: Path, options: Options) -> QueuePool:
    return _pool(partial(_connect, _uri(path, "ro")), options.pool_size)


def _connect(database: str) -> sqlite3.Connection:
    # A connection visits many threads, but one at a time: that is what the pool is for.
    return sqlite3.connect(
        database, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False, uri=database != ":memory:"
    )


def _uri(path: Path, mode: str) -> str:
    return f"file:{quote(str(path.absolute()))}?mode={mode}"


_LOCKED = Failure(FailureKind.CONTENTION, "the file is locked by another program")
_MISSING = re.compile(r"no such (?:table|column)|table \S+ has no column")
_BY_CODE = {
    sqlite3.SQLITE_CONSTRAINT_UNIQUE: failures.DUPLICATE,
    sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY: failures.DUPLICATE,
    sqlite3.SQLITE_CONSTRAINT_ROWID: failures.DUPLICATE,
    sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY: failures.REFERENCE,
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_READONLY: Failure(FailureKind.READ_ONLY, "it can only be read"),
    sqlite3.SQLITE_FULL: Failure(FailureKind.UNAVAILABLE, "the disk is full"),
    sqlite3.SQLITE_IOERR: Failure(FailureKind.UNANSWERED, "the disk failed to read or write"),
    sqlite3.SQLITE_CANTOPEN: Failure(
        FailureKind.UNAVAILABLE, "the file cannot be opened: check that it and its folder exist and are writable"
    ),
    sqlite3.SQLITE_PERM: Failure(FailureKind.UNAVAILABLE, "access to the file is not permitted"),
    sqlite3.SQLITE_NOMEM: Failure(FailureKind.UNAVAILABLE, "the machine is out of memory"),
    sqlite3.SQLITE_INTERNAL: Failure(FailureKind.UNAVAILABLE, "SQLite itself failed"),
    sqlite3.SQLITE_NOLFS: Failure(FailureKind.UNAVAILABLE, "the file system does not take files as large as that"),
    sqlite3.SQLITE_ABORT: _LOCKED,
    sqlite3.SQLITE_SCHEMA: _LOCKED,
    sqlite3.SQLITE_INTERRUPT: Failure(FailureKind.UNAVAILABLE, "a statement was interrupted"),
    sqlite3.SQLITE_PROTOCOL: _LOCKED,
    sqlite3.SQLITE_NOTADB: Failure(FailureKind.UNAVAILABLE, "the file is not a SQLite database"),
    sqlite3.SQLITE_CORRUPT: Failure(FailureKind.UNAVAILABLE, "the file is damaged: restore it from a backup"),
}
