"""The values of labels that the sums of a day distinguish, at all servers together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import date, datetime
from functools import lru_cache
from hashlib import blake2b

from sqlalchemy import Connection, or_, select

from db.dialects.statements import insert_new
from db.queries.rows import delete_first
from db.schema import label_values

_add = insert_new(label_values)
# Digits: of the series, and in it of a digest.
_SERIES, _DIGEST = 32, 24
#: Behind all digits.
_LAST = "g"
#: Series of one statement: SQLite refuses longer conditions from 1,000 on.
_CHUNK = 200


@lru_cache(maxsize=4096)
def id_of(day: date, project_id: str, key: str, value: str) -> str:
    """The id of a value that a key of a project has on a day. In the order of days."""
    series = blake2b(f"{project_id} {key}".encode(), digest_size=_DIGEST // 2).hexdigest()
    return f"{day:%Y%m%d}{series}{blake2b(value.encode(), digest_size=16).hexdigest()}"


def series_of(value_id: str) -> str:
    """What the ids of all values of the key on that day begin with."""
    return value_id[:_SERIES]


def find(connection: Connection, series: Sequence[str]) -> Iterator[str]:
    """The ids of all values of these series. Without any, nothing is sent."""
    key = label_values.c.id
    for start in range(0, len(series), _CHUNK):
        ranges = [key.between(one, one + _LAST) for one in series[start : start + _CHUNK]]
        yield from connection.scalars(select(key).where(or_(*ranges)))


def add(connection: Connection, ids: Collection[str]) -> None:
    """Write values; those that are there already stay."""
    connection.execute(_add, [{"id": one} for one in sorted(ids)])


def prune(connection: Connection, before: datetime, limit: int) -> int:
    """Delete values of days before that of a time, at most `limit`; say how many they were."""
    key = label_values.c.id
    return delete_first(connection, key, limit, key < f"{before:%Y%m%d}")
