"""PyMySQL's connection, with the session settings that the queries count on, and with fewer round trips.

A packet may hold several statements, with a semicolon between them; the server runs one after the other, and after an
error none (MySQL manual, "Multiple Statement Execution Support"). So what is deferred goes in front of the next
statement, or of the commit. Only the connection of the ledger's writer may do that, and only with statements whose
values cannot be taken for SQL, whatever they are: numbers, times, and hexadecimal digits.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING, Any

from pymysql.connections import Connection
from pymysql.constants import CLIENT, COMMAND, ER
from pymysql.cursors import RE_INSERT_VALUES, Cursor
from pymysql.err import Error, ProgrammingError

from db.dialects.server import FROZEN
from db.dialects.wire import keep_alive

if TYPE_CHECKING:  # generic for type checkers only
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
#: COM_SET_OPTION's argument: whether the server takes several statements in one packet.
_SET_OPTION = Struct("<H").pack
_SEVERAL_STATEMENTS, _ONE_STATEMENT = 0, 1
_UNKNOWN_COMMAND = (ER.UNKNOWN_COM_ERROR, ER.NOT_SUPPORTED_YET)
#: Bytes of deferred statements that are sent with another one. Servers take packets of 4 MB and more by default.
_MOST_DEFERRED = 1024 * 1024


class MySqlCursor(Cursor):
    """PyMySQL's cursor, which can leave a statement for the next round trip."""

    def defer(self, operation: str, param_sets: Sequence[Sequence[Any]]) -> None:
        """Run one statement for many rows in the round trip of the next statement, which raises its error.

        Where the connection may not do that, the statement runs now.
        """
        connection: MySqlConnection = self._get_db()  # type: ignore[attr-defined]  # its stub lacks it
        if not connection.defer(operation, param_sets):
            self.executemany(operation, param_sets)


class MySqlConnection(_Connection):
    """A connection; `prepare` comes first."""

    _joins = False
    _refuses_to_join = False

    def __init__(self, *, tls_optional: bool = False, defer_connect: bool = False, **arguments: Any) -> None:
        """Connect and log in.

        Args:
            tls_optional: use the TLS context only where the server offers TLS. PyMySQL's own way to say so would be
                no context, of which it makes a new one for each connection.
            defer_connect: wait for `connect`.
            arguments: PyMySQL's others.
        """
        # Statements to send with the next one, and how many are under way in front of it.
        self._deferred: list[bytes] = []
        self._ahead = 0
        super().__init__(**arguments, defer_connect=True, cursorclass=MySqlCursor)
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

    def join_statements(self, *, joins: bool) -> None:
        """Set whether statements may be deferred from now on; a proxy that does not know that is not asked again."""
        if joins is self._joins or (joins and self._refuses_to_join):
            return
        try:
            self._execute_command(COMMAND.COM_SET_OPTION, _SET_OPTION(_SEVERAL_STATEMENTS if joins else _ONE_STATEMENT))
            self._read_packet()  # type: ignore[no-untyped-call]  # its stub has no types
        except Error as error:
            if error.args[0] not in _UNKNOWN_COMMAND:
                raise
            self._refuses_to_join = True
        else:
            self._joins = joins

    def defer(self, statement: str, rows: Sequence[Sequence[Any]]) -> bool:
        """Run a statement once for each row, in front of the next one; False if that is not possible."""
        if not self._joins:
            return False
        text = _text_of(statement, rows)
        if sum(map(len, self._deferred)) + len(text) > _MOST_DEFERRED:
            return False
        self._deferred.append(text)
        return True

    def commit(self) -> None:
        self.query("COMMIT")

    def rollback(self) -> None:
        self._deferred = []
        super().rollback()

    def _execute_command(self, command: int, sql: str | bytes) -> None:
        if self._deferred and command == COMMAND.COM_QUERY:
            last = sql.encode(self.encoding) if isinstance(sql, str) else sql
            sql, self._ahead = b";".join((*self._deferred, last)), len(self._deferred)
            self._deferred = []
        super()._execute_command(command, sql)  # type: ignore[misc]  # its stub lacks it

    def _read_query_result(self, unbuffered: bool = False) -> Any:  # noqa: FBT001, FBT002 - PyMySQL's own method
        read = super()._read_query_result  # type: ignore[misc]  # its stub lacks it
        ahead, self._ahead = self._ahead, 0
        for _ in range(ahead):
            read()
        return read(unbuffered)

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


def _text_of(statement: str, rows: Sequence[Sequence[Any]]) -> bytes:
    """One statement for these rows: an INSERT of all of them, or another one of a single row."""
    head, values, tail = _parts_of(statement)
    literals = _Literals()
    places = [values % tuple([literals[value] for value in row]) for row in rows]
    return f"{head}{','.join(places)}{tail}".encode()


@lru_cache(maxsize=64)  # there are some ten, and one more for each number of keys
def _parts_of(statement: str) -> tuple[str, str, str]:
    """What is before the values of an INSERT, their places, and what is behind them."""
    found = RE_INSERT_VALUES.match(statement)
    return ("", statement, "") if found is None else (found[1] % (), found[2], (found[3] or "") % ())


class _Literals(dict[object, str]):
    """The literals of the values in some rows: many are in several of them. Equal values have the same literal."""

    def __missing__(self, value: object) -> str:
        literal = self[value] = _literal(value)
        return literal


def _literal(value: object) -> str:
    """A value as a literal in which no byte of it stands for itself, unless it is a number or a time."""
    kind = type(value)
    if kind is str:
        return f"_utf8mb4 X'{value.encode().hex()}'"  # type: ignore[attr-defined]  # it is a str
    if kind is int or kind is bool:
        return str(int(value))  # type: ignore[call-overload]  # as above
    if value is None:
        return "NULL"
    if isinstance(value, datetime):
        return f"'{value.isoformat(' ')}'"
    if isinstance(value, bytes):
        return f"X'{value.hex()}'"
    raise ProgrammingError(f"a value of type {kind.__name__} cannot be deferred")
