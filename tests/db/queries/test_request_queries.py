from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Connection, event, insert

from db.database import Database, opened
from db.dsn import Target
from db.options import Options
from db.queries import requests
from db.queries import rows as listing
from db.queries.requests import Filter
from db.queries.rows import first_id
from db.records import SettledRequest
from db.schema import requests as table
from tests.databases.kinds import on
from tests.db.queries.factories import a_project, a_settled_request, a_token

TOKEN = a_token(a_project().id)
SIBLING = a_token(TOKEN.project_id)
FOREIGN = a_token(a_project().id)

#: In the order of admission.
ROWS = [
    a_settled_request(TOKEN),
    a_settled_request(SIBLING, outcome="client_closed", status=None, first_byte_us=None),
    a_settled_request(FOREIGN, path="/v1/" + "é" * 500, model="mödel", streamed=True),
    a_settled_request(TOKEN, outcome="unknown", status=None, duration_us=None, input_tokens=None),
]


def write(connection: Connection) -> None:
    connection.execute(insert(table), [row.by_column() for row in ROWS])


@pytest.fixture
def database(migrated_target: Target) -> Iterator[Database]:
    with opened(migrated_target, Options()) as database:
        database.write_now(write)
        yield database
        assert database.connections.in_use == 0


def test_pages_go_from_the_newest_to_the_oldest(database: Database) -> None:
    found: list[SettledRequest] = []
    after: str | None = None
    for _ in range(10):
        page, after = database.read_now(requests.page, 3, after, Filter())
        found += page
        if after is None:
            break
    assert found == ROWS[::-1]


@pytest.mark.parametrize(
    ("wanted", "places"),
    [
        (Filter(project_id=TOKEN.project_id), [3, 1, 0]),
        (Filter(token_id=TOKEN.id), [3, 0]),
        (Filter(token_id=TOKEN.id, project_id=FOREIGN.project_id), []),
        (Filter(outcome="unknown"), [3]),
        (Filter(outcome="ok", project_id=TOKEN.project_id), [0]),
        (Filter(outcome="OK"), []),
    ],
    ids=["a project", "a token", "a token of another project", "an outcome", "both", "another case"],
)
def test_filters_narrow_down(database: Database, wanted: Filter, places: list[int]) -> None:
    assert database.read_now(requests.page, 10, None, wanted) == ([ROWS[place] for place in places], None)


def at(number: int, **fields: Any) -> SettledRequest:
    """A request of the minute of this number, after all others."""
    time = datetime(2027, 6, 1, 0, number, tzinfo=UTC)
    return a_settled_request(TOKEN, id=f"{first_id(time)}-7000-8000-{number:012x}", admitted_at=time, **fields)


def test_further_filters_narrow_down(database: Database) -> None:
    labels = [{"team": "a%b", "user": 'q"\\é'}, {"team": "axb"}, {"Team": "a%b"}, None]
    rows = [
        at(number, labels=labels[number], model="gG"[number % 2], status=200 + number, provider_request_id=f"r{number}")
        for number in range(4)
    ]
    database.write_now(lambda connection: connection.execute(insert(table), [row.by_column() for row in rows]).close())
    minutes = [row.reservation.admitted_at for row in rows]
    for wanted, places in (
        (Filter(id=rows[2].id), [2]),
        (Filter(id=rows[2].id, token_id=SIBLING.id), []),
        (Filter(provider_request_id="r1"), [1]),
        (Filter(provider_request_id="R1"), []),
        (Filter(model="g"), [2, 0]),
        (Filter(model="g", status=202), [2]),
        (Filter(status=203, token_id=TOKEN.id), [3]),
        (Filter(since=minutes[1]), [3, 2, 1]),
        (Filter(since=minutes[1], until=minutes[3], project_id=TOKEN.project_id), [2, 1]),
        (Filter(labels={"team": "a%b"}), [0]),
        (Filter(labels={"team": "a%b", "user": 'q"\\é'}), [0]),
        (Filter(labels={"user": "q"}), []),
        (Filter(labels={"team": "axb"}, outcome="ok"), [1]),
    ):
        assert database.read_now(requests.page, 10, None, wanted) == ([rows[place] for place in places], None), wanted


def test_a_page_examines_a_bounded_number_of_rows(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [at(number, status=201 if number in (0, 8) else 200) for number in range(10)]
    database.write_now(lambda connection: connection.execute(insert(table), [row.by_column() for row in rows]).close())
    monkeypatch.setattr(listing, "EXAMINED", 4)
    found: list[list[str]] = []
    after: str | None = None
    for _ in range(10):
        page, after = database.read_now(requests.page, 1, after, Filter(status=201, token_id=TOKEN.id))
        found.append([row.id for row in page])
        if after is None:
            break
    assert found[:3] == [[rows[8].id], [], [rows[0].id]]
    assert after is None


def test_filters_hold_on_every_page(database: Database) -> None:
    assert database.read_now(requests.page, 1, ROWS[3].id, Filter(token_id=TOKEN.id)) == ([ROWS[0]], None)


def test_a_request_is_found_by_its_own_id_before_the_providers(database: Database) -> None:
    database.write_now(
        lambda connection: connection.execute(
            insert(table),
            [
                a_settled_request(TOKEN, id=number * 8 + ROWS[0].id[8:], provider_request_id=identity).by_column()
                for number, identity in (("1", "req_1"), ("2", "Req_1"), ("3", "req_1"), ("4", ROWS[0].id), ("5", None))
            ],
        )
    )
    found = {
        identity: request and request.id[:8]
        for identity in ("req_1", "Req_1", "REQ_1", ROWS[0].id, ROWS[0].id.upper(), "")
        for request in [database.read_now(requests.find, identity)]
    }
    own = ROWS[0].id[:8]
    assert found == {
        "req_1": "3" * 8,
        "Req_1": "2" * 8,
        "REQ_1": None,
        ROWS[0].id: own,
        ROWS[0].id.upper(): own,
        "": None,
    }


def test_a_provider_id_finds_failed_requests_and_the_newest_others(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        a_settled_request(TOKEN, id="1" * 8 + ROWS[0].id[8:], provider_request_id="both", outcome="rejected"),
        a_settled_request(TOKEN, id="2" * 8 + ROWS[0].id[8:], provider_request_id="both"),
        a_settled_request(TOKEN, id="3" * 8 + ROWS[0].id[8:], provider_request_id="old"),
        a_settled_request(TOKEN, id="4" * 8 + ROWS[0].id[8:], provider_request_id="recent"),
        a_settled_request(TOKEN, id="5" * 8 + ROWS[0].id[8:]),
    ]
    database.write_now(
        lambda connection: connection.execute(insert(table), [row.by_column() for row in rows]),
    )
    assert database.read_now(requests.find, "old") == rows[2]
    monkeypatch.setattr(requests, "SEARCHED", 2)
    assert database.read_now(requests.find, "recent") == rows[3]
    assert database.read_now(requests.find, "old") is None
    assert database.read_now(requests.find, "both") == rows[0]


@on("sqlite")
@pytest.mark.parametrize(
    ("look", "index"),
    [
        (lambda connection: requests.page(connection, 10, None, Filter(outcome="void")), "ix_requests_outcome_id"),
        (lambda connection: requests.page(connection, 10, "x", Filter(outcome="void")), "ix_requests_outcome_id"),
        (lambda connection: requests.page(connection, 10, None, Filter(token_id="t")), "ix_requests_token_id_id"),
        (lambda connection: requests.page(connection, 10, None, Filter(project_id="p")), "ix_requests_project_id_id"),
        (lambda connection: requests.find(connection, "req_1"), "ix_requests_provider_request_id_id"),
    ],
)
def test_rows_are_found_by_an_index_in_its_order(
    database: Database, look: Callable[[Connection], object], index: str
) -> None:
    def plan(connection: Connection) -> list[str]:
        statements: list[tuple[str, Any]] = []
        event.listen(
            connection, "before_cursor_execute", lambda _c, _u, text, values, *_: statements.append((text, values))
        )
        look(connection)
        # An id that is the provider's is searched in the second statement; the third reads row after row.
        text, values = statements[1] if len(statements) > 1 else statements[0]
        return [row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values)]

    (step,) = database.read_now(plan)
    assert f"USING INDEX {index} " in step
