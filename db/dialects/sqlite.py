"""SQLite: one file, one process, one writer connection and read-only connections beside it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Engine, create_engine
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.pool import QueuePool

from db.dialects.failure import Failure, Kind
from db.dialects.sqlite_file import FileLock, prepare
from db.dsn import Target
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
        """Take the statement that begins a transaction."""
        super().__init__(**kwargs)
        self._begin = begin

    def do_begin(self, dbapi_connection: Any) -> None:
        """Begin a transaction."""
        dbapi_connection.dbapi_connection.execute(self._begin)


registry.register("sqlite.llm_proxy", __name__, "SqliteDialect")


class SqliteBackend:
    """The engines of one SQLite database, and what its errors mean."""

    def __init__(self, target: Target, options: Options) -> None:
        """Nothing is opened yet."""
        self._target = target
        self._options = options
        self._lock: FileLock | None = None
        self.write: Engine = self._engine("BEGIN IMMEDIATE", self._connect_writer, size=1)
        self.read: Engine = self.write
        self.separate_reader = target.path is not None
        if self.separate_reader:
            self.read = self._engine("BEGIN", self._connect_reader, size=options.pool_size)

    def open(self) -> None:
        """Take the lock of the file and connect the writer. Raises FileInUse, or the driver's error."""
        if self._target.path is not None:
            self._lock = prepare(self._target.path)
        # The writer comes first: it makes the file, and its wal, which read-only connections cannot.
        self.write.connect().close()

    def close(self) -> None:
        """Close every connection, the writer last: it folds the wal into the file. Gives the lock back."""
        self.read.dispose()
        self.write.dispose()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def failure(self, error: BaseException) -> Failure:
        """Read an error of `sqlite3`."""
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:
            return Failure(Kind.REFUSED, "a statement was refused")
        if code in _UNIQUE:
            return Failure(Kind.DUPLICATE, "a row with the same unique value exists already")
        if code == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
            return Failure(Kind.REFERENCE, "a row that another one refers to does not exist, or is still referred to")
        if code == sqlite3.SQLITE_ERROR and str(error).startswith(("no such table", "no such column")):
            return Failure(Kind.SCHEMA, "a table or column is missing")
        return _BY_PRIMARY_CODE.get(code & 0xFF, Failure(Kind.REFUSED, "a statement was refused"))

    def _engine(self, begin: str, connect: Any, *, size: int) -> Engine:
        return create_engine(
            "sqlite+llm_proxy://",
            begin=begin,
            creator=connect,
            poolclass=QueuePool,
            pool_size=size,
            max_overflow=0,
            pool_use_lifo=True,
            pool_reset_on_return=None,
            hide_parameters=True,
        )

    def _connect_writer(self) -> sqlite3.Connection:
        path = self._target.path
        connection = self._connect(":memory:" if path is None else _uri(path, "rwc"))
        if path is not None:
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {self._options.sqlite_synchronous}")
        connection.execute("PRAGMA foreign_keys = ON")
        # A wal that has once grown large is cut back to this many bytes.
        connection.execute("PRAGMA journal_size_limit = 67108864")
        return connection

    def _connect_reader(self) -> sqlite3.Connection:
        assert self._target.path is not None
        return self._connect(_uri(self._target.path, "ro"))

    def _connect(self, database: str) -> sqlite3.Connection:
        # A connection visits many threads, but one at a time: that is what the pool is for.
        return sqlite3.connect(
            database, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False, uri=database != ":memory:"
        )


def _uri(path: Path, mode: str) -> str:
    return f"file:{quote(str(path.absolute()))}?mode={mode}"


_UNIQUE = frozenset(
    (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_ROWID)
)

_BY_PRIMARY_CODE = {
    sqlite3.SQLITE_BUSY: Failure(Kind.CONTENTION, "the file is locked by another program"),
    sqlite3.SQLITE_LOCKED: Failure(Kind.CONTENTION, "the file is locked by another program"),
    sqlite3.SQLITE_READONLY: Failure(Kind.READ_ONLY, "it can only be read"),
    sqlite3.SQLITE_FULL: Failure(Kind.UNAVAILABLE, "the disk is full"),
    sqlite3.SQLITE_IOERR: Failure(Kind.UNAVAILABLE, "the disk failed to read or write"),
    sqlite3.SQLITE_CANTOPEN: Failure(Kind.UNAVAILABLE, "the file cannot be opened: check that it and its folder exist and are writable"),
    sqlite3.SQLITE_PERM: Failure(Kind.UNAVAILABLE, "access to the file is not permitted"),
    sqlite3.SQLITE_NOMEM: Failure(Kind.UNAVAILABLE, "the machine is out of memory"),
    sqlite3.SQLITE_INTERRUPT: Failure(Kind.UNAVAILABLE, "a statement was interrupted"),
    sqlite3.SQLITE_PROTOCOL: Failure(Kind.CONTENTION, "the file is locked by another program"),
    sqlite3.SQLITE_NOTADB: Failure(Kind.UNAVAILABLE, "the file is not a SQLite database"),
    sqlite3.SQLITE_CORRUPT: Failure(Kind.UNAVAILABLE, "the file is damaged: restore it from a backup"),
}
