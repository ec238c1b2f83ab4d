"""SQL on a database as an administrator types it, beside whatever the program does there."""

from __future__ import annotations

from typing import Any

import pg8000.native
import pymysql

from tests.databases.addresses import Address
from tests.databases.kinds import Kind
from tests.databases.scratch import Scratch


def run(scratch: Scratch, statement: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Run one statement in a transaction of its own; return the names of its columns, and its rows."""
    if scratch.kind is Kind.POSTGRES:
        return _on_postgres(scratch, statement)
    address = Address.parse(scratch.url, default_port=3306)
    connection = pymysql.connect(database=scratch.name, autocommit=True, **address.mysql_arguments())
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return [column[0] for column in cursor.description or ()], list(cursor.fetchall())
    finally:
        connection.close()


def _on_postgres(scratch: Scratch, statement: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    address = Address.parse(scratch.url, default_port=5432)
    session = pg8000.native.Connection(database=scratch.name, **address.postgres_arguments())
    try:
        rows = session.run(statement) or []
        return [column["name"] for column in session.columns or ()], [tuple(row) for row in rows]
    finally:
        session.close()
