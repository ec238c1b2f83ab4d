from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, delete, insert, select

from db import Connection
from db.database import Database
from db.types import Code, Digest, Id, LongText, Name, Timestamp

METADATA = MetaData()
VALUES = Table(
    "all_types",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("id", Id),
    Column("code", Code),
    Column("name", Name, unique=True),
    Column("text", LongText),
    Column("digest", Digest, unique=True),
    Column("time", Timestamp),
)
NOON = datetime(2026, 7, 1, 12, 0, 0, 1, tzinfo=UTC)


def store(connection: Connection, **values: object) -> None:
    connection.execute(insert(VALUES), [values])


def equals(connection: Connection, name: str, value: object) -> list[object]:
    return list(connection.scalars(select(VALUES.c[name]).where(VALUES.c[name] == value)))


def only(connection: Connection, name: str) -> object:
    return connection.execute(select(VALUES.c[name])).scalar_one()


@pytest.fixture(autouse=True)
def table(database: Database) -> None:
    database.write_now(METADATA.create_all)
    database.write_now(lambda connection: connection.execute(delete(VALUES)).close())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", "0192f0c1-2d3e-7abc-8def-0123456789ab"),
        ("code", "x" * 64),
        ("name", "é" * 255),
        ("name", "gpt-4o 🙂 \\ ' \" % %s $1 :x ; --"),
        ("text", ""),
        ("text", "\r\n\t" + "€" * 100_000),
        ("digest", bytes(32)),
        ("digest", bytes(range(224, 256))),
        ("digest", b"\\x" + b"'\"%" * 10),
        ("time", NOON),
        ("time", datetime(1, 1, 1, tzinfo=UTC).replace(year=1970)),
        ("time", datetime(2038, 1, 19, 3, 14, 8, 999999, tzinfo=UTC)),
        ("time", datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)),
    ],
)
def test_a_value_comes_back_as_it_went_in(database: Database, name: str, value: object) -> None:
    database.write_now(lambda connection: store(connection, number=1, **{name: value}))
    found = database.read_now(only, name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("name", [column.name for column in VALUES.columns if column.name != "number"])
def test_nothing_comes_back_as_nothing(database: Database, name: str) -> None:
    database.write_now(lambda connection: store(connection, number=1))
    assert database.read_now(only, name) is None


def test_a_timestamp_is_stored_in_utc(database: Database) -> None:
    there = NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))
    database.write_now(lambda connection: store(connection, number=1, time=there))
    found = database.read_now(only, "time")
    assert isinstance(found, datetime)
    assert (found, found.tzinfo) == (NOON, UTC)


def test_timestamps_are_ordered_as_time_is(database: Database) -> None:
    times = [NOON + timedelta(microseconds=step) for step in (0, 1, 999_998, 999_999, 1_000_000)]

    def store_all(connection: Connection) -> None:
        rows = [{"number": number, "time": time} for number, time in enumerate(times)]
        connection.execute(insert(VALUES), rows[::-1])

    database.write_now(store_all)
    found = database.read_now(lambda connection: connection.scalars(select(VALUES.c.time).order_by("time")).all())
    assert found == times
    later = select(VALUES.c.number).where(VALUES.c.time > times[1]).order_by("number")
    assert database.read_now(lambda connection: connection.scalars(later).all()) == [2, 3, 4]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("time", NOON.replace(tzinfo=None), "time zone"),
        ("digest", b"short", "32 bytes"),
        ("digest", "text of thirty-two characters...", "32 bytes"),
    ],
)
def test_what_would_be_stored_wrongly_is_refused(database: Database, name: str, value: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        database.write_now(lambda connection: store(connection, number=1, **{name: value}))


@pytest.mark.parametrize("name", ["id", "code", "name"])
def test_text_is_compared_letter_by_letter(database: Database, name: str) -> None:
    texts = ["abc", "ABC", "Abc"] if name != "name" else ["abc", "ABC", "àbc", "abć"]

    def store_all(connection: Connection) -> None:
        connection.execute(insert(VALUES), [{"number": n, name: text} for n, text in enumerate(texts)])

    database.write_now(store_all)
    for text in texts:
        assert database.read_now(equals, name, text) == [text]
