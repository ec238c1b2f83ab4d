"""What the drivers' errors are taken to mean."""

from __future__ import annotations

import errno
import socket
import sqlite3
import ssl
from pathlib import Path

import pymysql
import pytest
from attrs import evolve
from pg8000 import legacy

from db.database import Database, opened
from db.dialects import Backend, backend_for
from db.dialects.failure import Kind, network_failure
from db.dialects.postgresql.connection import PostgresConnection
from db.dsn import Target
from db.errors import Unavailable
from db.options import Options
from tests.databases.kinds import on

POSTGRES = backend_for(Target("postgres", host="h", port=1), Options(), exclusive=True)
MYSQL = backend_for(Target("mysql", host="h", port=1), Options(), exclusive=True)
SQLITE = backend_for(Target("sqlite"), Options(), exclusive=True)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("40001", Kind.CONTENTION),
        ("40P01", Kind.CONTENTION),
        ("55P03", Kind.LOCKED),
        ("23505", Kind.DUPLICATE),
        ("23503", Kind.REFERENCE),
        ("42P01", Kind.SCHEMA),
        ("42703", Kind.SCHEMA),
        ("40000", Kind.CONTENTION),
        ("3F000", Kind.SCHEMA),
        ("22001", Kind.REFUSED),
        ("23502", Kind.REFUSED),
        ("54000", Kind.REFUSED),
        ("25006", Kind.READ_ONLY),
        ("28P01", Kind.UNAVAILABLE),
        ("28000", Kind.UNAVAILABLE),
        ("3D000", Kind.UNAVAILABLE),
        ("53300", Kind.UNAVAILABLE),
        ("42501", Kind.UNAVAILABLE),
        ("53000", Kind.UNAVAILABLE),
        ("53100", Kind.UNAVAILABLE),
        ("53200", Kind.UNAVAILABLE),
        ("53400", Kind.UNAVAILABLE),
        ("55000", Kind.UNAVAILABLE),
        ("57014", Kind.UNAVAILABLE),
        ("57P03", Kind.UNAVAILABLE),
        ("58000", Kind.UNAVAILABLE),
        ("58030", Kind.UNAVAILABLE),
        ("58P01", Kind.UNAVAILABLE),
        ("72000", Kind.UNAVAILABLE),
        ("F0001", Kind.UNAVAILABLE),
        ("XX000", Kind.UNAVAILABLE),
        ("XX001", Kind.UNAVAILABLE),
        ("XX002", Kind.UNAVAILABLE),
        ("57000", Kind.DISCONNECTED),
        ("57P01", Kind.DISCONNECTED),
        ("57P02", Kind.DISCONNECTED),
        ("57P04", Kind.DISCONNECTED),
        ("57P05", Kind.DISCONNECTED),
        ("08006", Kind.DISCONNECTED),
        ("08P01", Kind.DISCONNECTED),
        ("25P03", Kind.DISCONNECTED),
        ("25P04", Kind.DISCONNECTED),
    ],
)
def test_what_postgresql_says(code: str, kind: Kind) -> None:
    found = POSTGRES.failure(legacy.ProgrammingError({"C": code, "M": "s3cret"}))
    assert found.kind is kind
    assert "s3cret" not in found.words


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (1205, Kind.LOCKED),
        (1213, Kind.CONTENTION),
        (3572, Kind.LOCKED),
        (1020, Kind.CONTENTION),
        (1412, Kind.CONTENTION),
        (1062, Kind.DUPLICATE),
        (1452, Kind.REFERENCE),
        (1451, Kind.REFERENCE),
        (1146, Kind.SCHEMA),
        (1054, Kind.SCHEMA),
        (3101, Kind.CONTENTION),
        (1048, Kind.REFUSED),
        (1153, Kind.REFUSED),
        (1197, Kind.REFUSED),
        (1264, Kind.REFUSED),
        (1366, Kind.REFUSED),
        (1406, Kind.REFUSED),
        (1036, Kind.READ_ONLY),
        (1290, Kind.READ_ONLY),
        (3989, Kind.READ_ONLY),
        (1792, Kind.READ_ONLY),
        (1836, Kind.READ_ONLY),
        (1874, Kind.READ_ONLY),
        (1881, Kind.READ_ONLY),
        (1016, Kind.UNAVAILABLE),
        (1021, Kind.UNAVAILABLE),
        (1023, Kind.UNAVAILABLE),
        (1024, Kind.UNAVAILABLE),
        (1026, Kind.UNAVAILABLE),
        (1030, Kind.UNAVAILABLE),
        (1034, Kind.UNAVAILABLE),
        (1037, Kind.UNAVAILABLE),
        (1038, Kind.UNAVAILABLE),
        (1041, Kind.UNAVAILABLE),
        (1044, Kind.UNAVAILABLE),
        (1045, Kind.UNAVAILABLE),
        (1047, Kind.UNAVAILABLE),
        (1049, Kind.UNAVAILABLE),
        (1040, Kind.UNAVAILABLE),
        (1105, Kind.UNAVAILABLE),
        (1114, Kind.UNAVAILABLE),
        (1119, Kind.UNAVAILABLE),
        (1129, Kind.UNAVAILABLE),
        (1130, Kind.UNAVAILABLE),
        (1135, Kind.UNAVAILABLE),
        (1142, Kind.UNAVAILABLE),
        (1143, Kind.UNAVAILABLE),
        (1180, Kind.UNAVAILABLE),
        (1181, Kind.UNAVAILABLE),
        (1194, Kind.UNAVAILABLE),
        (1195, Kind.UNAVAILABLE),
        (1206, Kind.UNAVAILABLE),
        (1223, Kind.UNAVAILABLE),
        (1227, Kind.UNAVAILABLE),
        (1296, Kind.UNAVAILABLE),
        (1297, Kind.UNAVAILABLE),
        (1370, Kind.UNAVAILABLE),
        (1598, Kind.UNAVAILABLE),
        (1637, Kind.UNAVAILABLE),
        (1665, Kind.UNAVAILABLE),
        (1698, Kind.UNAVAILABLE),
        (1712, Kind.UNAVAILABLE),
        (1812, Kind.UNAVAILABLE),
        (1814, Kind.UNAVAILABLE),
        (1815, Kind.UNAVAILABLE),
        (1820, Kind.UNAVAILABLE),
        (1862, Kind.UNAVAILABLE),
        (1877, Kind.UNAVAILABLE),
        (1878, Kind.UNAVAILABLE),
        (1932, Kind.UNAVAILABLE),
        (1964, Kind.UNAVAILABLE),
        (1969, Kind.UNAVAILABLE),
        (3019, Kind.UNAVAILABLE),
        (3024, Kind.UNAVAILABLE),
        (3032, Kind.UNAVAILABLE),
        (3100, Kind.UNAVAILABLE),
        (3118, Kind.UNAVAILABLE),
        (3168, Kind.UNAVAILABLE),
        (3170, Kind.UNAVAILABLE),
        (4151, Kind.UNAVAILABLE),
        (1053, Kind.DISCONNECTED),
        (1077, Kind.DISCONNECTED),
        (1079, Kind.DISCONNECTED),
        (1152, Kind.DISCONNECTED),
        (1154, Kind.DISCONNECTED),
        (1155, Kind.DISCONNECTED),
        (1156, Kind.DISCONNECTED),
        (1157, Kind.DISCONNECTED),
        (1158, Kind.DISCONNECTED),
        (1159, Kind.DISCONNECTED),
        (1160, Kind.DISCONNECTED),
        (1161, Kind.DISCONNECTED),
        (1184, Kind.DISCONNECTED),
        (1189, Kind.DISCONNECTED),
        (1190, Kind.DISCONNECTED),
        (1317, Kind.DISCONNECTED),
        (1835, Kind.DISCONNECTED),
        (1927, Kind.DISCONNECTED),
        (3169, Kind.DISCONNECTED),
        (4031, Kind.DISCONNECTED),
        (2006, Kind.DISCONNECTED),
        (2013, Kind.DISCONNECTED),
        (0, Kind.DISCONNECTED),
    ],
)
def test_what_mysql_says(code: int, kind: Kind) -> None:
    found = MYSQL.failure(pymysql.err.OperationalError(code, "s3cret"))
    assert found.kind is kind
    assert "s3cret" not in found.words


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_BUSY, Kind.CONTENTION),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, Kind.CONTENTION),
        (sqlite3.SQLITE_CONSTRAINT_UNIQUE, Kind.DUPLICATE),
        (sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, Kind.DUPLICATE),
        (sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY, Kind.REFERENCE),
        (sqlite3.SQLITE_CONSTRAINT_NOTNULL, Kind.REFUSED),
        (sqlite3.SQLITE_READONLY, Kind.READ_ONLY),
        (sqlite3.SQLITE_ABORT_ROLLBACK, Kind.CONTENTION),
        (sqlite3.SQLITE_SCHEMA, Kind.CONTENTION),
        (sqlite3.SQLITE_READONLY_DBMOVED, Kind.READ_ONLY),
        (sqlite3.SQLITE_FULL, Kind.UNAVAILABLE),
        (sqlite3.SQLITE_NOMEM, Kind.UNAVAILABLE),
        (sqlite3.SQLITE_INTERNAL, Kind.UNAVAILABLE),
        (sqlite3.SQLITE_NOLFS, Kind.UNAVAILABLE),
        (sqlite3.SQLITE_CANTOPEN_FULLPATH, Kind.UNAVAILABLE),
        (sqlite3.SQLITE_IOERR_WRITE, Kind.UNANSWERED),
        (sqlite3.SQLITE_IOERR_FSYNC, Kind.UNANSWERED),
        (sqlite3.SQLITE_NOTADB, Kind.UNAVAILABLE),
        (sqlite3.SQLITE_CORRUPT, Kind.UNAVAILABLE),
        (sqlite3.SQLITE_TOOBIG, Kind.REFUSED),
        (sqlite3.SQLITE_MISUSE, Kind.REFUSED),
    ],
)
def test_what_sqlite_says(code: int, kind: Kind) -> None:
    error = sqlite3.OperationalError("s3cret")
    error.sqlite_errorcode = code
    found = SQLITE.failure(error)
    assert found.kind is kind
    assert "s3cret" not in found.words


@pytest.mark.parametrize("backend", [POSTGRES, MYSQL, SQLITE])
def test_what_is_not_understood_is_refused(backend: Backend) -> None:
    assert backend.failure(ValueError("s3cret")).kind is Kind.REFUSED


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (None, Kind.DISCONNECTED),
        (ConnectionResetError(), Kind.DISCONNECTED),
        (BrokenPipeError(), Kind.DISCONNECTED),
        (ssl.SSLEOFError(), Kind.DISCONNECTED),
        (ssl.SSLError(), Kind.UNANSWERED),
        (TimeoutError("timed out"), Kind.UNANSWERED),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), Kind.DISCONNECTED),
        (OSError(113, "No route to host"), Kind.UNANSWERED),
        (ConnectionRefusedError(), Kind.UNAVAILABLE),
        (socket.gaierror(), Kind.UNAVAILABLE),
        (KeyError(), Kind.UNAVAILABLE),
    ],
)
def test_what_the_network_says(cause: BaseException | None, kind: Kind) -> None:
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
