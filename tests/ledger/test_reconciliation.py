"""What was spooled gets into the books once, whatever is there already. On every database."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from db.database import Database
from db.queries import ledger as books
from db.queries import projects, tokens
from db.records import Reservation, Result, Token
from llm_proxy.identifiers import new_id, request_id
from llm_proxy.ledger.outage.reconciliation import Spooled, enter, spooled
from llm_proxy.ledger.outage.spool_lines import Admitted, Contents, Settled
from llm_proxy.ledger.transaction import AdmissionRequest, Grant, Settlement, transact
from tests.db.queries.books import a_project, a_token
from tests.ledger.test_transaction import counter, granted, rolled_up, rows

WORKER = new_id()


@pytest.fixture
def token(database: Database) -> Token:
    project = a_project()
    database.write_now(projects.create, project)
    made = a_token(project.id, max_requests=1)
    database.write_now(tokens.create, made)
    return made


def now() -> datetime:
    return datetime.now(UTC)


def a_grant(token: Token) -> Grant:
    reservation = Reservation(request_id(), WORKER, token.id, token.project_id, "openai", "POST", "/v1/x", now())
    return Grant(reservation, token.digest, "sealed", token, 1)


def spool(grant: Grant, result: Result | None) -> Spooled:
    return Spooled(grant.reservation, grant.digest, None if result is None else Settlement.of(grant, result))


def bring(database: Database, *requests: Spooled) -> None:
    database.write_now(enter, requests, WORKER, now())
    assert database.read_now(books.verify) == []


OK = Result(outcome="ok", status=200, model="m", input_tokens=7)


def test_requests_that_are_brought_twice_are_there_once(database: Database, token: Token) -> None:
    requests = [
        spool(a_grant(token), result)
        for result in (OK, OK, Result(outcome="client_closed"), Result(outcome="void"), None)
    ]
    for _ in range(2):
        bring(database, *requests)
        assert rows(database) == (1, {"ok": 2, "client_closed": 1, "void": 1})
        assert counter(database, token) == 4, "the limit of the token does not matter here"
        assert rolled_up(database) == [("", 1, 0, 0), ("m", 2, 0, 14)]
    bring(database, *requests[2:])
    assert counter(database, token) == 4


def test_one_that_ends_after_it_was_brought_is_settled(database: Database, token: Token) -> None:
    grant = a_grant(token)
    bring(database, spool(grant, None))
    assert (rows(database), counter(database, token)) == ((1, {}), 1)
    bring(database, spool(grant, OK))
    assert (rows(database), counter(database, token)) == ((0, {"ok": 1}), 1)


@pytest.mark.parametrize("result", [OK, Result(outcome="void"), None])
def test_one_that_was_swept_meanwhile_is_as_it_was_spooled(
    database: Database, token: Token, result: Result | None
) -> None:
    grant = a_grant(token)
    bring(database, spool(grant, None))
    database.write_now(books.sweep, [grant.reservation.id], now())
    bring(database, spool(grant, result))
    outcome = "unknown" if result is None else result.outcome
    assert rows(database) == (0, {outcome: 1})
    assert counter(database, token) == (outcome != "void")


def test_one_that_the_ledger_itself_has_is_not_counted_again(database: Database, token: Token) -> None:
    application = AdmissionRequest(request_id(), token.digest, None, "POST", "/v1/x", lambda _name: None)
    (grant,) = granted(database.write_now(transact, WORKER, [application], [], now()))
    bring(database, spool(grant, OK))
    assert (rows(database), counter(database, token)) == ((0, {"ok": 1}), 1)


@pytest.mark.parametrize("later", [True, False])
def test_the_last_use_of_a_token_never_goes_back(database: Database, token: Token, later: bool) -> None:
    old, new = a_grant(token), a_grant(token)
    for grant in (old, new) if later else (new, old):
        bring(database, spool(grant, OK))
    found = database.read_now(tokens.get, token.id)
    assert found is not None
    assert found.last_used_at == new.reservation.admitted_at


def _admission(contents: Contents, grant: Grant) -> None:
    contents.add(Admitted(grant.reservation, grant.digest))


def _settlement(contents: Contents, grant: Grant) -> None:
    contents.add(Settled(Settlement.of(grant, OK).row, grant.digest))


@pytest.mark.parametrize(
    ("lines", "found"),
    [([_admission], (1, {})), ([_admission, _settlement], (0, {"ok": 1})), ([_settlement], (0, {"ok": 1}))],
)
def test_what_a_spool_says_is_what_is_brought(
    database: Database,
    token: Token,
    lines: list[Callable[[Contents, Grant], None]],
    found: tuple[int, dict[str, int]],
) -> None:
    contents, grant = Contents(), a_grant(token)
    for line in lines:
        line(contents, grant)
    bring(database, *spooled(contents))
    assert (rows(database), counter(database, token)) == (found, 1)
