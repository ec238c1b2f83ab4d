"""A database server from its administrator's side: its address, and what tests do with its databases.

It does not use `db.dsn` on purpose, because that is under test.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

import pg8000.native
import pymysql
from attrs import field, frozen
from pymysql.cursors import Cursor

from tests.databases.kinds import Kind

#: Text before the name of the database, the name, the options; of URLs and of the form of Go's driver.
_PARTS = re.compile(r"(?P<head>.*/)(?P<database>[^/?]*)(?P<options>\?.*)?", re.DOTALL)
_GO_FORM = re.compile(
    r"(?:(?P<user>[^:@]*)(?::(?P<password>.*))?@)?"
    r"(?:tcp\((?P<host>[^:)]+)(?::(?P<port>\d+))?\)|unix\((?P<socket>[^)]+)\))?/.*",
    re.DOTALL,
)

#: One row with the schema of a database, its settings and privileges, as text.
POSTGRES_DEFINITION = """
WITH ours AS (
    SELECT c.* FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname !~ '^(pg_|information_schema)'
), lines (line) AS (
    SELECT concat_ws(' ', relname, relkind, relowner, relacl, reloptions) FROM ours
    UNION ALL
    SELECT concat_ws(' ', c.relname, attname, format_type(atttypid, atttypmod), attnotnull, attacl, attidentity)
    FROM pg_attribute JOIN ours c ON c.oid = attrelid WHERE attnum > 0
    UNION ALL
    SELECT concat_ws(' ', c.relname, pg_get_expr(adbin, adrelid)) FROM pg_attrdef JOIN ours c ON c.oid = adrelid
    UNION ALL SELECT pg_get_indexdef(c.oid) FROM ours c WHERE relkind = 'i'
    UNION ALL
    SELECT concat_ws(' ', c.relname, conname, pg_get_constraintdef(k.oid))
    FROM pg_constraint k JOIN ours c ON c.oid = conrelid
    UNION ALL SELECT pg_get_triggerdef(t.oid) FROM pg_trigger t JOIN ours c ON c.oid = tgrelid WHERE NOT tgisinternal
    UNION ALL SELECT concat_ws(' ', proname, prosrc) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    UNION ALL SELECT concat_ws(' ', nspname, nspowner, nspacl) FROM pg_namespace WHERE nspname !~ '^pg_'
    UNION ALL SELECT concat_ws(' ', datdba, datacl, datconnlimit) FROM pg_database WHERE datname = current_database()
    UNION ALL
    SELECT concat_ws(' ', setrole, setconfig)
    FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase WHERE datname = current_database()
)
SELECT string_agg(line, E'\\n' ORDER BY line) FROM lines
"""


@frozen
class Address:
    """Host (or socket) and credentials of a server. `repr` does not show the password.

    Connections are without TLS, which the drivers try by themselves: it costs 40 ms of CPU time for each of them.
    """

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    socket: str | None = None

    @classmethod
    def parse(cls, url: str, default_port: int) -> Address:
        """Read a `postgres://` or `mysql://` URL, or the Go driver's `user:password@tcp(host:port)/name`.

        Raises:
            ValueError: the text has another form.
        """
        if "://" in url:
            parts = urlsplit(url)
            return cls(
                host=parts.hostname or "127.0.0.1",
                port=parts.port or default_port,
                user=unquote(parts.username or ""),
                password=unquote(parts.password or ""),
            )
        match = _GO_FORM.fullmatch(url)
        if match is None:
            raise ValueError("neither a URL nor user:password@tcp(host:port)/name")
        return cls(
            host=match["host"] or "127.0.0.1",
            port=int(match["port"] or default_port),
            user=match["user"] or "",
            password=match["password"] or "",
            socket=match["socket"],
        )

    def mysql_arguments(self) -> dict[str, Any]:
        """Keyword arguments for `pymysql.connect`; the password is bytes, so it may have any character."""
        where: dict[str, Any] = {"unix_socket": self.socket} if self.socket else {"host": self.host, "port": self.port}
        login = {"user": self.user, "password": self.password.encode()}
        return {**where, **login, "connect_timeout": 5, "ssl_disabled": True}

    def postgres_arguments(self) -> dict[str, Any]:
        """Keyword arguments for `pg8000.native.Connection`."""
        return {
            "user": self.user,
            "password": self.password or None,
            "host": self.host,
            "port": self.port,
            "timeout": 30,
            "ssl_context": False,
        }


def with_database(url: str, name: str) -> str:
    """The URL with another database."""
    match = _PARTS.fullmatch(url)
    if match is None:
        raise ValueError("a database URL has a '/' before the name of the database")
    return f"{match['head']}{name}{match['options'] or ''}"


def with_endpoint(url: str, host: str, port: int) -> str:
    """The URL with another host and port, such as those of a TCP relay."""
    if "://" in url:
        parts = urlsplit(url)
        credentials = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        return parts._replace(netloc=f"{credentials}{host}:{port}").geturl()
    head, _, rest = url.rpartition("@")
    return f"{head}{'@' if head else ''}tcp({host}:{port})/{rest.partition('/')[2]}"


@frozen
class PostgresAdmin:
    """The administrator of a PostgreSQL server."""

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
        """The server's name and version. Raises the driver's error if it does not answer."""
        with self._session() as session:
            return f"PostgreSQL {session.run('SHOW server_version')[0][0]}"

    def execute(self, *statements: str, database: str | None = None) -> None:
        """Run statements, each in its own transaction."""
        with self._session(database) as session:
            for statement in statements:
                session.run(statement)

    def query(self, statement: str, database: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Run one statement; return the names of its columns, and its rows."""
        with self._session(database) as session:
            rows = session.run(statement) or []
            return [column["name"] for column in session.columns or ()], [tuple(row) for row in rows]

    def names(self) -> list[str]:
        """The names of all databases."""
        with self._session() as session:
            return [str(row[0]) for row in session.run("SELECT datname FROM pg_database")]

    def create(self, name: str) -> None:
        """Create an empty database."""
        with self._session() as session:
            session.run(f'CREATE DATABASE "{name}"')

    def clone(self, template: str, name: str) -> None:
        """Copy a database that has no connections."""
        with self._session() as session:
            session.run(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')

    def sessions(self, name: str) -> int:
        """The number of connections to a database."""
        with self._session() as session:
            return len(session.run("SELECT pid FROM pg_stat_activity WHERE datname = :name", name=name))

    def end_sessions(self, name: str) -> int:
        """Disconnect all clients of a database, as a restart does; return their number."""
        with self._session() as session:
            ended = session.run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name", name=name
            )
            return len(ended)

    def definition(self, name: str) -> str:
        """The schema of a database, its settings and privileges, and the revision; all but the rows."""
        with self._session(name) as session:
            return _postgres_definition(session)

    def clear(self, name: str, definition: str, tables: Sequence[str]) -> bool:
        """Disconnect all clients of a database, and delete the rows of these tables, in this order.

        False if the database does not have this definition any more.
        """
        with self._session(name) as session:
            others = "pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            while session.run(f"SELECT pg_terminate_backend(pid) FROM {others}"):
                time.sleep(0.005)
            if _postgres_definition(session) != definition:
                return False
            session.run(";".join(f'DELETE FROM "{table}"' for table in tables))
            return True

    def drop(self, name: str) -> None:
        """Delete a database, even if clients are connected."""
        with self._session() as session:
            session.run(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@frozen
class MySQLAdmin:
    """The administrator of a MySQL or MariaDB server."""

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
        """The server's name and version. Raises the driver's error if it does not answer."""
        with self._session() as session:
            version = str(_rows(session, "SELECT VERSION()")[0][0])
        return version if "MariaDB" in version else f"MySQL {version}"

    def execute(self, *statements: str, database: str | None = None) -> None:
        """Run statements, each in its own transaction."""
        with self._session() as session:
            for statement in (f"USE `{database}`", *statements) if database else statements:
                session.execute(statement)

    def query(self, statement: str, database: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Run one statement; return the names of its columns, and its rows."""
        with self._session() as session:
            session.execute(f"USE `{database}`")
            rows = _rows(session, statement)
            return [column[0] for column in session.description or ()], list(rows)

    def names(self) -> list[str]:
        """The names of all databases."""
        with self._session() as session:
            return [str(row[0]) for row in _rows(session, "SHOW DATABASES")]

    def create(self, name: str) -> None:
        """Create an empty database."""
        with self._session() as session:
            session.execute(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")

    def clone(self, template: str, name: str) -> None:
        """Copy a database, table by table."""
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
        """The number of connections to a database."""
        with self._session() as session:
            return len(_sessions(session, name))

    def end_sessions(self, name: str) -> int:
        """Disconnect all clients of a database, as a restart does; return their number."""
        with self._session() as session:
            connected = _sessions(session, name)
            for number in connected:
                try:
                    session.execute(f"KILL {int(number)}")
                except pymysql.err.MySQLError as error:
                    if error.args[0] != pymysql.constants.ER.NO_SUCH_THREAD:
                        raise
            return len(connected)

    def definition(self, name: str) -> str:
        """The schema of a database, and the revision; all but the rows."""
        with self._session() as session:
            return _mysql_definition(session, name)

    def clear(self, name: str, definition: str, tables: Sequence[str]) -> bool:
        """Disconnect all clients of a database, and delete the rows of these tables, in this order.

        False if the database does not have this definition any more.
        """
        while self.end_sessions(name):
            time.sleep(0.005)
        with self._session() as session:
            if _mysql_definition(session, name) != definition:
                return False
            for table in tables:
                session.execute(f"DELETE FROM `{name}`.`{table}`")
            return True

    def drop(self, name: str) -> None:
        """Delete a database, even if clients are connected."""
        # An open transaction would keep its metadata locks on the tables.
        self.end_sessions(name)
        with self._session() as session:
            session.execute(f"DROP DATABASE IF EXISTS `{name}`")


Admin = PostgresAdmin | MySQLAdmin


def admin_of(kind: Kind, url: str) -> Admin:
    """The administrator of the server at a URL."""
    return PostgresAdmin(url) if kind is Kind.POSTGRES else MySQLAdmin(url)


def _rows(session: Cursor, statement: str) -> tuple[tuple[Any, ...], ...]:
    session.execute(statement)
    return tuple(session.fetchall())


def _sessions(session: Cursor, name: str) -> list[int]:
    """The connections to a database."""
    # MySQL's information schema fails while somebody's statement has an emoji; MariaDB's other one has no such table.
    schema = "information_schema" if "MariaDB" in _rows(session, "SELECT VERSION()")[0][0] else "performance_schema"
    session.execute(f"SELECT id FROM {schema}.processlist WHERE db = %s", (name,))
    return [row[0] for row in session.fetchall()]


def _postgres_definition(session: pg8000.native.Connection) -> str:
    lines = session.run(POSTGRES_DEFINITION)
    return f"{lines[0][0]}\n{session.run('SELECT * FROM alembic_version')}"


def _mysql_definition(session: Cursor, name: str) -> str:
    session.execute(f"USE `{name}`")
    tables = [str(row[0]) for row in _rows(session, "SHOW TABLES")]
    lines = [str(_rows(session, f"SHOW CREATE TABLE `{table}`")[0][1]) for table in tables]
    lines.append(str(_rows(session, f"SHOW CREATE DATABASE `{name}`")[0][1]).replace(name, ""))
    lines += [str(row[:4]) for row in _rows(session, "SHOW TRIGGERS")]
    lines.append(str(_rows(session, "SELECT * FROM alembic_version")))
    return "\n".join(lines)
