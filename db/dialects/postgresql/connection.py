"""pg8000's connection with one round trip per statement, and none of the operating system's errors.

pg8000 sends Parse, Bind and Execute each with a Sync of its own and waits for each, three round trips per statement;
`executemany` does so for every row. The protocol asks for no more than one Sync after all of them: after an error the
server skips to it (PostgreSQL documentation, 55.2.3 "Extended Query" and 55.2.4 "Pipelining"). So does this class:
one round trip per statement, and one per `_ROWS_PER_TRIP` rows of `executemany`, with a single Parse. A transaction
begins in the round trip of its first statement. What is deferred goes with the next statement, or with the commit.

pg8000 also lets an OSError through where a read fails at its first byte, and scans each statement character by
character for its parameters; here a failure is always one of its own errors and statements come with `$1` in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from struct import Struct
from struct import error as StructError  # noqa: N812 - the module calls it `error`
from typing import Any, ClassVar

from pg8000 import legacy
from pg8000.converters import TIMESTAMPTZ, make_param
from pg8000.core import COMMAND_COMPLETE, EXECUTE_MSG, READY_FOR_QUERY, SYNC_MSG, Context
from pg8000.exceptions import DatabaseError

from db.dialects.wire import keep_alive

_HEADER = Struct("!ci").unpack
_int32 = Struct("!i").pack
_int16 = Struct("!H").pack

_NULL = _int32(-1)
_TRUE, _FALSE = _int32(4) + b"true", _int32(5) + b"false"
#: The unnamed portal, the unnamed statement, and every parameter as text.
_NO_FORMATS = b"\x00\x00\x00\x00"
#: Every column as text.
_NO_RESULT_FORMATS = b"\x00\x00"
#: Describe the unnamed portal: its columns come back only once it is bound.
_DESCRIBE = b"D" + _int32(6) + b"P\x00"
#: Answers wait in the socket's buffers while rows are still being sent; this many are sure to fit.
_ROWS_PER_TRIP = 500
#: The largest number of parameters that the protocol can count.
MAX_PARAMETERS = 65535


class PostgresCursor(legacy.Cursor):  # type: ignore[misc]  # published without types
    """Runs statements with `$1` parameters; begins no transaction by itself."""

    def execute(self, operation: str, args: Sequence[Any] = (), stream: object = None) -> PostgresCursor:
        """Run one statement. Raises pg8000's errors and no others."""
        connection = self._live_connection()
        try:
            self._context = connection.run_one(operation, args) if args else connection.execute_simple(operation)
        except DatabaseError as error:
            raise _dbapi_error(error) from error
        self._row_iter = iter(self._context.rows or ())
        return self

    def executemany(self, operation: str, param_sets: Sequence[Sequence[Any]]) -> PostgresCursor:
        """Run one statement for many rows. Raises pg8000's errors and no others."""
        connection = self._live_connection()
        try:
            self._context = connection.run_many(operation, param_sets)
        except DatabaseError as error:
            raise _dbapi_error(error) from error
        self._row_iter = iter(())
        return self

    def defer(self, operation: str, param_sets: Sequence[Sequence[Any]]) -> None:
        """Run one statement for many rows in the round trip of the next statement, which raises its error."""
        try:
            self._live_connection().defer(operation, param_sets)
        except DatabaseError as error:
            raise _dbapi_error(error) from error

    def _live_connection(self) -> PostgresConnection:
        connection: PostgresConnection | None = self._c
        if connection is None:
            raise legacy.InterfaceError("cursor is closed")
        return connection


class PostgresConnection(legacy.Connection):  # type: ignore[misc]  # published without types
    """A connection; transactions begin with `begin`."""

    #: Messages that begin transactions, and how many statements are in them, by these statements.
    _beginnings: ClassVar[dict[str, tuple[bytes, int]]] = {}

    def __init__(self, **arguments: Any) -> None:
        """Connect and log in. Raises pg8000's errors, and OSError where the network or TLS fails."""
        # Messages to send with the next one, and how many statements they run.
        self._deferred = b""
        self._ahead = 0
        try:
            super().__init__(**arguments)
        except BaseException:
            _close_all(getattr(self, "_sock", None), getattr(self, "_usock", None))
            raise
        keep_alive(self._usock)
        self.register_in_adapter(TIMESTAMPTZ, _timestamptz)

    @property
    def bound_to_channel(self) -> bool:
        """Whether the login was SCRAM with the server's TLS certificate in it."""
        scram = getattr(self, "auth", None)
        return scram is not None and str(scram.mechanism_name).endswith("-PLUS")

    def set_timeout(self, seconds: float) -> None:
        """Set the deadline of each read and write from now on."""
        self._usock.settimeout(seconds)

    def cursor(self) -> PostgresCursor:
        return PostgresCursor(self)

    def begin(self, statements: str) -> None:
        """Begin a transaction, with whatever settings belong to it; it is sent with the first statement.

        Should it fail, the server skips that statement: both are in front of one Sync.
        """
        self._deferred, self._ahead = self._beginnings.get(statements) or self._begin_message(statements)

    def commit(self) -> None:
        """Commit. In a transaction that has failed, the server would roll back and call it done: that is an error."""
        self._run("commit")

    def close(self) -> None:
        """Say goodbye and close the socket; one that is broken or closed already is no error."""
        opened = self._sock, self._usock
        with suppress(legacy.InterfaceError):
            super().close()
        _close_all(*opened)

    def rollback(self) -> None:
        self._deferred, self._ahead = b"", 0
        if self._in_transaction:
            self._run("rollback")

    def run_one(self, statement: str, values: Sequence[Any]) -> Context:
        """Run a statement with parameters in one round trip."""
        message = self._parse(statement)
        message += _bind(values, _Values(self.py_types))
        message += _DESCRIBE
        message += EXECUTE_MSG
        message += SYNC_MSG
        return self._exchange(statement, message)

    def run_many(self, statement: str, rows: Sequence[Sequence[Any]]) -> Context:
        """Run a statement once per row; the context counts the rows of all runs."""
        message = self._parse(statement)
        context = Context(statement)
        for start in range(0, len(rows), _ROWS_PER_TRIP):
            message += self._runs(rows[start : start + _ROWS_PER_TRIP])
            message += SYNC_MSG
            self._exchange(statement, message, context)
            message = bytearray()
        return context

    def defer(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a statement once per row, in front of the next one; the server skips that after an error."""
        if self._ahead + len(rows) > _ROWS_PER_TRIP:
            self.run_many(statement, rows)
            return
        self._deferred += self._parse(statement) + self._runs(rows)
        self._ahead += len(rows)

    def execute_simple(self, statement: str) -> Context:
        """Run one or several statements without parameters in one round trip."""
        if self._deferred:
            # A simple query may not come in front of the Sync.
            self._exchange(statement, bytearray(SYNC_MSG))
        text = statement.encode() + b"\x00"
        return self._exchange(statement, bytearray(b"Q" + _int32(len(text) + 4) + text))

    def handle_messages(self, context: Context) -> None:
        """Read answers up to the server's readiness. Raises InterfaceError when the connection is lost."""
        code = b""
        try:
            read, handlers = self._sock.read, self.message_types
            ahead, self._ahead = self._ahead, 0
            while code != READY_FOR_QUERY:
                code, length = _HEADER(read(5))
                data = read(length - 4) if length > 4 else b""
                if len(data) != length - 4:
                    raise legacy.InterfaceError("network error")
                if ahead and code == COMMAND_COMPLETE:
                    ahead -= 1  # the context is of the last statement
                else:
                    handlers[code](data, context)
        except (AttributeError, KeyError, OSError, StructError, ValueError) as error:
            # A short header is the end of the stream, an unknown one another protocol, no socket a closed connection.
            cause = error.__cause__ or error if isinstance(error, OSError) else None
            raise legacy.InterfaceError("network error") from cause
        if context.error is not None:
            raise context.error

    def _run(self, statement: str) -> None:
        try:
            if self._deferred:
                self.run_one(statement, ())
            else:
                self.execute_simple(statement)
        except DatabaseError as error:
            raise _dbapi_error(error) from error

    def _exchange(self, statement: str, message: bytearray, context: Context | None = None) -> Context:
        context = Context(statement) if context is None else context
        deferred, self._deferred = self._deferred, b""
        try:
            self._sock.write(deferred + message)
            self._sock.flush()
        except (AttributeError, OSError, ValueError) as error:  # no socket or a closed one: the connection is closed
            raise legacy.InterfaceError("network error") from (error if isinstance(error, OSError) else None)
        self.handle_messages(context)
        return context

    def _begin_message(self, statements: str) -> tuple[bytes, int]:
        parts = [self._parse(one) + self._runs([()]) for one in statements.split("; ")]
        message = self._beginnings[statements] = b"".join(parts), len(parts)
        return message

    def _runs(self, rows: Sequence[Sequence[Any]]) -> bytes:
        """Run the statement that was parsed last, once per row."""
        known = _Values(self.py_types)
        return b"".join([part for row in rows for part in (_bind(row, known), EXECUTE_MSG)])

    def _parse(self, statement: str) -> bytearray:
        # No types are told: the server derives them from the statement, which casts where that is not enough.
        text = b"\x00" + statement.encode() + b"\x00\x00\x00"
        return bytearray(b"P" + _int32(len(text) + 4) + text)


class _Values(dict[Any, bytes]):
    """The values of a statement as the protocol has them, each with its length: many are in several rows.

    Equal values have the same text, but for truth values, which are equal to numbers and not in it.
    """

    def __init__(self, converters: Any) -> None:
        self._converters = converters

    def __missing__(self, value: Any) -> bytes:
        kind = type(value)
        if value is None:
            packed = _NULL
        else:
            text = value.encode() if kind is str else b"%d" % value if kind is int else self._made(value)
            packed = _int32(len(text)) + text
        self[value] = packed
        return packed

    def _made(self, value: Any) -> bytes:
        made: str = make_param(self._converters, value)
        return made.encode()


def _bind(values: Sequence[Any], known: _Values) -> bytes:
    if len(values) > MAX_PARAMETERS:
        raise legacy.ProgrammingError("too many parameters")
    packed = [_TRUE if value is True else _FALSE if value is False else known[value] for value in values]
    body = b"".join((_NO_FORMATS, _int16(len(values)), *packed, _NO_RESULT_FORMATS))
    return b"B" + _int32(len(body) + 4) + body


def _timestamptz(text: str) -> datetime:
    # The session's time zone is UTC and its style ISO, so the offset is always +00.
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def _dbapi_error(error: DatabaseError) -> Exception:
    fields = error.args[0]
    code = fields.get("C", "") if isinstance(fields, dict) else ""
    known = {"23505": legacy.IntegrityError, "28000": legacy.InterfaceError}
    return known.get(code, legacy.ProgrammingError)(fields)  # type: ignore[no-any-return]  # published without types


def _close_all(*opened: Any) -> None:
    """Close what pg8000 leaves open: the sockets of a login that failed, and the file of a connection that was lost.

    The error of the loss refers to that file, and a socket stays open as long as its file does.
    """
    for one in opened:
        if one is not None:
            with suppress(OSError):  # what was still to be sent cannot be
                one.close()
