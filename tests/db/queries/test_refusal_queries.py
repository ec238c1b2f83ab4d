from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from db.database import Database, opened
from db.options import Options
from db.queries import refusals
from db.queries.refusals import Filter
from db.queries.rows import first_id
from db.records import RefusedRequest
from tests.databases.scratch import Scratch
from tests.db.queries.factories import NOON, a_refusal


def at(minute: int, **fields: object) -> RefusedRequest:
    time = NOON + timedelta(minutes=minute)
    return a_refusal(id=f"{first_id(time)}-7000-8000-00000000000{minute}", refused_at=time, **fields)


ROWS = [
    at(0, model="größe 日本", path="/v1/\ufffd'\"", address="2001:db8:ffff:ffff:ffff:ffff:192.0.2.128"),
    at(1, token_id="", project_id="", code="token_invalid", status=401),
    at(2, token_id="t-2"),
    at(3, code="token_expired"),
]


@pytest.fixture
def database(migrated_database: Scratch) -> Iterator[Database]:
    with opened(migrated_database.target, Options()) as database:
        database.write_now(refusals.create, ROWS)
        yield database
        assert database.connections.in_use == 0


def test_refusals_are_listed_by_page_and_filter(database: Database) -> None:
    for wanted, places in (
        (Filter(), [3, 2, 1, 0]),
        (Filter(token_id="t-1"), [3, 0]),
        (Filter(project_id="p-1"), [3, 2, 0]),
        (Filter(code="token_invalid"), [1]),
        (Filter(project_id="p-1", code="token_expired"), [3]),
        (Filter(since=ROWS[1].refused_at, until=ROWS[3].refused_at), [2, 1]),
    ):
        assert database.read_now(refusals.page, 10, None, wanted) == ([ROWS[place] for place in places], None), wanted
    first, after = database.read_now(refusals.page, 1, None, Filter(token_id="t-1"))
    assert first == [ROWS[3]]
    assert database.read_now(refusals.page, 1, after, Filter(token_id="t-1")) == ([ROWS[0]], None)


def test_a_refusal_is_written_once(database: Database) -> None:
    database.write_now(refusals.create, [ROWS[0], at(4)])
    assert database.read_now(refusals.page, 10, None, Filter())[0] == [at(4), *reversed(ROWS)]


def test_old_refusals_are_pruned_in_pieces(database: Database) -> None:
    assert database.write_now(refusals.prune, ROWS[3].refused_at, 2) == 2
    assert database.write_now(refusals.prune, ROWS[3].refused_at, 2) == 1
    assert database.read_now(refusals.page, 10, None, Filter()) == ([ROWS[3]], None)
