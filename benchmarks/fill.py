"""Fills a database: tokens, and settled requests that balance with their counters and hourly sums.

A first block of requests is written row by row. The rest are copies of it that the database makes itself, under ids of
later times: a million rows take seconds. The hours of the copies are those of the first block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, TypeVar

import attrs
from attrs import frozen

from benchmarks.databases import Scratch
from benchmarks.rig import ENOUGH
from db.database import Database, opened
from db.dialects.bulk import BulkInsert
from db.options import Options
from db.queries import ledger, projects
from db.queries.rows import SETTLED
from db.records import Project, Reservation, Result, SettledRequest, Token
from db.schema import requests, tokens, usage_hourly
from llm_proxy.identifiers import new_id
from llm_proxy.secrets.encryption import KeyRing, last4
from llm_proxy.tokens import digest, new_secret

if TYPE_CHECKING:
    from sqlalchemy import Connection

T = TypeVar("T")

#: Rows of the first block.
_BLOCK = 10_000
#: Rows that are written in one transaction.
_ROWS_PER_TRANSACTION = 5000
#: Seconds; a transaction on a slow disk is slow.
_TIMEOUT = 120.0
_HOURS = 100
_SPAN = timedelta(hours=_HOURS)
_MODELS = ("gpt-4o-2024-08-06", "gpt-4o-mini-2024-07-18", "o3-mini-2025-01-31")

_insert_tokens = BulkInsert(tokens.insert(), [field.name for field in attrs.fields(Token)])
_insert_requests = BulkInsert(requests.insert(), SETTLED)


@frozen
class Past:
    """The contents of a database before the load. A count of requests above 10,000 is rounded."""

    tokens: int
    requests: int


@frozen
class Filled:
    """A database that was filled: `secrets` open it, one for each token, and `encryption_key` its project's API key."""

    scratch: Scratch
    encryption_key: str
    secrets: Sequence[str]


def fill(scratch: Scratch, past: Past, api_key: str) -> Filled:
    """Fill a database whose schema is at head, with one project that owns an API key."""
    ring = KeyRing.generate()
    now = datetime.now(UTC)
    project_id = new_id()
    project = Project(
        id=project_id,
        name="benchmark",
        provider="openai",
        api_key=ring.seal(api_key, project_id),
        api_key_last4=last4(api_key),
        active=True,
        created_at=now - _SPAN,
        updated_at=now - _SPAN,
    )
    secrets = [new_secret() for _ in range(past.tokens)]
    records = [_token(secret, project) for secret in secrets]
    with opened(scratch.target, Options(statement_timeout=_TIMEOUT)) as database:
        database.write_now(projects.create, project)
        for chunk in _chunks(records):
            database.write_now(_insert_tokens, chunk)
        if past.requests:
            _fill_ledger(database, records, past.requests, now)
    return Filled(scratch, ring.to_setting(), secrets)


def _chunks(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    return (rows[start : start + _ROWS_PER_TRANSACTION] for start in range(0, len(rows), _ROWS_PER_TRANSACTION))


def _token(secret: str, project: Project) -> Token:
    return Token(
        id=new_id(),
        project_id=project.id,
        digest=digest(secret),
        last4=last4(secret),
        name="",
        active=True,
        expires_at=None,
        max_requests=ENOUGH,
        request_count=0,
        created_at=project.created_at,
        updated_at=project.created_at,
        revoked_at=None,
        last_used_at=None,
    )


def _fill_ledger(database: Database, owners: Sequence[Token], count: int, now: datetime) -> None:
    block = min(count, _BLOCK)
    copies = round(count / block)
    rows = _rows(owners, block, now)
    for chunk in _chunks(rows):
        database.write_now(_settle, chunk)
    for number in range(1, copies):
        database.write_now(_copy, number)
    database.write_now(_multiply, copies)


def _prefix(number: int) -> str:
    """The first digits of a block's ids: of a time long before now, the higher the later."""
    return f"0190{number:04x}"


def _rows(owners: Sequence[Token], count: int, now: datetime) -> list[SettledRequest]:
    """Settled requests of all tokens in turn, evenly over the hours before now, as a busy proxy would have them."""
    source = Random(1)
    worker = new_id()
    began = now - _SPAN
    rows = []
    for number in range(count):
        token = owners[number % len(owners)]
        admitted = began + _SPAN * number / count
        duration = source.randrange(200_000, 20_000_000)
        rows.append(
            SettledRequest(
                Reservation(
                    f"{_prefix(0)}-{number >> 12:04x}-7{number & 0xFFF:03x}-8000-{source.getrandbits(48):012x}",
                    worker,
                    token.id,
                    token.project_id,
                    "openai",
                    "POST",
                    "/v1/chat/completions",
                    admitted,
                ),
                Result(
                    outcome="ok",
                    status=200,
                    model=_MODELS[number % len(_MODELS)],
                    streamed=bool(number % 2),
                    first_byte_us=duration // 4,
                    duration_us=duration,
                    request_bytes=source.randrange(200, 20_000),
                    response_bytes=source.randrange(300, 10_000),
                    input_tokens=source.randrange(10, 5000),
                    output_tokens=source.randrange(1, 1000),
                    cached_tokens=0,
                ),
                admitted + timedelta(microseconds=duration),
            )
        )
    return rows


def _settle(connection: Connection, rows: Sequence[SettledRequest]) -> None:
    _insert_requests(connection, [row.values() for row in rows])
    ledger.roll_up(connection, rows)
    counts: dict[str, int] = {}
    for row in rows:
        token_id = row.reservation.token_id
        counts[token_id] = counts.get(token_id, 0) + 1
    ledger.add_to_counters(connection, counts, rows[-1].settled_at)


def _copy(connection: Connection, number: int) -> None:
    """Copy the first block under new ids."""
    others = ", ".join(column.name for column in requests.columns if column.name != "id")
    connection.exec_driver_sql(
        f"INSERT INTO requests (id, {others}) SELECT REPLACE(id, '{_prefix(0)}-', '{_prefix(number)}-'), {others} "  # noqa: S608 - of our own names and numbers
        f"FROM requests WHERE id < '{_prefix(1)}' ORDER BY id"
    )


def _multiply(connection: Connection, copies: int) -> None:
    """Multiply counters and sums by the number of blocks."""
    sums = ("requests", "errors", "client_closed", "input_tokens", "output_tokens", "cached_tokens")
    connection.execute(usage_hourly.update().values({name: usage_hourly.c[name] * copies for name in sums}))
    connection.execute(tokens.update().values(request_count=tokens.c.request_count * copies))
