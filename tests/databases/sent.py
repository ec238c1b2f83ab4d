"""The statements of a connection, as its driver gets them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from attrs import define
from pymysql.connections import Connection as MySql
from pymysql.constants import COMMAND

from db import Connection
from db.dialects.postgresql.connection import PostgresConnection


def sent_from_now_on(connection: Connection) -> list[str]:
    """A list that grows with each statement that the connection sends; one for many rows counts once."""
    statements: list[str] = []
    pooled: Any = connection.connection
    cursor = pooled.cursor
    pooled.cursor = lambda: _NotingCursor(cursor(), statements)
    return statements


def trips_from_now_on(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows with each round trip to a server, by the last statement in it."""
    found: list[str] = []
    exchange: Any = PostgresConnection._exchange
    execute: Any = MySql._execute_command  # type: ignore[attr-defined]  # its stub lacks it

    def note(self: PostgresConnection, statement: str, *args: Any) -> Any:
        found.append(statement)
        return exchange(self, statement, *args)

    def note_command(self: MySql[Any], command: int, sql: str | bytes) -> None:
        text = sql if isinstance(sql, str) else sql.decode("latin-1")
        found.append(text.rpartition(";")[2] if command == COMMAND.COM_QUERY else f"command {command}")
        execute(self, command, sql)

    monkeypatch.setattr(PostgresConnection, "_exchange", note)
    monkeypatch.setattr(MySql, "_execute_command", note_command)
    return found


@define
class _NotingCursor:
    _cursor: Any
    _statements: list[str]

    def execute(self, text: str, *values: Any) -> object:
        self._statements.append(text)
        return self._cursor.execute(text, *values)

    def executemany(self, text: str, rows: Any) -> object:
        self._statements.append(text)
        return self._cursor.executemany(text, rows)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._cursor, name)
        # Not every driver's cursor has it.
        return partial(self._note, found) if name == "defer" else found

    def _note(self, defer: Any, text: str, rows: Any) -> None:
        self._statements.append(text)
        defer(text, rows)
