"""A test's database ends with the test."""

from __future__ import annotations

import pymysql
import pytest

from tests.databases.admin import Address
from tests.databases.kinds import SERVERS, Kind, on
from tests.databases.scratch import Databases


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
