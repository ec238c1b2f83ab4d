"""Spooled requests are in the ledger once, whatever is there already. On every database."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import groupby
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from db import Connection
from db.database import Database
from db.queries import counters, projects, tokens
from db.queries import ledger as queries
from db.queries import limits as limit_queries
from db.queries.counters import CounterProof
from db.queries.rows import first_id
from db.records import UNKNOWN, VOID, Limit, Period, Reservation, Result, Token
from llm_proxy.identifiers import new_id, request_id, request_id_beside
from llm_proxy.ledger.outage.replay import decode, write_spooled
from llm_proxy.ledger.transaction import AdmissionRequest, Grant, Settlement, transact
from llm_proxy.limits import started_at
from tests.databases.sent import sent_from_now_on
from tests.db.queries.factories import a_project, a_token, an_account, to_default
from tests.ledger import test_limits
from tests.ledger.test_limits import state
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
    reservation = Reservation(request_id(), WORKER, token.id, token.project_id, "openai", "POST", "/v1/x", now(), {})
    return Grant(reservation, token.digest, an_account(a_project()), token, 1)


def replay(database: Database, *spooled: Settlement) -> None:
    database.write_now(write_spooled, spooled, WORKER, now())
    assert database.read_now(queries.verify) == []


OK = Result(outcome="ok", status=200, model="m", input_tokens=7)


def test_requests_that_are_replayed_twice_are_there_once(database: Database, token: Token) -> None:
    requests = [
        Settlement.of(a_grant(token), result) for result in (OK, OK, Result(outcome="client_closed"), VOID, UNKNOWN)
    ]
    for _ in range(2):
        replay(database, *requests)
        assert rows(database) == (1, {"ok": 2, "client_closed": 1, "void": 1})
        assert counter(database, token) == 4, "the limit of the token does not matter here"
        assert rolled_up(database) == [("", 1, 0, 0), ("m", 2, 0, 14)]
    replay(database, *requests[2:])
    assert counter(database, token) == 4


def test_a_request_that_ends_after_its_replay_is_settled(database: Database, token: Token) -> None:
    grant = a_grant(token)
    replay(database, Settlement.of(grant, UNKNOWN))
    assert (rows(database), counter(database, token)) == ((1, {}), 1)
    replay(database, Settlement.of(grant, OK))
    assert (rows(database), counter(database, token)) == ((0, {"ok": 1}), 1)


@pytest.mark.parametrize("result", [OK, VOID, UNKNOWN])
def test_a_request_that_was_swept_meanwhile_gets_its_spooled_result(
    database: Database, token: Token, result: Result
) -> None:
    grant = a_grant(token)
    replay(database, Settlement.of(grant, UNKNOWN))
    database.write_now(queries.sweep, [grant.reservation.id], now())
    replay(database, Settlement.of(grant, result))
    assert rows(database) == (0, {result.outcome: 1})
    assert counter(database, token) == (result.outcome != "void")


def test_a_request_that_the_ledger_admitted_is_not_counted_again(database: Database, token: Token) -> None:
    request = AdmissionRequest(request_id(), token.digest, to_default, "POST", "/v1/x", lambda _name: None)
    (grant,) = granted(database.write_now(transact, WORKER, [request], [], now()))
    replay(database, Settlement.of(grant, OK))
    assert (rows(database), counter(database, token)) == ((0, {"ok": 1}), 1)


@pytest.mark.parametrize("later", [True, False])
def test_the_last_use_of_a_token_never_goes_back(database: Database, token: Token, later: bool) -> None:
    old, new = a_grant(token), a_grant(token)
    for grant in (old, new) if later else (new, old):
        replay(database, Settlement.of(grant, OK))
    found = database.read_now(tokens.get, token.id)
    assert found is not None
    assert found.last_used_at == new.reservation.admitted_at


@pytest.mark.parametrize(
    ("results", "found"),
    [([UNKNOWN], (1, {})), ([UNKNOWN, OK], (0, {"ok": 1})), ([OK], (0, {"ok": 1}))],
)
def test_the_records_of_a_spool_are_one_request(
    database: Database, token: Token, results: list[Result], found: tuple[int, dict[str, int]]
) -> None:
    grant = a_grant(token)
    records = [msgspec.json.encode(Settlement.of(grant, result)) for result in results]
    spooled, damaged = decode(records)
    assert not damaged
    replay(database, *spooled)
    assert (rows(database), counter(database, token)) == (found, 1)


def test_a_record_has_the_digest_and_nothing_else_of_the_token(token: Token) -> None:
    text = msgspec.json.encode(Settlement.of(a_grant(token), OK))
    assert b"sealed" not in text
    assert token.last4.encode() not in text.replace(token.id.encode(), b"")
    assert decode([text])[0][0].digest == token.digest


def limited(database: Database, token: Token, **fields: Any) -> Limit:
    return test_limits.limited(database, token, "project", **{"created_at": now(), "amount": 1, **fields})


def prove(database: Database) -> None:
    assert database.read_now(counters.prove, started_at) == CounterProof()


@pytest.mark.parametrize("period", ["total", "hour"])
def test_replayed_requests_are_charged_to_the_windows_of_their_admission(
    database: Database, token: Token, period: Period
) -> None:
    requests = limited(database, token, period=period)
    budget = limited(database, token, period=period, metric="input_tokens")
    limited(database, token, period=period, models={"patterns": ["other*"]})
    earlier = now() - timedelta(hours=5)
    grants = [a_grant(token) for _ in range(4)]
    past = replace(grants[0], reservation=replace(grants[0].reservation, admitted_at=earlier))
    ok = replace(OK, requested_model="m")
    spooled = [
        Settlement.of(grant, result) for grant, result in zip((past, *grants[1:]), (ok, ok, VOID, UNKNOWN), strict=True)
    ]
    served = 1 if period == "hour" else 2
    for _ in range(2):
        replay(database, *spooled)
        prove(database)
        assert state(database, requests) == (served, 1, 0)
        assert state(database, budget) == (7 * served, 0, 0)
        key = limit_queries.counter_id(requests.id, started_at(period, earlier))
        assert database.read_now(limit_queries.read_counters, [key])[key].used == served
    # The one that was running ends: the database knows what it holds.
    ended = Settlement.of(grants[3], ok)
    database.write_now(partial(transact, doubtful=True), WORKER, [], [ended], now())
    prove(database)
    assert state(database, requests) == (served + 1, 0, 0)


@pytest.mark.parametrize(("hours", "used"), [(0, 1), (23, 1), (25, 0), (50, 0)])
def test_a_replayed_request_is_not_charged_to_a_limit_that_was_made_long_after_it(
    database: Database, token: Token, hours: int, used: int
) -> None:
    made = now()
    limit = limited(database, token, created_at=made)
    database.write_now(limit_queries.open_counter, limit_queries.counter_id(limit.id, None), 0)
    grant = a_grant(token)
    at = made - timedelta(hours=hours)
    past = replace(grant.reservation, id=request_id_beside(first_id(at)), admitted_at=at)
    replay(database, Settlement.of(replace(grant, reservation=past), OK))
    assert state(database, limit) == (used, 0, 0)
    prove(database)


def test_a_replay_locks_labels_then_tokens_then_counters_then_hourly_sums(database: Database, token: Token) -> None:
    limited(database, token)
    statements: list[str] = []

    def run(connection: Connection) -> None:
        nonlocal statements
        statements = sent_from_now_on(connection)
        labelled = replace(OK, summed_labels={"user": "alice"})
        spooled = [Settlement.of(a_grant(token), result) for result in (labelled, VOID, UNKNOWN)]
        write_spooled(connection, spooled, WORKER, now())

    database.write_now(run)
    changed = [found[1] for text in statements if (found := re.match(r"(?:INSERT INTO|UPDATE) (\w+)", text))]
    order = ("label_values", "tokens", "limit_counters", "usage_hourly")
    assert [table for table, _ in groupby(table for table in changed if table in order)] == list(order)


def test_what_a_request_holds_survives_the_spool(database: Database, token: Token) -> None:
    limit = limited(database, token)
    (grant,) = test_limits.grants(test_limits.admit(database, test_limits.apply(token)))
    (settlement,), damaged = decode([msgspec.json.encode(Settlement.of(grant, OK))])
    assert not damaged
    assert settlement.row.reservation.limits == grant.reservation.limits
    replay(database, settlement)
    prove(database)
    assert state(database, limit) == (1, 0, 0)


def test_a_replayed_request_whose_worker_dies_is_charged(database: Database, token: Token) -> None:
    limit = limited(database, token)
    grant = a_grant(token)
    replay(database, Settlement.of(grant, UNKNOWN))
    database.write_now(queries.sweep, [grant.reservation.id], now())
    prove(database)
    assert state(database, limit) == (1, 0, 1)
    replay(database, Settlement.of(grant, OK))
    prove(database)
    assert state(database, limit) == (1, 0, 0)
