"""What a database says of itself in numbers; `test_database` and `test_outages` look at its retries."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, insert, select

from db import Connection
from db.database import Database
from db.errors import Duplicate

METADATA = MetaData()
ROWS = Table("rows_of_test", METADATA, Column("id", Integer, primary_key=True))


def add(connection: Connection, number: int) -> None:
    connection.execute(insert(ROWS), [{"id": number}])


def read(connection: Connection) -> int:
    return len(connection.execute(select(ROWS)).all())


def fail(connection: Connection) -> None:
    raise RuntimeError("a fault of the function")


def test_how_large_it_is(fresh: Database) -> None:
    fresh.write_now(METADATA.create_all)
    sizes = fresh.read_now(fresh.sizes)
    assert sizes["bytes"] > 0
    if fresh.target.driver == "sqlite":
        assert sizes["wal_bytes"] > 0
        assert sizes["pages"] > 1 > sizes["free_pages"]
        fresh.write_now(METADATA.drop_all)
        assert fresh.read_now(fresh.sizes)["free_pages"] > 0
    else:
        assert sizes.keys() == {"bytes"}


async def test_transactions_are_counted(fresh: Database) -> None:
    statistics = fresh.statistics
    assert fresh.statistics.last_success is None
    before = time.time()
    fresh.write_now(METADATA.create_all)
    fresh.write_now(add, 1)
    assert await fresh.read(read) == 1
    with pytest.raises(Duplicate):
        await fresh.write(add, 1)
    with pytest.raises(RuntimeError, match="fault of the function"):
        await fresh.write(fail)
    assert statistics.committed == {"read": 1, "write": 2}
    assert statistics.failures.pop("duplicate") == 1
    assert set(statistics.failures.values()) == set(statistics.retries.values()) == {0}
    assert statistics.last_success is not None
    assert before <= statistics.last_success <= time.time()
