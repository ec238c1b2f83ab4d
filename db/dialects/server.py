"""Connections to a database server: their pool, and the deadlines that do not come from settings."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from attrs import frozen
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry, Pool

from db.dialects.wire import client_context
from db.dsn.target import Target
from db.options import Options

#: How much longer than the server the socket waits, in seconds: the server's own error is the better one.
SOCKET_GRACE = 2.0
#: What a connection that migrates waits for one answer, in seconds: a large table may take its time.
MIGRATION_TIMEOUT = 6 * 3600.0
#: What it waits for statements of others that use the table, in seconds; while it waits, new ones wait behind it.
LOCK_TIMEOUT = 60.0
#: What a transaction waits for a row's lock if it has other things to do, in seconds. MySQL and MariaDB take a second.
LOCK_WAIT = 0.5
#: After so many seconds without a word in the middle of a transaction that writes, its process counts as frozen. The
#: transaction is ended, so that its locks do not last.
FROZEN = 5.0
#: After so many seconds without a word from it, the server ends its session: its process is frozen, or cut off, and
#: must not block migrations without end.
SILENCE = 60.0


@frozen
class ServerFacts:
    """What a database says about itself, for `llm-proxy db check`.

    Attributes:
        version: product and version.
        tls: TLS version of the connection; None if it is not encrypted.
        max_connections: the server's limit for all clients; None on SQLite, as are the next two.
        allowed_connections: how many of these this user may have: some are reserved for administrators, and a role or a
            database may have its own limit.
        open_connections: how many all clients have now, without this one.
        clock_skew: the database's clock minus ours.
    """

    version: str
    tls: str | None = None
    max_connections: int | None = None
    allowed_connections: int | None = None
    open_connections: int | None = None
    clock_skew: timedelta = timedelta()


class ServerPool(Pool):
    """At most `pool_size` connections, of which `max_idle` stay open when they come back, none beyond its lifetime.

    The one that came back last is taken first, so that those which are not needed grow old. They are closed when
    another comes back, which a worker's heartbeat sees to every few seconds.

    Nothing is reset when a connection comes back, because every transaction has been ended by then; and none is probed
    when it is taken: a function whose connection turns out to have gone is run again on a fresh one.
    """

    #: SQLAlchemy's own pools log under this name, which quotes drivers and is kept quiet with the rest of it.
    _sqla_logger_namespace = "sqlalchemy.pool.ServerPool"

    def __init__(self, connect: Callable[[], Any], options: Options) -> None:
        """Nothing is connected yet."""
        super().__init__(connect, recycle=-1, reset_on_return=None)
        self._options = options
        self._room = threading.BoundedSemaphore(options.pool_size)
        self._lock = threading.Lock()
        self._idle: list[ConnectionPoolEntry] = []  # the one that came back last is the last
        self._in_use = 0

    def checkedout(self) -> int:
        """Connections in use, or about to be."""
        return self._in_use

    def checkedin(self) -> int:
        """Open connections that wait for use."""
        return len(self._idle)

    def status(self) -> str:
        """The state as text, for debugging."""
        return f"{self.checkedout()} in use, {self.checkedin()} idle"

    def dispose(self) -> None:
        """Close those that are not in use."""
        with self._lock:
            closing, self._idle = self._idle, []
        for entry in closing:
            entry.close()

    def _do_get(self) -> ConnectionPoolEntry:
        if not self._room.acquire(timeout=self._options.connect_timeout):
            raise PoolTimeout(f"{self._options.pool_size} connections are in use")
        with self._lock:
            self._in_use += 1
            closing = self._outlived()
            entry = self._idle.pop() if self._idle else None
        try:
            for old in closing:
                old.close()
            return entry or self._create_connection()
        except BaseException:
            self._leave()
            raise

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        with self._lock:
            closing = self._outlived()
            if len(self._idle) < self._options.max_idle and self._fresh(record):
                self._idle.append(record)
            else:
                closing.append(record)
        try:
            for old in closing:
                old.close()
        finally:
            self._leave()

    def _outlived(self) -> list[ConnectionPoolEntry]:
        """Take the idle connections out that are of no more use, to be closed without the lock."""
        found = [entry for entry in self._idle if not self._fresh(entry)]
        if found:
            self._idle = [entry for entry in self._idle if self._fresh(entry)]
        return found

    def _fresh(self, entry: ConnectionPoolEntry) -> bool:
        """Whether a connection is open, young enough, and was made after the last loss of one."""
        made = entry.starttime  # type: ignore[attr-defined]  # declared on the only implementation
        return (
            entry.dbapi_connection is not None
            and time.time() - made <= self._options.max_lifetime
            and made > self._invalidate_time
        )

    def _leave(self) -> None:
        with self._lock:
            self._in_use -= 1
        self._room.release()


class ServerBackend:
    """What the backends of all database servers share."""

    def __init__(self, target: Target, options: Options) -> None:
        """Nothing is connected yet. Raises BadDsn for TLS files that cannot be used."""
        self.writers = options.pool_size
        self._target = target
        self._connect_timeout = target.connect_timeout or options.connect_timeout
        self._statement_timeout = options.statement_timeout
        self._tls = client_context(target, options)
        self.pools = (ServerPool(self._connect, options),)

    def open(self) -> None:
        """Do nothing: connections are made when they are needed."""

    def check_files(self) -> None:
        """Do nothing: only SQLite has files here."""

    def close(self) -> None:
        """Close every connection."""
        self.pools[0].dispose()

    def _connect(self) -> Any:
        raise NotImplementedError
