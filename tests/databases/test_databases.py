"""The ground that the database tests stand on."""

from __future__ import annotations

import sqlite3

import pg8000.exceptions
import pymysql
import pytest

from db.database import opened
from db.migrate import is_at_head
from db.options import Options
from tests.databases.addresses import Address, with_database, with_endpoint
from tests.databases.admin import admin_of
from tests.databases.kinds import SERVERS, Kind, on
from tests.databases.programs import Instance
from tests.databases.scratch import Databases, Scratch
from tests.databases.servers import wait_until_answers


def names_of(databases: Databases, kind: Kind) -> set[str]:
    """The databases that a server has."""
    return set(databases.server(kind).admin.names())


def test_settings_lead_to_the_empty_database(empty_database: Scratch, database_env: dict[str, str]) -> None:
    where = database_env.get("DATABASE_PATH") or database_env["DATABASE_URL"]
    assert database_env["DB_DRIVER"] == empty_database.kind.driver
    assert empty_database.name in where


@on(*SERVERS)
def test_a_database_lives_as_long_as_its_test(databases: Databases, database_kind: Kind) -> None:
    with databases.empty(database_kind) as scratch:
        assert scratch.name in names_of(databases, database_kind)
    assert scratch.name not in names_of(databases, database_kind)


def test_two_databases_of_one_test_are_two(databases: Databases, database_kind: Kind) -> None:
    with databases.empty(database_kind) as one, databases.empty(database_kind) as other:
        assert one.name != other.name


@on("mysql", "mariadb")
def test_a_database_is_dropped_under_an_open_transaction(databases: Databases, database_kind: Kind) -> None:
    with databases.empty(database_kind) as scratch:
        address = Address.parse(scratch.url, default_port=3306)
        connection = pymysql.connect(**address.mysql_arguments(), database=scratch.name)
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE t (i int)")
            cursor.execute("START TRANSACTION")
            cursor.execute("SELECT * FROM t FOR UPDATE")
        assert databases.server(database_kind).admin.end_sessions(scratch.name) == 1
        with pytest.raises(pymysql.err.OperationalError):
            connection.ping(reconnect=False)
    assert scratch.name not in names_of(databases, database_kind)


@on("postgres", "mariadb")
def test_a_server_of_its_own_comes_back_after_a_crash(database_kind: Kind, database_instance: Instance) -> None:
    admin = admin_of(database_kind, database_instance.url)
    admin.create("kept")
    database_instance.kill()
    with pytest.raises((OSError, pymysql.err.OperationalError, pg8000.exceptions.InterfaceError)):
        admin.version()
    database_instance.start()
    wait_until_answers(database_kind, database_instance)
    assert "kept" in admin.names()


def test_a_migrated_database_is_a_copy_of_its_own(databases: Databases, database_kind: Kind) -> None:
    with databases.migrated(database_kind) as scratch, opened(scratch.target, Options()) as database:
        assert database.read_now(is_at_head)
        with databases.migrated(database_kind) as other:
            assert other.name != scratch.name


def test_a_sqlite_file_goes_away(databases: Databases) -> None:
    with databases.empty(Kind.SQLITE) as scratch:
        sqlite3.connect(scratch.path).close()
    with pytest.raises(sqlite3.OperationalError):
        sqlite3.connect(f"file:{scratch.path}?mode=rw", uri=True)


@pytest.mark.parametrize(
    ("url", "moved"),
    [
        ("postgres://u:p%40@db.example:5432/x?sslmode=disable", "postgres://u:p%40@127.0.0.1:7/x?sslmode=disable"),
        ("mysql://root@db.example/x", "mysql://root@127.0.0.1:7/x"),
        ("u:p@ss/w@tcp(db.example:3306)/x?parseTime=true", "u:p@ss/w@tcp(127.0.0.1:7)/x?parseTime=true"),
    ],
)
def test_an_address_moves_to_another_endpoint(url: str, moved: str) -> None:
    assert with_endpoint(url, "127.0.0.1", 7) == moved


def test_a_go_address_keeps_its_password_as_it_is() -> None:
    address = Address.parse("u:p@ss/w%20@tcp(db.example)/x?parseTime=true", default_port=3306)
    assert (address.user, address.password, address.host, address.port) == ("u", "p@ss/w%20", "db.example", 3306)
    assert "p@ss" not in repr(address)


def test_another_database_keeps_server_and_options() -> None:
    assert (
        with_database("root@tcp(127.0.0.1:3306)/x?parseTime=true", "y") == "root@tcp(127.0.0.1:3306)/y?parseTime=true"
    )
    assert with_database("postgres://u@h/x?sslmode=disable", "y") == "postgres://u@h/y?sslmode=disable"
