"""A test's database ends with the test, or is as new for the next one."""

from __future__ import annotations

import pymysql
import pytest

from db.database import opened
from db.options import Options
from tests.databases.admin import Address
from tests.databases.kinds import SERVERS, Kind, on
from tests.databases.scratch import Databases
from tests.db.rows import contents, fill_new


@on(*SERVERS)
def test_database_is_dropped_at_the_end(databases: Databases, database_kind: Kind) -> None:
    admin = databases.server(database_kind).admin
    with databases.empty(database_kind) as scratch:
        assert scratch.name in admin.names()
    assert scratch.name not in admin.names()


@on("mysql", "mariadb")
def test_database_with_an_open_transaction_is_dropped(databases: Databases, database_kind: Kind) -> None:
    with databases.empty(database_kind) as scratch:
        address = Address.parse(scratch.url, default_port=3306)
        connection = pymysql.connect(**address.mysql_arguments(), database=scratch.name)
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE t (i int)")
            cursor.execute("START TRANSACTION")
            cursor.execute("SELECT * FROM t FOR UPDATE")
    with pytest.raises(pymysql.err.OperationalError):
        connection.ping(reconnect=False)
    assert scratch.name not in databases.server(database_kind).admin.names()


@on(*SERVERS)
def test_migrated_database_is_used_again_without_its_rows(databases: Databases, database_kind: Kind) -> None:
    with databases.migrated(database_kind) as first, opened(first.target, Options()) as database:
        fresh = database.read_now(contents)
        database.write_now(fill_new, set())
    with databases.migrated(database_kind) as second, opened(second.target, Options()) as database:
        assert second.name == first.name
        assert database.read_now(contents) == fresh


@on(*SERVERS)
@pytest.mark.parametrize(
    "change",
    [
        "CREATE TABLE more (i int)",
        "DROP TABLE audit",
        "ALTER TABLE workers ADD more int",
        "CREATE INDEX ix_more ON workers (pid)",
        "UPDATE alembic_version SET version_num = '0001'",
    ],
)
def test_migrated_database_is_dropped_after_a_change_of_its_schema(
    databases: Databases, database_kind: Kind, change: str
) -> None:
    admin = databases.server(database_kind).admin
    with databases.migrated(database_kind) as scratch:
        admin.execute(change, database=scratch.name)
    with databases.migrated(database_kind):
        assert scratch.name not in admin.names()


@on("postgres")
def test_migrated_database_is_dropped_after_a_change_of_its_settings(databases: Databases, database_kind: Kind) -> None:
    admin = databases.server(database_kind).admin
    for change in (
        'ALTER DATABASE "{}" SET default_transaction_read_only = on',
        'REVOKE ALL ON DATABASE "{}" FROM PUBLIC',
    ):
        with databases.migrated(database_kind) as scratch:
            admin.execute(change.format(scratch.name))
        with databases.migrated(database_kind):
            assert scratch.name not in admin.names()
