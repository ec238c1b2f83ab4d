"""PyMySQL's connection, with the session settings that the queries count on."""

from __future__ import annotations

import re
import socket
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pymysql.connections import Connection
from pymysql.constants import CLIENT

from db.dialects.server import FROZEN
from db.dialects.wire import keep_alive

if TYPE_CHECKING:  # generic for type checkers only
    from pymysql.cursors import Cursor

    _Connection = Connection[Cursor]
else:
    _Connection = Connection

#: The server ends a session that has said nothing for so many seconds, and with it any locks of a stopped process.
_IDLE_TIMEOUT = 60
#: What does not fit is refused, as on every other database, and 0 is a number like others.
_SQL_MODE = (
    "STRICT_ALL_TABLES,ONLY_FULL_GROUP_BY,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION,NO_AUTO_VALUE_ON_ZERO"
)
#: Text that needs no escape between quotes, in every character set and SQL mode.
_PLAIN = re.compile(r"[A-Za-z0-9 _.:/@+=,-]*")


class MySqlConnection(_Connection):
    """A connection; `prepare` comes first."""

    def __init__(self, *, tls_optional: bool = False, defer_connect: bool = False, **arguments: Any) -> None:
        """Connect and log in.

        Args:
            tls_optional: use the TLS context only where the server offers TLS. PyMySQL's own way to say so would be
                no context, of which it makes a new one for each connection.
            defer_connect: wait for `connect`.
            arguments: PyMySQL's others.
        """
        super().__init__(**arguments, defer_connect=True)
        if tls_optional:
            self._ssl_required = False
            self.client_flag &= ~CLIENT.SSL
        if not defer_connect:
            self.connect()

    def connect(self, sock: socket.socket | None = None) -> None:
        """Connect and log in. PyMySQL would leave a socket open that finds nobody at its path."""
        if sock is None and self.unix_socket:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.settimeout(self.connect_timeout)
                sock.connect(self.unix_socket)
            except BaseException:
                sock.close()
                raise
            self._secure = True  # so that the password may go over it as over TLS
        super().connect(sock)
        keep_alive(self._sock)  # type: ignore[attr-defined]  # its stub lacks it

    def prepare(self, statement_timeout: float, lock_timeout: float) -> None:
        """Set the session up: UTC, strict, READ COMMITTED, deadlines in seconds for statements and for locks."""
        version: str = self.get_server_info()  # type: ignore[no-untyped-call]  # its stub has no types
        if "MariaDB" in version:
            deadline = f"max_statement_time = {statement_timeout}, idle_transaction_timeout = {int(FROZEN)}"
        else:
            deadline = f"max_execution_time = {max(1, int(statement_timeout * 1000))}"
        lock = self._lock_wait = max(1, int(lock_timeout))
        self.query("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        self.query(
            f"SET SESSION time_zone = '+00:00', sql_mode = '{_SQL_MODE}', wait_timeout = {_IDLE_TIMEOUT}, "
            f"innodb_lock_wait_timeout = {lock}, lock_wait_timeout = {lock}, {deadline}"
        )

    def wait_for_locks(self, seconds: float) -> None:
        """Set how long each lock is waited for from now on, at least a second. Nothing is sent if it is so already."""
        lock = max(1, int(seconds))
        if lock != self._lock_wait:
            self.query(f"SET SESSION innodb_lock_wait_timeout = {lock}, lock_wait_timeout = {lock}")
            self._lock_wait = lock

    def escape(self, obj: Any, mapping: Any = None) -> str:
        """Write a value as a literal: the usual ones, which are plain beyond doubt, more quickly than PyMySQL does.

        It makes the same text of them, at half the cost: a batch of requests has hundreds of values.
        """
        kind = type(obj)
        if kind is str:
            if _PLAIN.fullmatch(obj):
                return f"'{obj}'"
        elif kind is int or kind is bool:
            return str(int(obj))
        elif obj is None:
            return "NULL"
        elif kind is datetime and obj.tzinfo is None:
            return f"'{obj.isoformat(' ')}'"
        return super().escape(obj, mapping)

    def set_timeouts(self, read: float, write: float) -> None:
        """Set the deadlines of each read and write from now on, in seconds."""
        self._read_timeout = read
        self._write_timeout = write
