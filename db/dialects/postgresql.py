"""PostgreSQL, directly or behind PgBouncer in transaction mode.

Behind PgBouncer, whatever is set for a session may reach another client's. So each transaction brings its own
deadlines (`SET LOCAL`), in the message that begins it, and everything happens inside explicit transactions.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pg8000 import legacy
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.base import PGCompiler
from sqlalchemy.dialects.postgresql.pg8000 import PGDialect_pg8000
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool, Pool

from db.dialects import failure as failures
from db.dialects.facts import Facts, tls_version
from db.dialects.failure import Failure, Kind, network_failure
from db.dialects.pools import MIGRATION_TIMEOUT, SOCKET_GRACE, pool
from db.dialects.postgresql_connection import PostgresConnection
from db.dialects.tls import client_context
from db.errors import Contention
from db.options import Options
from db.target import Target, Tls

#: Any number that no other program's advisory lock in the same database is likely to have.
_MIGRATION_LOCK = 0x6C6C6D2D70726F78  # "llm-prox"

_CONTENTION = frozenset(("40001", "40P01", "55P03"))
_READ_ONLY = "25006"
_BY_CODE = {
    "23503": failures.REFERENCE,
    "23505": failures.DUPLICATE,
    "25P03": failures.DISCONNECTED,
    "25P04": failures.DISCONNECTED,
    "28000": failures.LOGIN,
    "28P01": failures.LOGIN,
    "3D000": failures.NO_DATABASE,
    "3F000": failures.SCHEMA,
    "42501": failures.PRIVILEGE,
    "42703": failures.SCHEMA,
    "42P01": failures.SCHEMA,
    "53100": failures.DISK_FULL,
    "53300": failures.FULL_HOUSE,
    "57014": failures.TOO_SLOW,
    "57P03": failures.NOT_SERVING,
    "72000": failures.TOO_SLOW,
    _READ_ONLY: failures.READ_ONLY,
}
#: Classes of SQLSTATE (appendix A of the documentation) in which no statement is to blame: broken connections, lost
#: transactions, lack of resources, a database that takes no connections, operators at work, failing disks, a wrong
#: configuration, internal errors. What else a file can suffer, such as a used-up quota, comes as an internal error.
_BY_CLASS = {
    "08": failures.DISCONNECTED,
    "40": failures.CONTENTION,
    "53": failures.NOT_SERVING,
    "55": failures.NOT_SERVING,
    "57": failures.DISCONNECTED,
    "58": failures.STORAGE,
    "F0": failures.NOT_SERVING,
    "XX": failures.STORAGE,
}


class PostgresDialect(PGDialect_pg8000):
    """SQLAlchemy's dialect over `PostgresConnection`: numbered parameters, and transactions begun by us."""

    supports_statement_cache = True
    # pg8000's own doubles percent signs, which only its `%s` style needs.
    statement_compiler = PGCompiler  # type: ignore[assignment]  # declared by its value
    supports_sane_multi_rowcount = True

    def __init__(self, begin: str = "BEGIN", **kwargs: Any) -> None:
        """Take the statements that begin a transaction."""
        kwargs.setdefault("paramstyle", "numeric_dollar")
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]  # this dialect has no types
        self._begin = begin
        self._writes = "READ ONLY" not in begin

    def do_begin(self, dbapi_connection: Any) -> None:
        """Begin a transaction."""
        dbapi_connection.dbapi_connection.begin(self._begin)

    def is_disconnect(self, e: Any, connection: Any, cursor: Any) -> bool:
        """Whether the connection, and all others of the pool, are to be given up.

        So it is also for a writer on a server that only allows reading: after a failover the name of the server may
        lead elsewhere by now.
        """
        kind = _failure(e).kind
        return (
            kind is Kind.DISCONNECTED
            or isinstance(e, legacy.InterfaceError)
            or (kind is Kind.READ_ONLY and self._writes)
        )


registry.register("postgresql.llm_proxy", __name__, "PostgresDialect")


class PostgresBackend:
    """The engines of one PostgreSQL database, and what its errors mean."""

    def __init__(self, target: Target, options: Options) -> None:
        """Nothing is connected yet. Raises BadDsn for TLS files that cannot be used."""
        self.writers = options.pool_size
        self._target = target
        self._connect_timeout = target.connect_timeout or options.connect_timeout
        self._statement_timeout = options.statement_timeout
        # pg8000: False is no TLS, None is TLS if offered; a context is insisted upon.
        context = client_context(target, options)
        self._tls: ssl.SSLContext | bool | None = None if target.tls is Tls.PREFERRED else context or False
        milliseconds = max(1, int(options.statement_timeout * 1000))
        # The second limit is for a process that is stopped in the middle of a transaction: its locks must not last.
        limits = (
            f"; SET LOCAL statement_timeout = {milliseconds}"
            f"; SET LOCAL idle_in_transaction_session_timeout = {milliseconds}"
        )
        self.pools = (pool(self._connect, options),)
        self.write = _engine("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE" + limits, self.pools[0])
        self.read = _engine("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" + limits, self.pools[0])

    def open(self) -> None:
        """Do nothing: connections are made when they are needed."""

    def close(self) -> None:
        """Close every connection."""
        self.pools[0].dispose()

    def failure(self, error: BaseException) -> Failure:
        """Read an error of pg8000."""
        return _failure(error)

    @contextmanager
    def migrating(self, deadline: float) -> Iterator[Connection]:
        """Hold the lock of migrations in one transaction, which commits at the end of the block.

        A session's lock would not do: behind PgBouncer, another client could get hold of the session.
        """
        engine = _engine("BEGIN ISOLATION LEVEL READ COMMITTED", NullPool(self._connect_patiently))
        with engine.begin() as connection:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(deadline * 1000)}")
            try:
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
            except DBAPIError as error:
                if error.orig is None or _failure(error.orig).kind is not Kind.CONTENTION:
                    raise
                raise Contention(f"{self._target}: {failures.MIGRATING}") from error
            yield connection

    def facts(self, connection: Connection) -> Facts:
        """What the server says about itself."""
        return Facts(
            version=f"PostgreSQL {connection.exec_driver_sql('SHOW server_version').scalar_one()}",
            tls=tls_version(connection, "_usock"),
            max_connections=int(connection.exec_driver_sql("SHOW max_connections").scalar_one()),
        )

    def _connect(self) -> PostgresConnection:
        return self._login(self._statement_timeout + SOCKET_GRACE)

    def _connect_patiently(self) -> PostgresConnection:
        return self._login(MIGRATION_TIMEOUT)

    def _login(self, timeout: float) -> PostgresConnection:
        target = self._target
        try:
            connection = PostgresConnection(
                user=target.user,
                password=target.password,  # never None: pg8000 would stumble over it in the middle of a login
                host=target.host or None,
                port=target.port,
                unix_sock=target.unix_socket,
                database=target.database,
                ssl_context=self._tls,
                timeout=self._connect_timeout,
                application_name=target.application_name,
                # PgBouncer knows these two, and gives each client its own.
                startup_params={"TimeZone": "UTC", "DateStyle": "ISO"},
            )
        except legacy.Error:
            raise
        except Exception as error:  # pg8000 lets through whatever goes wrong while it reads the server's answers
            raise legacy.InterfaceError("communication error") from error
        if target.channel_binding and not connection.bound_to_channel:
            connection.close()
            raise legacy.InterfaceError("channel binding")
        connection.set_timeout(timeout)
        return connection


def _engine(begin: str, pool: Pool) -> Engine:
    return create_engine("postgresql+llm_proxy://", begin=begin, pool=pool, hide_parameters=True)


def _failure(error: BaseException) -> Failure:
    details = error.args[0] if error.args else None
    if isinstance(details, dict):
        code = str(details.get("C", ""))
        if code in _CONTENTION:
            return failures.CONTENTION
        return _BY_CODE.get(code) or _BY_CLASS.get(code[:2]) or failures.REFUSED
    match details:
        case "Server refuses SSL":
            return failures.NO_TLS
        case "channel binding":
            return Failure(Kind.UNAVAILABLE, "it did not prove by channel binding that nobody sits between")
        case str() if "uthentication method" in details:
            return Failure(Kind.UNAVAILABLE, "it asks for a way of logging in that is not supported; use scram-sha-256")
        case _:
            return network_failure(error.__cause__) if isinstance(error, legacy.InterfaceError) else failures.REFUSED
