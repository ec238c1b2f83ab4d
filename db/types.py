"""Column types: what a value looks like in Python, and what it is on each database.

On MySQL and MariaDB the default collations take `abc `, `ABC` and `àbc` for equal, so every text column that is
compared names a binary one. On PostgreSQL such columns carry the collation "C": comparison by code point, which is
cheaper than the locale's and survives an upgrade of the system's locale tables without a re-index.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec
from sqlalchemy import DateTime, Dialect, LargeBinary, String, Text
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import TypeDecorator, TypeEngine

#: Length of a SHA-256 value in bytes.
DIGEST_BYTES = 32

#: A UUID in its canonical text form.
Id: TypeEngine[str] = (
    String(36)
    .with_variant(postgresql.VARCHAR(36, collation="C"), "postgresql")
    .with_variant(mysql.VARCHAR(36, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
)

#: A short ASCII identifier: a provider, a method, an outcome.
Code: TypeEngine[str] = (
    String(64)
    .with_variant(postgresql.VARCHAR(64, collation="C"), "postgresql")
    .with_variant(mysql.VARCHAR(64, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
)

#: Up to 255 characters of any script, compared code point by code point.
Name: TypeEngine[str] = (
    String(255)
    .with_variant(postgresql.VARCHAR(255, collation="C"), "postgresql")
    .with_variant(mysql.VARCHAR(255, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
)

#: Text of any length, never compared.
LongText: TypeEngine[str] = Text().with_variant(
    mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
)


class Json(TypeDecorator[dict[str, Any]]):
    """A JSON object as text, its members sorted by name; None is null."""

    impl = LongText
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[dict[str, Any] | None], str | None]:
        """Encode the object. The same members give the same text."""
        return _bind_json

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[str | None], dict[str, Any] | None]:
        """Decode the object."""
        return _read_json


class Digest(TypeDecorator[bytes]):
    """A SHA-256 value: exactly 32 raw bytes, compared byte by byte."""

    impl = LargeBinary
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """BINARY(32) on MySQL, which cannot index a BLOB; the unbounded byte string elsewhere."""
        if dialect.name in ("mysql", "mariadb"):
            return dialect.type_descriptor(mysql.BINARY(DIGEST_BYTES))
        return dialect.type_descriptor(LargeBinary())

    def bind_processor(self, dialect: Dialect) -> Callable[[bytes | None], bytes | None]:
        """Hand the bytes over as they are. Raises ValueError for anything but 32 bytes."""
        return _bind_digest

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], bytes | None] | None:
        """Every driver answers with `bytes`."""
        return None


class Timestamp(TypeDecorator[datetime]):
    """A point in time: an aware `datetime`, stored in UTC with microseconds, read back as aware UTC.

    DATETIME(6) on MySQL and MariaDB, TIMESTAMP WITH TIME ZONE on PostgreSQL. On SQLite it is text of a fixed width
    (`2026-01-02 03:04:05.000006`), so that the order of the text is the order of time.
    """

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The column type of the database at hand."""
        if dialect.name in ("mysql", "mariadb"):
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        if dialect.name == "postgresql":
            return dialect.type_descriptor(DateTime(timezone=True))
        return dialect.type_descriptor(DateTime())

    def bind_processor(self, dialect: Dialect) -> Callable[[datetime | None], Any]:
        """Convert to UTC. Raises ValueError for a naive `datetime`: drivers would store it unchanged."""
        if dialect.name in ("mysql", "mariadb"):
            return _bind_naive_utc
        if dialect.name == "postgresql":
            return _bind_aware
        return _bind_text

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], datetime | None] | None:
        """Add UTC if the database does not store a time zone."""
        if dialect.name in ("mysql", "mariadb"):
            return _read_naive_utc
        if dialect.name == "postgresql":
            return None
        return _read_text


_encode_json = msgspec.json.Encoder(order="sorted").encode
_decode_json = msgspec.json.Decoder(dict[str, Any]).decode


def _bind_json(value: dict[str, Any] | None) -> str | None:
    return None if value is None else _encode_json(value).decode()


def _read_json(value: str | None) -> dict[str, Any] | None:
    return None if value is None else _decode_json(value)


def _bind_digest(value: bytes | None) -> bytes | None:
    if value is not None and (type(value) is not bytes or len(value) != DIGEST_BYTES):
        raise ValueError(f"a digest is {DIGEST_BYTES} bytes")
    return value


def _utc(value: datetime) -> datetime:
    if value.tzinfo is UTC:
        return value
    if value.utcoffset() is None:
        raise ValueError("a timestamp needs a time zone; this datetime is naive")
    return value.astimezone(UTC)


@lru_cache(maxsize=256)  # a transaction has few timestamps
def _bind_aware(value: datetime | None) -> str | None:
    # Text is what the driver would make of it; as text, it does not look the type up first.
    return None if value is None else _utc(value).isoformat()


def _bind_naive_utc(value: datetime | None) -> datetime | None:
    return None if value is None else _utc(value).replace(tzinfo=None)


@lru_cache(maxsize=256)  # as above
def _bind_text(value: datetime | None) -> str | None:
    return None if value is None else _utc(value).isoformat(" ", "microseconds")[:26]


def _read_naive_utc(value: datetime | None) -> datetime | None:
    return None if value is None else value.replace(tzinfo=UTC)


def _read_text(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value + "+00:00")
