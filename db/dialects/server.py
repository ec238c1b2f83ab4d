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

#: Seconds that the socket waits longer than the server, whose own error says more.
SOCKET_GRACE = 2.0
#: Seconds that a migration waits for one answer: a large table takes long.
MIGRATION_TIMEOUT = 6 * 3600.0
#: Seconds that it waits for statements of others that use the table. Meanwhile, new statements wait too.
LOCK_TIMEOUT = 60.0
#: Seconds that a transaction with other work waits for a row lock. MySQL and MariaDB wait for a full second.
LOCK_WAIT = 0.5
#: Seconds without a statement in a transaction that writes, after which its process counts as frozen. The server ends
#: the transaction and so releases its locks.
FROZEN = 5.0
#: Seconds without a statement after which the server ends the session of a migration: its process is frozen or cut
#: off, and must not block other migrations.
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
    """At most `pool_size` connections, of which `max_idle` stay open when they are not used, none beyond its lifetime.

    The connection that was returned last is used first, so that surplus ones expire. They are closed when another one
    is returned; a worker's heartbeat does that every few seconds.

    A returned connection is not reset, because its transaction has ended. A connection is not tested before use: if it
    is broken, the function runs again on a new one.
    """

    #: The name of the logger. SQLAlchemy's loggers are silent, because they quote drivers.
    _sqla_logger_namespace = "sqlalchemy.pool.ServerPool"

    def __init__(self, connect: Callable[[], Any], options: Options) -> None:
        super().__init__(connect, recycle=-1, reset_on_return=None)
        self._options = options
        self._room = threading.BoundedSemaphore(options.pool_size)
        self._lock = threading.Lock()
        self._idle: list[ConnectionPoolEntry] = []  # the one that was returned last is the last
        self._in_use = 0

    def checkedout(self) -> int:
        """Connections in use, or about to be."""
        return self._in_use

    def checkedin(self) -> int:
        """Open connections that wait for use."""
        return len(self._idle)

    def status(self) -> str:
        return f"{self.checkedout()} in use, {self.checkedin()} idle"

    def dispose(self) -> None:
        """Close the idle connections."""
        with self._lock:
            closing, self._idle = self._idle, []
        for entry in closing:
            entry.close()

    def _do_get(self) -> ConnectionPoolEntry:
        if not self._room.acquire(timeout=self._options.connect_timeout):
            raise PoolTimeout(f"{self._options.pool_size} connections are in use")
        with self._lock:
            self._in_use += 1
            closing = self._take_expired()
            entry = self._idle.pop() if self._idle else None
        try:
            for old in closing:
                old.close()
            return entry or self._create_connection()
        except BaseException:
            self._release()
            raise

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        with self._lock:
            closing = self._take_expired()
            if len(self._idle) < self._options.max_idle and self._is_usable(record):
                self._idle.append(record)
            else:
                closing.append(record)
        try:
            for old in closing:
                old.close()
        finally:
            self._release()

    def _take_expired(self) -> list[ConnectionPoolEntry]:
        """Remove idle connections that are not usable, and return them: they are closed without the lock."""
        found = [entry for entry in self._idle if not self._is_usable(entry)]
        if found:
            self._idle = [entry for entry in self._idle if self._is_usable(entry)]
        return found

    def _is_usable(self, entry: ConnectionPoolEntry) -> bool:
        """Whether a connection is open, young enough, and was made after the last loss of one."""
        made = entry.starttime  # type: ignore[attr-defined]  # declared on the only implementation
        return (
            entry.dbapi_connection is not None
            and time.time() - made <= self._options.max_lifetime
            and made > self._invalidate_time
        )

    def _release(self) -> None:
        with self._lock:
            self._in_use -= 1
        self._room.release()


class ServerBackend:
    """What PostgreSQL and MySQL have in common."""

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
        self.pools[0].dispose()

    def _connect(self) -> Any:
        raise NotImplementedError
