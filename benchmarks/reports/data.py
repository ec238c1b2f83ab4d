"""A database of a year's users: many projects, tokens and requests, with their hourly and daily sums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from attrs import frozen
from sqlalchemy import Connection, insert, update

from benchmarks.databases import Kind, Scratch
from db.database import Database, opened
from db.dialects.bulk import BulkInsert
from db.options import Options
from db.queries import daily, ledger
from db.queries.rows import SETTLED, first_id
from db.records import SettledRequest
from db.schema import projects, requests, tokens, usage_days
from llm_proxy.identifiers import new_id
from llm_proxy.tokens import digest

_DAYS = 30
_SPAN = timedelta(days=_DAYS)
#: Rows that are written in one transaction, and projects whose day is summed up in one.
_ROWS = 5000
_PROJECTS = 1000
#: Seconds; a transaction on a busy machine is slow.
_TIMEOUT = 600.0

MODELS = ("gpt-5.4", "gpt-5.4-mini", "gpt-5.4-nano", "claude-opus-4-8", "claude-sonnet-4-6")
#: One request in 10,000 has this model.
RARE_MODEL = "rare"

_insert_requests = BulkInsert(insert(requests), SETTLED)


@frozen
class Size:
    """How much is written: requests over the last 30 days, tokens and their projects."""

    requests: int = 1_000_000
    tokens: int = 100_000
    projects: int = 10_000


@frozen
class Known:
    """Rows to ask for.

    Attributes:
        busy, gone: the project that has a quarter of the requests, and the one whose many requests are the oldest.
        token: of the busy project.
        usual: a token of one of the other projects.
        request: the id of one in the middle; `provider_ok` and `provider_failed` are ids of the provider.
        middle: when that request was admitted.
        until: a time after all.
    """

    busy: str
    gone: str
    token: str
    usual: str
    request: str
    provider_ok: str
    provider_failed: str
    middle: datetime
    until: datetime


def fill(scratch: Scratch, size: Size) -> Known:
    """Fill a database whose schema is at head and that has no rows."""
    now = datetime.now(UTC)
    # The busy project comes last, so that the pages of a report by project have the same rows each time.
    owners = sorted((new_id() for _ in range(size.projects)), reverse=True)
    secrets = [(new_id(), owners[number % size.projects]) for number in range(size.tokens)]
    with opened(scratch.target, Options(statement_timeout=_TIMEOUT)) as database:
        database.write_now(_create, owners, secrets, now - _SPAN)
        chunks: list[Sequence[SettledRequest]] = []
        for chunk in _chunks(_requests(secrets, size, now)):
            database.write_now(_settle, chunk)
            if len(chunks) * _ROWS < size.requests // 2:
                chunks.append(chunk[:100])
        _sum_up(database)
    if scratch.kind is Kind.POSTGRES:
        # As autovacuum does, a minute later.
        scratch.query("VACUUM ANALYZE")
    middle = chunks[-1]
    ids = {row.result.outcome: row.result.provider_request_id or "" for row in middle}
    return Known(
        busy=owners[0],
        gone=owners[1],
        token=secrets[0][0],
        usual=secrets[size.projects - 1][0],
        request=middle[0].id,
        provider_ok=ids["ok"],
        provider_failed=ids["rejected"],
        middle=middle[0].reservation.admitted_at,
        until=now,
    )


def _chunks(rows: Iterator[SettledRequest]) -> Iterator[Sequence[SettledRequest]]:
    chunk: list[SettledRequest] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _ROWS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _create(connection: Connection, owners: Sequence[str], secrets: Sequence[tuple[str, str]], at: datetime) -> None:
    usual: dict[str, Any] = {"active": True, "created_at": at, "updated_at": at}
    rows = [
        {"id": identity, "name": f"project {number}", "provider": "openai", "api_key": "sealed", **usual}
        | {"api_key_last4": f"{number % 10_000:04d}"}
        for number, identity in enumerate(owners)
    ]
    _insert(connection, projects, rows)
    rows = [
        {"id": identity, "project_id": project_id, "digest": digest(identity), **usual}
        | {"name": f"token {number}", "request_count": 0, "last4": identity[-4:]}
        for number, (identity, project_id) in enumerate(secrets)
    ]
    # The only one with these last four characters.
    rows[len(owners) - 1]["last4"] = "last"
    _insert(connection, tokens, rows)


def _insert(connection: Connection, table: Any, rows: Sequence[dict[str, Any]]) -> None:
    write = BulkInsert(insert(table), list(rows[0]))
    for start in range(0, len(rows), _ROWS):
        write(connection, rows[start : start + _ROWS])


def _requests(secrets: Sequence[tuple[str, str]], size: Size, now: datetime) -> Iterator[SettledRequest]:
    """Requests in the order of time. A quarter is of the first project; the second one has many of the first day."""
    source = Random(1)
    of_busy, of_gone = secrets[:: size.projects], secrets[1 :: size.projects]
    worker, old = new_id(), size.requests // _DAYS
    for number in range(size.requests):
        owners = of_busy if number % 4 == 0 else of_gone if number < old and number % 4 < 3 else secrets
        token_id, project_id = owners[source.randrange(len(owners))]
        at = now - _SPAN + _SPAN * number / size.requests
        duration = source.randrange(20_000, 20_000_000)
        failed = number % 50 == 3
        model = RARE_MODEL if number % 10_000 == 5 else MODELS[number % len(MODELS)]
        team, feature = f"team {number % 19}", f"feature {number % 211}"
        yield SettledRequest.of(
            {
                "id": f"{first_id(at)}-7{number & 0xFFF:03x}-8000-{number:012x}",
                "worker_id": worker,
                "token_id": token_id,
                "project_id": project_id,
                "provider": "anthropic" if model.startswith("claude") else "openai",
                "method": "POST",
                "path": "/v1/chat/completions",
                "admitted_at": at,
                "settled_at": at + timedelta(microseconds=duration),
                "outcome": "rejected" if failed else "ok",
                "status": 429 if failed else 200,
                "model": model,
                "requested_model": model,
                "duration_us": duration,
                "input_tokens": source.randrange(10, 5000),
                "output_tokens": source.randrange(1, 1000),
                "cost_nanousd": source.randrange(1, 10_000_000),
                "provider_request_id": f"req_{number}",
                "labels": {"team": team, "feature": feature},
                "summed_labels": {"team": team},
            }
        )


def _settle(connection: Connection, rows: Sequence[SettledRequest]) -> None:
    _insert_requests(connection, [row.values() for row in rows])
    ledger.roll_up(connection, rows)


def _sum_up(database: Database) -> None:
    """Write the daily sums, as the pruning worker does."""
    database.write_now(daily.mark)
    long_ago = update(usage_days).values(marked_at=datetime(2020, 1, 1, tzinfo=UTC))
    database.write_now(lambda connection: connection.execute(long_ago).close())
    for day, marked_at in database.read_now(daily.waiting):
        totals: dict[tuple[Any, ...], dict[str, Any]] = {}
        last = ""
        while ids := database.read_now(daily.project_ids, last, _PROJECTS):
            daily.merge(totals, database.write_now(daily.sum_up, day, ids))
            last = ids[-1]
        database.write_now(daily.finish, day, marked_at, list(totals.values()))
