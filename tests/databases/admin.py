"""What tests do to a database server itself: make, copy and drop databases, end sessions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import pg8000.native
import pymysql
from attrs import frozen
from pymysql.cursors import Cursor

from tests.databases.addresses import Address
from tests.databases.kinds import Kind


class Admin(Protocol):
    """The administrator's side of a database server."""

    def version(self) -> str:
        """The server's own name for its version. Raises what the driver raises while it does not answer."""

    def execute(self, *statements: str, database: str | None = None) -> None:
        """Run statements, in a database or wherever one arrives."""

    def names(self) -> list[str]:
        """The databases that there are."""

    def create(self, name: str) -> None:
        """Make an empty database."""

    def clone(self, template: str, name: str) -> None:
        """Make a database with the tables and rows of another, which nobody is connected to."""

    def sessions(self, name: str) -> int:
        """How many are connected to a database."""

    def end_sessions(self, name: str) -> int:
        """Disconnect all sessions of a database, as a restart would; return their number."""

    def drop(self, name: str) -> None:
        """Remove a database, also with open sessions."""


def admin_of(kind: Kind, url: str) -> Admin:
    """The administrator of the server that a URL leads to."""
    return PostgresAdmin(url) if kind is Kind.POSTGRES else MySQLAdmin(url)


@frozen
class PostgresAdmin:
    """PostgreSQL: databases are copied by the server."""

    url: str

    @contextmanager
    def _session(self, database: str | None = None) -> Iterator[pg8000.native.Connection]:
        name = database or self.url.partition("?")[0].rpartition("/")[2] or "postgres"
        connection = pg8000.native.Connection(
            database=name, **Address.parse(self.url, default_port=5432).postgres_arguments()
        )
        try:
            yield connection
        finally:
            connection.close()

    def version(self) -> str:
        with self._session() as session:
            return f"PostgreSQL {session.run('SHOW server_version')[0][0]}"

    def execute(self, *statements: str, database: str | None = None) -> None:
        with self._session(database) as session:
            for statement in statements:
                session.run(statement)

    def names(self) -> list[str]:
        with self._session() as session:
            return [str(row[0]) for row in session.run("SELECT datname FROM pg_database")]

    def create(self, name: str) -> None:
        with self._session() as session:
            session.run(f'CREATE DATABASE "{name}"')

    def clone(self, template: str, name: str) -> None:
        with self._session() as session:
            session.run(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')

    def sessions(self, name: str) -> int:
        with self._session() as session:
            return len(session.run("SELECT pid FROM pg_stat_activity WHERE datname = :name", name=name))

    def end_sessions(self, name: str) -> int:
        with self._session() as session:
            ended = session.run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name", name=name
            )
            return len(ended)

    def drop(self, name: str) -> None:
        with self._session() as session:
            session.run(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@frozen
class MySQLAdmin:
    """MySQL and MariaDB: databases are copied table by table, from their own definitions."""

    url: str

    @contextmanager
    def _session(self) -> Iterator[Cursor]:
        connection = pymysql.connect(autocommit=True, **Address.parse(self.url, default_port=3306).mysql_arguments())
        try:
            with connection.cursor() as cursor:
                yield cursor
        finally:
            connection.close()

    def version(self) -> str:
        with self._session() as session:
            version = str(_rows(session, "SELECT VERSION()")[0][0])
        return version if "MariaDB" in version else f"MySQL {version}"

    def execute(self, *statements: str, database: str | None = None) -> None:
        with self._session() as session:
            for statement in (f"USE `{database}`", *statements) if database else statements:
                session.execute(statement)

    def names(self) -> list[str]:
        with self._session() as session:
            return [str(row[0]) for row in _rows(session, "SHOW DATABASES")]

    def create(self, name: str) -> None:
        with self._session() as session:
            session.execute(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")

    def clone(self, template: str, name: str) -> None:
        with self._session() as session:
            tables = [str(row[0]) for row in _rows(session, f"SHOW TABLES FROM `{template}`")]
            definitions = [_rows(session, f"SHOW CREATE TABLE `{template}`.`{table}`")[0][1] for table in tables]
            session.execute(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")
            session.execute(f"USE `{name}`")
            # Tables come in alphabetical order, not in the order of their references.
            session.execute("SET foreign_key_checks = 0")
            for table, definition in zip(tables, definitions, strict=True):
                session.execute(str(definition))
                session.execute(f"INSERT INTO `{table}` SELECT * FROM `{template}`.`{table}`")

    def sessions(self, name: str) -> int:
        with self._session() as session:
            return sum(row[3] == name for row in _rows(session, "SHOW PROCESSLIST"))

    def end_sessions(self, name: str) -> int:
        with self._session() as session:
            connected = [row[0] for row in _rows(session, "SHOW PROCESSLIST") if row[3] == name]
            for number in connected:
                try:
                    session.execute(f"KILL {int(number)}")
                except pymysql.err.MySQLError as error:
                    if error.args[0] != pymysql.constants.ER.NO_SUCH_THREAD:
                        raise
            return len(connected)

    def drop(self, name: str) -> None:
        # An open transaction would hold the tables' metadata locks for as long as it likes.
        self.end_sessions(name)
        with self._session() as session:
            session.execute(f"DROP DATABASE IF EXISTS `{name}`")


def _rows(session: Cursor, statement: str) -> tuple[tuple[Any, ...], ...]:
    session.execute(statement)
    return tuple(session.fetchall())
