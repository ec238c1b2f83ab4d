"""PostgreSQL, directly or behind PgBouncer in transaction mode.

Behind PgBouncer, whatever is set for a session may reach another client's. So each transaction brings its own
deadlines (`SET LOCAL`), in the message that begins it, and everything happens inside explicit transactions.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from pg8000 import legacy
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.base import PGCompiler
from sqlalchemy.dialects.postgresql.pg8000 import PGDialect_pg8000
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool, Pool

from db.dialects import failure as failures
from db.dialects.failure import Failure, FailureKind, network_failure
from db.dialects.migration_lock import AGAIN, Holder, acquire, program
from db.dialects.postgresql.connection import PostgresConnection
from db.dialects.server import (
    FROZEN,
    LOCK_TIMEOUT,
    LOCK_WAIT,
    MIGRATION_TIMEOUT,
    SILENCE,
    SOCKET_GRACE,
    ServerBackend,
    ServerFacts,
)
from db.dialects.wire import tls_version
from db.dsn.target import Target, Tls
from db.options import Options

#: Any number that no other program's advisory lock in the same database is likely to have.
_MIGRATION_LOCK = 0x6C6C6D2D70726F78  # "llm-prox"
#: Its holder. Of other users' sessions only the number and the name are shown (PostgreSQL documentation, 28.2.3).
_HOLDER = text(f"""
    SELECT pid, application_name, host(client_addr), to_char(xact_start AT TIME ZONE 'UTC', 'HH24:MI:SS'),
        state = 'active', round(extract(epoch FROM clock_timestamp() - state_change))::integer
    FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND objsubid = 1
        AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND classid::bigint = {_MIGRATION_LOCK >> 32} AND objid::bigint = {_MIGRATION_LOCK & 0xFFFFFFFF}
""")  # noqa: S608 - constants

#: Version, `max_connections`, what of it this user may have, and what all clients have. Some are kept for superusers,
#: and since PostgreSQL 16 for a role; -1 is no limit.
_FACTS = """
SELECT current_setting('server_version'), most, least(
    most - CASE WHEN rolsuper THEN 0 ELSE current_setting('superuser_reserved_connections')::int
           + coalesce(current_setting('reserved_connections', true)::int, 0) END,
    CASE WHEN rolsuper OR rolconnlimit < 0 THEN most ELSE rolconnlimit END,
    CASE WHEN rolsuper OR datconnlimit < 0 THEN most ELSE datconnlimit END
), (SELECT count(*) - 1 FROM pg_stat_activity WHERE backend_type = 'client backend')
FROM pg_roles, pg_database, (SELECT current_setting('max_connections')::int AS most) AS settings
WHERE rolname = current_user AND datname = current_database()
"""

#: Where TLS is optional: whether it is tried first, and whether then.
_WAYS = {Tls.PREFERRED: (True, False), Tls.ALLOWED: (False, True)}

_CONTENTION = frozenset(("40001", "40P01"))
_READ_ONLY = "25006"
_BY_CODE = {
    "23503": failures.REFERENCE,
    "23505": failures.DUPLICATE,
    "25P03": failures.DISCONNECTED,
    "28000": Failure(
        FailureKind.UNAVAILABLE,
        "this user may not log in from here like this: its pg_hba.conf may ask for TLS (sslmode=require) or for a "
        "client certificate (DATABASE_TLS_CERT)",
    ),
    "25P04": failures.DISCONNECTED,
    "28P01": failures.LOGIN,
    "3D000": failures.NO_DATABASE,
    "3F000": failures.SCHEMA,
    "42501": failures.PRIVILEGE,
    "42703": failures.SCHEMA,
    "42P01": failures.SCHEMA,
    "53100": failures.DISK_FULL,
    "53300": failures.FULL_HOUSE,
    "55P03": failures.LOCKED,
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
        kwargs.setdefault("paramstyle", "numeric_dollar")
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]  # this dialect has no types
        self._begin = begin
        self._writes = "READ ONLY" not in begin

    def do_begin(self, dbapi_connection: Any) -> None:
        dbapi_connection.dbapi_connection.begin(self._begin)

    def is_disconnect(self, e: Any, connection: Any, cursor: Any) -> bool:
        """Whether the connection, and all others of the pool, are to be given up."""
        return isinstance(e, legacy.InterfaceError) or _failure(e).ends_connection(writes=self._writes)


registry.register("postgresql.llm_proxy", __name__, "PostgresDialect")


class PostgresBackend(ServerBackend):
    """The engines of one PostgreSQL database, and what its errors mean."""

    def __init__(self, target: Target, options: Options) -> None:
        super().__init__(target, options)
        milliseconds = max(1, int(options.statement_timeout * 1000))
        limits = f"; SET LOCAL statement_timeout = {milliseconds}; SET LOCAL idle_in_transaction_session_timeout = "
        # A process that is stopped in the middle of a transaction must not keep its locks.
        writing = f"BEGIN ISOLATION LEVEL READ COMMITTED{limits}{min(milliseconds, int(FROZEN * 1000))}"
        self.write = _engine(writing, self.pools[0])
        self.write_unless_locked = _engine(
            f"{writing}; SET LOCAL lock_timeout = {int(LOCK_WAIT * 1000)}", self.pools[0]
        )
        self.read = _engine(f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY{limits}{milliseconds}", self.pools[0])

    def failure(self, error: BaseException) -> Failure:
        return _failure(error)

    @contextmanager
    def migrating(self, deadline: float, tell: Callable[[str], None]) -> Iterator[Connection]:
        """Hold the lock of migrations in one transaction, which commits at the end of the block.

        A session's lock would not do: behind PgBouncer, another client could get hold of the session.
        """
        engine = _engine("BEGIN ISOLATION LEVEL READ COMMITTED", NullPool(self._connect_to_wait))
        with engine.connect() as connection:
            acquire(
                self._target, deadline, tell, take=partial(_take_lock, connection), holder=partial(_holder, connection)
            )
            raw: Any = connection.connection.driver_connection
            raw.set_timeout(MIGRATION_TIMEOUT)
            transaction = connection.get_transaction()
            assert transaction is not None  # noqa: S101 - the lock lives in it
            with transaction:
                connection.exec_driver_sql(
                    f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT:g}s'; "
                    f"SET LOCAL idle_in_transaction_session_timeout = '{SILENCE:g}s'"
                )
                yield connection

    def facts(self, connection: Connection) -> ServerFacts:
        version, limit, allowed, connected = connection.exec_driver_sql(_FACTS).one()
        return ServerFacts(f"PostgreSQL {version}", tls_version(connection, "_usock"), limit, allowed, connected)

    def end_frozen(self, connection: Connection) -> str | None:
        """Do nothing: the server ends transactions of frozen processes by itself."""
        return None

    def sizes(self, connection: Connection) -> Mapping[str, int]:
        return {"bytes": int(connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one())}

    def _connect(self) -> PostgresConnection:
        return self._login(self._statement_timeout + SOCKET_GRACE, self._target.application_name)

    def _connect_to_wait(self) -> PostgresConnection:
        return self._login(AGAIN + SOCKET_GRACE, program(self._target.application_name))

    def _login(self, timeout: float, application_name: str) -> PostgresConnection:
        first, then = _WAYS.get(self._target.tls, (True, None))
        try:
            return self._login_by(self._tls if first else None, timeout, application_name)
        except legacy.Error as error:
            if then is None or not _other_way_may_help(error):
                raise
        return self._login_by(self._tls if then else None, timeout, application_name)

    def _login_by(self, tls: ssl.SSLContext | None, timeout: float, application_name: str) -> PostgresConnection:
        target = self._target
        try:
            connection = PostgresConnection(
                user=target.user,
                password=target.password,  # never None: pg8000 would stumble over it in the middle of a login
                host=target.host or None,
                port=target.port,
                unix_sock=target.unix_socket,
                database=target.database,
                ssl_context=tls or False,  # what pg8000 makes of None would be a new context for each connection
                timeout=self._connect_timeout,
                application_name=application_name,
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


def _other_way_may_help(error: legacy.Error) -> bool:
    """Whether libpq's `prefer` and `allow` would now try without TLS, or with it: no client connects this way."""
    details = error.args[0] if error.args else None
    if isinstance(details, dict):
        return str(details.get("C", "")).startswith("28")
    return details == "Server refuses SSL" or isinstance(error.__cause__, ssl.SSLError)


def _take_lock(connection: Connection, seconds: float) -> bool:
    """Wait for the lock of migrations in a transaction of its own, which lasts if it is had."""
    connection.begin()
    # Zero would be no limit at all.
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {max(1, int(seconds * 1000))}")
    try:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
    except DBAPIError as error:
        connection.rollback()
        if error.orig is None or _failure(error.orig).kind is not FailureKind.LOCKED:
            raise
        return False
    return True


def _holder(connection: Connection) -> Holder | None:
    with connection.begin():
        found = connection.execute(_HOLDER).first()
    if found is None:
        return None
    pid, name, address, since, active, seconds = found
    activity = "" if since is None else f"since {since} UTC"
    if activity and not active:
        activity += f", silent for {seconds} s"
    return Holder(pid, name or "", address or "", activity, f"SELECT pg_terminate_backend({pid})")


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
            words = "it did not prove by channel binding that there is no man in the middle"
            return Failure(FailureKind.UNAVAILABLE, words)
        case str() if "uthentication method" in details:
            return Failure(
                FailureKind.UNAVAILABLE, "it asks for a way of logging in that is not supported; use scram-sha-256"
            )
        case _:
            return network_failure(error.__cause__) if isinstance(error, legacy.InterfaceError) else failures.REFUSED
