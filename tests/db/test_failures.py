"""What the drivers' errors are taken to mean."""

from __future__ import annotations

import errno
import socket
import sqlite3
import ssl
from pathlib import Path
from typing import Any

import pymysql
import pytest
from attrs import evolve
from pg8000 import legacy

from db import Connection
from db.database import Database, opened
from db.dialects import Backend, backend_for
from db.dialects.failure import FailureKind, network_failure
from db.dialects.postgresql.connection import PostgresConnection
from db.dsn import Target
from db.errors import Unavailable
from db.options import Options
from tests.databases.kinds import SERVERS, on

POSTGRES = backend_for(Target("postgres", host="h", port=1), Options(), exclusive=True)
MYSQL = backend_for(Target("mysql", host="h", port=1), Options(), exclusive=True)
SQLITE = backend_for(Target("sqlite"), Options(), exclusive=True)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("40001", FailureKind.CONTENTION),
        ("40P01", FailureKind.CONTENTION),
        ("55P03", FailureKind.LOCKED),
        ("23505", FailureKind.DUPLICATE),
        ("23503", FailureKind.REFERENCE),
        ("42P01", FailureKind.SCHEMA),
        ("42703", FailureKind.SCHEMA),
        ("40000", FailureKind.CONTENTION),
        ("3F000", FailureKind.SCHEMA),
        ("22001", FailureKind.REFUSED),
        ("23502", FailureKind.REFUSED),
        ("54000", FailureKind.REFUSED),
        ("25006", FailureKind.READ_ONLY),
        ("28P01", FailureKind.UNAVAILABLE),
        ("28000", FailureKind.UNAVAILABLE),
        ("3D000", FailureKind.UNAVAILABLE),
        ("53300", FailureKind.UNAVAILABLE),
        ("42501", FailureKind.UNAVAILABLE),
        ("53000", FailureKind.UNAVAILABLE),
        ("53100", FailureKind.UNAVAILABLE),
        ("53200", FailureKind.UNAVAILABLE),
        ("53400", FailureKind.UNAVAILABLE),
        ("55000", FailureKind.UNAVAILABLE),
        ("57014", FailureKind.UNAVAILABLE),
        ("57P03", FailureKind.UNAVAILABLE),
        ("58000", FailureKind.UNAVAILABLE),
        ("58030", FailureKind.UNAVAILABLE),
        ("58P01", FailureKind.UNAVAILABLE),
        ("72000", FailureKind.UNAVAILABLE),
        ("F0001", FailureKind.UNAVAILABLE),
        ("XX000", FailureKind.UNAVAILABLE),
        ("XX001", FailureKind.UNAVAILABLE),
        ("XX002", FailureKind.UNAVAILABLE),
        ("57000", FailureKind.DISCONNECTED),
        ("57P01", FailureKind.DISCONNECTED),
        ("57P02", FailureKind.DISCONNECTED),
        ("57P04", FailureKind.DISCONNECTED),
        ("57P05", FailureKind.DISCONNECTED),
        ("08006", FailureKind.DISCONNECTED),
        ("08P01", FailureKind.DISCONNECTED),
        ("25P03", FailureKind.DISCONNECTED),
        ("25P04", FailureKind.DISCONNECTED),
    ],
)
def test_what_postgresql_says(code: str, kind: FailureKind) -> None:
    found = POSTGRES.failure(legacy.ProgrammingError({"C": code, "M": "s3cret"}))
    assert found.kind is kind
    assert "s3cret" not in found.words


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (1205, FailureKind.LOCKED),
        (1213, FailureKind.CONTENTION),
        (3572, FailureKind.LOCKED),
        (1020, FailureKind.CONTENTION),
        (1412, FailureKind.CONTENTION),
        (1062, FailureKind.DUPLICATE),
        (1452, FailureKind.REFERENCE),
        (1451, FailureKind.REFERENCE),
        (1146, FailureKind.SCHEMA),
        (1054, FailureKind.SCHEMA),
        (3101, FailureKind.CONTENTION),
        (1048, FailureKind.REFUSED),
        (1153, FailureKind.REFUSED),
        (1197, FailureKind.REFUSED),
        (1264, FailureKind.REFUSED),
        (1366, FailureKind.REFUSED),
        (1406, FailureKind.REFUSED),
        (1036, FailureKind.READ_ONLY),
        (1290, FailureKind.READ_ONLY),
        (3989, FailureKind.READ_ONLY),
        (1792, FailureKind.READ_ONLY),
        (1836, FailureKind.READ_ONLY),
        (1874, FailureKind.READ_ONLY),
        (1881, FailureKind.READ_ONLY),
        (1016, FailureKind.UNAVAILABLE),
        (1021, FailureKind.UNAVAILABLE),
        (1023, FailureKind.UNAVAILABLE),
        (1024, FailureKind.UNAVAILABLE),
        (1026, FailureKind.UNAVAILABLE),
        (1030, FailureKind.UNAVAILABLE),
        (1034, FailureKind.UNAVAILABLE),
        (1037, FailureKind.UNAVAILABLE),
        (1038, FailureKind.UNAVAILABLE),
        (1041, FailureKind.UNAVAILABLE),
        (1044, FailureKind.UNAVAILABLE),
        (1045, FailureKind.UNAVAILABLE),
        (1047, FailureKind.UNAVAILABLE),
        (1049, FailureKind.UNAVAILABLE),
        (1040, FailureKind.UNAVAILABLE),
        (1105, FailureKind.UNAVAILABLE),
        (1114, FailureKind.UNAVAILABLE),
        (1119, FailureKind.UNAVAILABLE),
        (1129, FailureKind.UNAVAILABLE),
        (1130, FailureKind.UNAVAILABLE),
        (1135, FailureKind.UNAVAILABLE),
        (1142, FailureKind.UNAVAILABLE),
        (1143, FailureKind.UNAVAILABLE),
        (1180, FailureKind.UNAVAILABLE),
        (1181, FailureKind.UNAVAILABLE),
        (1194, FailureKind.UNAVAILABLE),
        (1195, FailureKind.UNAVAILABLE),
        (1206, FailureKind.UNAVAILABLE),
        (1223, FailureKind.UNAVAILABLE),
        (1227, FailureKind.UNAVAILABLE),
        (1296, FailureKind.UNAVAILABLE),
        (1297, FailureKind.UNAVAILABLE),
        (1370, FailureKind.UNAVAILABLE),
        (1598, FailureKind.UNAVAILABLE),
        (1637, FailureKind.UNAVAILABLE),
        (1665, FailureKind.UNAVAILABLE),
        (1698, FailureKind.UNAVAILABLE),
        (1712, FailureKind.UNAVAILABLE),
        (1812, FailureKind.UNAVAILABLE),
        (1814, FailureKind.UNAVAILABLE),
        (1815, FailureKind.UNAVAILABLE),
        (1820, FailureKind.UNAVAILABLE),
        (1862, FailureKind.UNAVAILABLE),
        (1877, FailureKind.UNAVAILABLE),
        (1878, FailureKind.UNAVAILABLE),
        (1932, FailureKind.UNAVAILABLE),
        (1964, FailureKind.UNAVAILABLE),
        (1969, FailureKind.UNAVAILABLE),
        (3019, FailureKind.UNAVAILABLE),
        (3024, FailureKind.UNAVAILABLE),
        (3032, FailureKind.UNAVAILABLE),
        (3100, FailureKind.UNAVAILABLE),
        (3118, FailureKind.UNAVAILABLE),
        (3168, FailureKind.UNAVAILABLE),
        (3170, FailureKind.UNAVAILABLE),
        (4151, FailureKind.UNAVAILABLE),
        (1053, FailureKind.DISCONNECTED),
        (1077, FailureKind.DISCONNECTED),
        (1079, FailureKind.DISCONNECTED),
        (1152, FailureKind.DISCONNECTED),
        (1154, FailureKind.DISCONNECTED),
        (1155, FailureKind.DISCONNECTED),
        (1156, FailureKind.DISCONNECTED),
        (1157, FailureKind.DISCONNECTED),
        (1158, FailureKind.DISCONNECTED),
        (1159, FailureKind.DISCONNECTED),
        (1160, FailureKind.DISCONNECTED),
        (1161, FailureKind.DISCONNECTED),
        (1184, FailureKind.DISCONNECTED),
        (1189, FailureKind.DISCONNECTED),
        (1190, FailureKind.DISCONNECTED),
        (1317, FailureKind.DISCONNECTED),
        (1835, FailureKind.DISCONNECTED),
        (1927, FailureKind.DISCONNECTED),
        (3169, FailureKind.DISCONNECTED),
        (4031, FailureKind.DISCONNECTED),
        (2006, FailureKind.DISCONNECTED),
        (2013, FailureKind.DISCONNECTED),
        (0, FailureKind.DISCONNECTED),
    ],
)
def test_what_mysql_says(code: int, kind: FailureKind) -> None:
    found = MYSQL.failure(pymysql.err.OperationalError(code, "s3cret"))
    assert found.kind is kind
    assert "s3cret" not in found.words


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_BUSY, FailureKind.CONTENTION),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, FailureKind.CONTENTION),
        (sqlite3.SQLITE_CONSTRAINT_UNIQUE, FailureKind.DUPLICATE),
        (sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, FailureKind.DUPLICATE),
        (sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY, FailureKind.REFERENCE),
        (sqlite3.SQLITE_CONSTRAINT_NOTNULL, FailureKind.REFUSED),
        (sqlite3.SQLITE_READONLY, FailureKind.READ_ONLY),
        (sqlite3.SQLITE_ABORT_ROLLBACK, FailureKind.CONTENTION),
        (sqlite3.SQLITE_SCHEMA, FailureKind.CONTENTION),
        (sqlite3.SQLITE_READONLY_DBMOVED, FailureKind.READ_ONLY),
        (sqlite3.SQLITE_FULL, FailureKind.UNAVAILABLE),
        (sqlite3.SQLITE_NOMEM, FailureKind.UNAVAILABLE),
        (sqlite3.SQLITE_INTERNAL, FailureKind.UNAVAILABLE),
        (sqlite3.SQLITE_NOLFS, FailureKind.UNAVAILABLE),
        (sqlite3.SQLITE_CANTOPEN_FULLPATH, FailureKind.UNAVAILABLE),
        (sqlite3.SQLITE_IOERR_WRITE, FailureKind.UNANSWERED),
        (sqlite3.SQLITE_IOERR_FSYNC, FailureKind.UNANSWERED),
        (sqlite3.SQLITE_NOTADB, FailureKind.UNAVAILABLE),
        (sqlite3.SQLITE_CORRUPT, FailureKind.UNAVAILABLE),
        (sqlite3.SQLITE_TOOBIG, FailureKind.REFUSED),
        (sqlite3.SQLITE_MISUSE, FailureKind.REFUSED),
    ],
)
def test_what_sqlite_says(code: int, kind: FailureKind) -> None:
    error = sqlite3.OperationalError("s3cret")
    error.sqlite_errorcode = code
    found = SQLITE.failure(error)
    assert found.kind is kind
    assert "s3cret" not in found.words


@pytest.mark.parametrize("backend", [POSTGRES, MYSQL, SQLITE])
def test_what_is_not_understood_is_refused(backend: Backend) -> None:
    assert backend.failure(ValueError("s3cret")).kind is FailureKind.REFUSED


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (None, FailureKind.DISCONNECTED),
        (ConnectionResetError(), FailureKind.DISCONNECTED),
        (BrokenPipeError(), FailureKind.DISCONNECTED),
        (ssl.SSLEOFError(), FailureKind.DISCONNECTED),
        (ssl.SSLError(), FailureKind.UNANSWERED),
        (TimeoutError("timed out"), FailureKind.UNANSWERED),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), FailureKind.DISCONNECTED),
        (OSError(113, "No route to host"), FailureKind.UNANSWERED),
        (ConnectionRefusedError(), FailureKind.UNAVAILABLE),
        (socket.gaierror(), FailureKind.UNAVAILABLE),
        (KeyError(), FailureKind.UNAVAILABLE),
    ],
)
def test_what_the_network_says(cause: BaseException | None, kind: FailureKind) -> None:
    assert network_failure(cause).kind is kind


def test_a_login_that_fails_leaves_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise legacy.InterfaceError("network error")

    monkeypatch.setattr("pg8000.core._flush", fail)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(legacy.InterfaceError) as caught:
            PostgresConnection(user="u", host="127.0.0.1", port=listener.getsockname()[1], ssl_context=False)
        server, _ = listener.accept()
        with server:
            server.settimeout(30)
            while server.recv(1024):
                pass
        assert caught.tb is not None, "what it refers to would be collected"


@on(*SERVERS)
def test_a_connection_that_is_lost_leaves_no_socket(database: Database) -> None:
    sockets: list[socket.socket] = []

    def end(connection: Connection) -> None:
        driver: Any = connection.connection.dbapi_connection
        postgres = isinstance(driver, PostgresConnection)
        sockets.append(driver._usock if postgres else driver._sock)
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pg_backend_pid())" if postgres else "KILL CONNECTION_ID()"
        )
        connection.exec_driver_sql("SELECT 1")

    with pytest.raises(Unavailable) as caught:
        database.read_now(end)
    assert {opened.fileno() for opened in sockets} == {-1}
    assert caught.tb is not None, "what it refers to would be collected"


@on("mysql", "mariadb")
def test_a_wrong_password_is_told(database: Database, shared_target: Target) -> None:
    user = f"u_{shared_target.database[-12:]}"
    database.write_now(lambda c: c.exec_driver_sql(f"CREATE USER '{user}' IDENTIFIED BY 'right'").close())
    try:
        wrong = evolve(shared_target, user=user, password="wrong€")
        with opened(wrong, Options()) as stranger, pytest.raises(Unavailable) as caught:
            stranger.read_now(lambda _: None)
        assert "user name or password was refused" in str(caught.value)
        assert "wrong" not in str(caught.value)
    finally:
        database.write_now(lambda c: c.exec_driver_sql(f"DROP USER '{user}'").close())


@on("sqlite")
def test_a_file_that_is_no_database(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(b"not a database, whatever its name says" * 100)
    with pytest.raises(Unavailable, match="not a SQLite database"), opened(Target("sqlite", path=path), Options()):
        pass
