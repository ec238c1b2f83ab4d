"""MySQL 8.0 and later, and MariaDB 10.5 and later: one driver, one dialect, a few words apart."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pymysql
from pymysql.constants import CLIENT, CR
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.mysql.mysqldb import MySQLCompiler_mysqldb
from sqlalchemy.dialects.mysql.pymysql import MySQLDialect_pymysql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool, Pool
from sqlalchemy.sql.selectable import GenerativeSelect

from db.dialects import failure as failures
from db.dialects.failure import Failure, FailureKind, network_failure
from db.dialects.migration_lock import AGAIN, Holder, acquire, program
from db.dialects.mysql.connection import MySqlConnection
from db.dialects.mysql.errors import TROUBLES
from db.dialects.server import (
    FROZEN,
    LOCK_TIMEOUT,
    LOCK_WAIT,
    MIGRATION_TIMEOUT,
    SOCKET_GRACE,
    ServerBackend,
    ServerFacts,
)
from db.dialects.statements import skips_locked
from db.dialects.wire import tls_version
from db.dsn.target import Target, Tls
from db.options import Options

_BEGIN_READING = (
    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
    "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY",
)

#: Deadlock, and a row or a table that has changed since the snapshot that is being read.
_CONTENTION = frozenset((1213, 1020, 1412))
#: Sessions of ours in the same database that hold rows and have said nothing for a while. Their own user needs no
#: privilege to see and to end them, but one to see what they hold (MySQL manual, "The INFORMATION_SCHEMA INNODB_TRX").
_FROZEN = """
SELECT STRAIGHT_JOIN ours.id FROM information_schema.innodb_trx
JOIN information_schema.processlist AS ours ON ours.id = trx_mysql_thread_id
WHERE ours.user = SUBSTRING_INDEX(USER(), '@', 1) AND ours.db = DATABASE() AND ours.command = 'Sleep'
    AND ours.time >= %s AND trx_rows_locked + trx_rows_modified > 0
"""
#: MySQL's information schema holds the statements of all sessions as utf8mb3: it fails while one of them has an emoji.
_NOT_UTF8MB3 = 3854
#: The driver's own codes for errors of the operating system.
_NETWORK = frozenset((CR.CR_CONNECTION_ERROR, CR.CR_CONN_HOST_ERROR, CR.CR_SERVER_GONE_ERROR, CR.CR_SERVER_LOST))
_BY_CODE = {
    **TROUBLES,
    1040: failures.FULL_HOUSE,
    1044: failures.NO_DATABASE,
    1049: failures.NO_DATABASE,
    1054: failures.SCHEMA,
    1062: failures.DUPLICATE,
    1142: failures.PRIVILEGE,
    1143: failures.PRIVILEGE,
    1146: failures.SCHEMA,
    1203: failures.FULL_HOUSE,
    1205: failures.LOCKED,
    1216: failures.REFERENCE,
    1217: failures.REFERENCE,
    1226: failures.FULL_HOUSE,
    1227: failures.PRIVILEGE,
    1370: failures.PRIVILEGE,
    1451: failures.REFERENCE,
    1452: failures.REFERENCE,
    1586: failures.DUPLICATE,
    3989: failures.READ_ONLY,  # MySQL: this database alone
    1969: failures.TOO_SLOW,  # MariaDB
    2026: failures.NO_TLS,
    3024: failures.TOO_SLOW,
    3572: failures.LOCKED,  # it was not to be waited for
    3159: Failure(FailureKind.UNAVAILABLE, "it insists on TLS: add tls=true to DATABASE_URL"),
}


class MySqlCompiler(MySQLCompiler_mysqldb):
    """SQLAlchemy's compiler, but for MariaDB before 10.6, which has no SKIP LOCKED and waits."""

    def for_update_clause(self, select: GenerativeSelect, **kw: Any) -> str:
        clause = super().for_update_clause(select, **kw)
        return clause if skips_locked(self.dialect) else clause.replace(" SKIP LOCKED", "")


class MySqlDialect(MySQLDialect_pymysql):
    """SQLAlchemy's dialect, with transactions begun by us."""

    supports_statement_cache = True
    statement_compiler = MySqlCompiler

    def __init__(
        self,
        begin: tuple[str, ...] = (),
        lock_wait: float | None = None,
        joins: bool = False,  # noqa: FBT001, FBT002 - SQLAlchemy finds no keyword-only ones
        **kwargs: Any,
    ) -> None:
        """Take the statements that begin a transaction; without any, it begins with its first statement.

        `lock_wait` is how many seconds it waits for each lock. `joins`: statements whose answer nobody reads go with
        the next one.
        """
        kwargs.setdefault("paramstyle", "format")
        super().__init__(**kwargs)
        self._begin = begin
        self._lock_wait = lock_wait
        self._joins = joins

    def do_begin(self, dbapi_connection: Any) -> None:
        connection: MySqlConnection = dbapi_connection.dbapi_connection
        connection.join_statements(joins=self._joins)
        if self._lock_wait is not None:
            connection.wait_for_locks(self._lock_wait)
        for statement in self._begin:
            connection.query(statement)

    def is_disconnect(self, e: Any, connection: Any, cursor: Any) -> bool:
        """Whether the connection, and all others of the pool, are to be given up."""
        return _failure(e).ends_connection(writes=not self._begin) or super().is_disconnect(e, connection, cursor)


registry.register("mysql.llm_proxy", __name__, "MySqlDialect")


class MySqlBackend(ServerBackend):
    """The engines of one MySQL or MariaDB database, and what its errors mean."""

    def __init__(self, target: Target, options: Options) -> None:
        super().__init__(target, options)
        self.write = _engine(self.pools[0], lock_wait=self._statement_timeout)
        self.write_unless_locked = _engine(self.pools[0], lock_wait=LOCK_WAIT, joins=True)
        self.read = _engine(self.pools[0], _BEGIN_READING)

    def failure(self, error: BaseException) -> Failure:
        return _failure(error)

    @contextmanager
    def migrating(self, deadline: float, tell: Callable[[str], None]) -> Iterator[Connection]:
        """Hold the lock of migrations on one connection; every statement that defines something commits at once.

        The lock belongs to the session and ends with it, so the connection is closed afterwards, not pooled.
        """
        name = "llm-proxy:" + hashlib.sha256(self._target.database.encode()).hexdigest()[:32]
        engine = _engine(NullPool(self._connect_to_migrate))
        with engine.connect() as connection:
            acquire(
                self._target,
                deadline,
                tell,
                take=partial(_take_lock, connection, name),
                holder=partial(_holder, connection, name),
            )
            raw: Any = connection.connection.driver_connection
            raw.set_timeouts(MIGRATION_TIMEOUT, MIGRATION_TIMEOUT)
            yield connection
            connection.commit()

    def facts(self, connection: Connection) -> ServerFacts:
        version, limit, own = connection.exec_driver_sql(
            "SELECT VERSION(), @@GLOBAL.max_connections, @@SESSION.max_user_connections"
        ).one()
        connected = connection.exec_driver_sql("SHOW GLOBAL STATUS LIKE 'Threads_connected'").one()[1]
        product = "MariaDB" if "MariaDB" in version else "MySQL"
        return ServerFacts(
            version=f"{product} {version.partition('-')[0]}",
            tls=tls_version(connection, "_sock"),
            max_connections=int(limit),
            allowed_connections=min(int(limit), int(own) or int(limit)),
            open_connections=int(connected) - 1,
        )

    def end_frozen(self, connection: Connection) -> str | None:
        """End transactions of our own user whose process is frozen. MariaDB does so by itself.

        Returns:
            What keeps it from doing so; None if nothing does.
        """
        if getattr(connection.dialect, "is_mariadb", False):
            return None
        try:
            frozen = connection.exec_driver_sql(_FROZEN, (int(FROZEN),)).scalars().all()
        except DBAPIError as error:
            if error.orig is not None and error.orig.args[:1] == (_NOT_UTF8MB3,):
                return None  # that statement ends soon, and this is asked again
            if error.orig is None or _failure(error.orig) is not failures.PRIVILEGE:
                raise
            return f"{self._target}: this user lacks the privilege PROCESS (GRANT PROCESS ON *.* TO …)"
        for session in frozen:
            with suppress(DBAPIError):  # it has ended meanwhile
                connection.exec_driver_sql(f"KILL {int(session)}")
        return None

    def sizes(self, connection: Connection) -> Mapping[str, int]:
        """How large the database is, by the server's own statistics, which may be some hours old."""
        size = connection.exec_driver_sql(
            "SELECT SUM(data_length + index_length) FROM information_schema.tables WHERE table_schema = DATABASE()"
        ).scalar_one()
        return {"bytes": int(size or 0)}

    def _connect(self) -> MySqlConnection:
        connection = self._login()
        connection.prepare(self._statement_timeout, self._statement_timeout)
        timeout = self._statement_timeout + SOCKET_GRACE
        connection.set_timeouts(self._target.read_timeout or timeout, self._target.write_timeout or timeout)
        return connection

    def _connect_to_migrate(self) -> Any:
        connection = self._login(program("llm-proxy"))
        connection.prepare(MIGRATION_TIMEOUT, LOCK_TIMEOUT)
        connection.set_timeouts(AGAIN + SOCKET_GRACE, AGAIN + SOCKET_GRACE)
        return connection

    def _login(self, program_name: str = "llm-proxy") -> MySqlConnection:
        target = self._target
        try:
            return MySqlConnection(
                user=target.user,
                password=target.password.encode(),  # text would be taken for Latin-1
                host=target.host or None,
                port=target.port,
                unix_socket=target.unix_socket,
                database=target.database,
                charset="utf8mb4",
                collation="utf8mb4_bin",
                client_flag=CLIENT.FOUND_ROWS,  # rowcount says how many rows matched, as on every other database
                connect_timeout=self._connect_timeout,
                read_timeout=self._connect_timeout,
                write_timeout=self._connect_timeout,
                ssl=self._tls,
                ssl_disabled=target.tls is Tls.OFF,
                tls_optional=target.tls is Tls.PREFERRED,
                program_name=program_name,
            )
        except pymysql.err.Error:
            raise
        except Exception as error:  # PyMySQL lets through whatever goes wrong while it reads the server's greeting
            raise pymysql.err.OperationalError(CR.CR_CONN_HOST_ERROR, "greeting") from error


def _engine(pool: Pool, begin: tuple[str, ...] = (), lock_wait: float | None = None, *, joins: bool = False) -> Engine:
    return create_engine(
        "mysql+llm_proxy://", begin=begin, lock_wait=lock_wait, joins=joins, pool=pool, hide_parameters=True
    )


def _take_lock(connection: Connection, name: str, seconds: float) -> bool:
    got = connection.exec_driver_sql("SELECT GET_LOCK(%s, %s)", (name, math.ceil(seconds))).scalar_one()
    connection.commit()
    return bool(got == 1)


def _holder(connection: Connection, name: str) -> Holder | None:
    session = connection.exec_driver_sql("SELECT IS_USED_LOCK(%s)", (name,)).scalar_one()
    if session is None:
        return None
    # Without the PROCESS privilege, these are the sessions of the same user; nobody else migrates, as a rule.
    # MySQL's other table of this name fails at statements of others (see _NOT_UTF8MB3).
    schema = "information_schema" if getattr(connection.dialect, "is_mariadb", False) else "performance_schema"
    statement = f"SELECT host, command, time FROM {schema}.processlist WHERE id = %s"  # noqa: S608 (one of these two)
    found_session = _about(connection, statement, session)
    address = activity = ""
    if found_session is not None:
        address, command, seconds = found_session
        activity = f"silent for {seconds} s" if command == "Sleep" else f"at one statement for {seconds} s"
    program = _about(
        connection,
        "SELECT attr_value FROM performance_schema.session_account_connect_attrs "
        "WHERE processlist_id = %s AND attr_name = 'program_name'",
        session,
    )
    found = Holder(session, str(program[0] or "") if program else "", address, activity, f"KILL {session}")
    connection.commit()
    return found


def _about(connection: Connection, statement: str, session: int) -> Sequence[Any] | None:
    """What the server knows of a session: nothing where the performance schema is off, as MariaDB's is by default."""
    try:
        return connection.exec_driver_sql(statement, (session,)).one_or_none()
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        return None


def _failure(error: BaseException) -> Failure:
    code = error.args[0] if error.args else None
    if code in _CONTENTION:
        return failures.CONTENTION
    if code in _NETWORK:
        cause = getattr(error, "original_exception", None) or error.__cause__ or error.__context__
        # Once connected, only the network can be the cause; anything else was merely being handled at the time.
        return network_failure(cause if isinstance(cause, OSError) or code == CR.CR_CONN_HOST_ERROR else None)
    if not isinstance(code, int) or code == 0:  # a closed connection, or packets out of sequence
        return failures.DISCONNECTED if isinstance(error, pymysql.err.Error) else failures.REFUSED
    return _BY_CODE.get(code, failures.REFUSED)
