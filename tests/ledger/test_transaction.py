"""The shared transaction: decisions, exact limits, and a ledger that adds up afterwards."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
import trio
from sqlalchemy import func, select

from db import Connection
from db.database import Database
from db.queries import credentials, projects, tokens
from db.queries import ledger as queries
from db.records import DETAIL_SUMS, Outcome, Project, Result, Token, Worker
from db.schema import in_flight, requests, usage_hourly
from llm_proxy.errors import (
    CredentialInactive,
    CredentialMissing,
    EndpointNotAllowed,
    ProjectInactive,
    ProxyError,
    RequestLimitExceeded,
    TokenExpired,
    TokenInactive,
    TokenInvalid,
)
from llm_proxy.identifiers import new_id, request_id
from llm_proxy.ledger.transaction import AdmissionRequest, Decision, Grant, Settlement, transact
from llm_proxy.tokens import digest
from tests.databases.kinds import SERVERS, on
from tests.databases.sent import sent_from_now_on, trips_from_now_on
from tests.db.queries.factories import a_credential, a_project, a_token, to_default

WORKER = new_id()


def now() -> datetime:
    return datetime.now(UTC)


def apply(token: Token | bytes, *, provider: str | None = None, refusal: ProxyError | None = None) -> AdmissionRequest:
    digest = token if isinstance(token, bytes) else token.digest
    chosen = to_default if provider is None else lambda _: provider
    return AdmissionRequest(request_id(), digest, chosen, "POST", "/v1/chat/completions", lambda _name: refusal)


def admit(database: Database, *applications: AdmissionRequest) -> list[Decision]:
    return database.write_now(transact, WORKER, applications, [], now())


def settle(database: Database, *settlements: Settlement, doubtful: bool = False) -> None:
    database.write_now(partial(transact, doubtful=doubtful), WORKER, [], settlements, now())


def granted(decisions: list[Decision]) -> list[Grant]:
    return [decision for decision in decisions if isinstance(decision, Grant)]


def counter(database: Database, token: Token) -> int:
    found = database.read_now(tokens.get, token.id)
    assert found is not None
    return found.request_count


def rows(database: Database) -> tuple[int, dict[str, int]]:
    """Open reservations, and settled rows by outcome."""

    def read(connection: Connection) -> tuple[int, dict[str, int]]:
        outcomes = connection.scalars(select(requests.c.outcome))
        return len(connection.execute(select(in_flight.c.id)).all()), dict(Counter(outcomes))

    return database.read_now(read)


def rolled_up(database: Database) -> list[tuple[str, int, int, int]]:
    sums = usage_hourly.c
    model = func.coalesce(sums.answered_model, sums.model)
    query = select(model, sums.requests, sums.errors, sums.input_tokens).order_by(model)
    return [tuple(row) for row in database.read_now(lambda connection: connection.execute(query).all())]


@pytest.fixture
def project(database: Database) -> Project:
    made = a_project(api_key="enc:v2:0:sealed")
    database.write_now(projects.create, made)
    return made


@pytest.fixture
def token(database: Database, project: Project) -> Token:
    return new_token(database, project)


def new_token(database: Database, project: Project, **fields: object) -> Token:
    made = a_token(project.id, **fields)
    database.write_now(tokens.create, made)
    return made


def test_admission_reserves_and_counts(database: Database, project: Project, token: Token) -> None:
    (decision,) = admit(database, application := apply(token))
    assert isinstance(decision, Grant)
    assert decision.reservation.id == application.id
    assert (decision.reservation.provider, decision.key.sealed) == (project.provider, project.api_key)
    assert counter(database, token) == 1
    assert rows(database) == (1, {})
    assert database.read_now(queries.verify) == []


@on(*SERVERS)
def test_an_admission_with_a_settlement_takes_four_round_trips(
    database: Database, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    (before,) = granted(admit(database, apply(token)))
    trio.run(database.write_unless_locked, queries.beat, Worker(WORKER, "host", 1, "0", now(), now()))
    trips = trips_from_now_on(monkeypatch)
    settlement = Settlement.of(before, Result(outcome="ok", status=200))
    work = partial(transact, worker_id=WORKER, requests=[apply(token)], settlements=[settlement], now=now())
    trio.run(database.write_unless_locked, work)
    assert len(trips) == 4
    assert rows(database) == (1, {"ok": 1})
    assert counter(database, token) == 2


def test_settlement_moves_the_reservation(database: Database, token: Token) -> None:
    (grant,) = granted(admit(database, apply(token)))
    settle(database, Settlement.of(grant, Result(outcome="ok", status=200, model="m", input_tokens=7)))
    assert rows(database) == (0, {"ok": 1})
    assert rolled_up(database) == [("m", 1, 0, 7)]
    assert database.read_now(queries.verify) == []


@pytest.mark.parametrize(
    ("outcome", "errors", "client_closed"),
    [
        ("ok", 0, 0),
        ("rejected", 1, 0),
        ("client_closed", 0, 1),
        ("upstream_error", 1, 0),
        ("upstream_timeout", 1, 0),
        ("proxy_error", 1, 0),
        ("unknown", 1, 0),
    ],
)
def test_hourly_sums_tell_errors_from_clients_that_left(
    database: Database, token: Token, outcome: Outcome, errors: int, client_closed: int
) -> None:
    (grant,) = granted(admit(database, apply(token)))
    settle(database, Settlement.of(grant, Result(outcome=outcome)))
    sums = select(usage_hourly.c.requests, usage_hourly.c.errors, usage_hourly.c.client_closed)
    assert database.read_now(lambda connection: connection.execute(sums).all()) == [(1, errors, client_closed)]


def test_hourly_sums_have_details_of_usage(database: Database, token: Token) -> None:
    details = {name: place for place, name in enumerate(DETAIL_SUMS, start=1)}
    for found in (details | {"images": 9}, None, {"images": 9}, {"web_searches": 10}):
        (grant,) = granted(admit(database, apply(token)))
        settle(database, Settlement.of(grant, Result(outcome="ok", usage_details=found)))
    sums = select(*(usage_hourly.c[name] for name in DETAIL_SUMS))
    assert database.read_now(lambda connection: connection.execute(sums).all()) == [(1, 2, 3, 4, 15)]


def test_models_are_told_apart_by_every_code_point(database: Database, token: Token) -> None:
    models = ["abc", "ABC", "Abc", "\u00e0bc", "a\u0300bc", "ab", "ab\u00df", "abss"]
    for model in models:
        (grant,) = granted(admit(database, apply(token)))
        settle(database, Settlement.of(grant, Result(outcome="ok", model=model)))
    sums = select(usage_hourly.c.model, usage_hourly.c.requests)
    found = database.read_now(lambda connection: connection.execute(sums).all())
    assert sorted(found) == sorted((model, 1) for model in models)
    assert database.read_now(queries.verify) == []


@pytest.mark.parametrize("model", ["abc ", " abc", "\tabc\u3000", "abc\n"])
def test_a_model_has_no_space_at_its_ends(database: Database, token: Token, model: str) -> None:
    for name in ("abc", model):
        (grant,) = granted(admit(database, apply(token)))
        settle(database, Settlement.of(grant, Result(outcome="ok", model=name)))
    sums = select(usage_hourly.c.model, usage_hourly.c.requests)
    assert database.read_now(lambda connection: connection.execute(sums).all()) == [("abc", 2)]
    assert set(database.read_now(lambda connection: connection.scalars(select(requests.c.model)).all())) == {"abc"}


def test_a_settled_row_keeps_the_providers_id_and_whether_usage_was_readable(database: Database, token: Token) -> None:
    (grant,) = granted(admit(database, apply(token)))
    settle(database, Settlement.of(grant, Result(outcome="ok", unmetered=True, provider_request_id="req_1")))
    kept = select(requests.c.unmetered, requests.c.provider_request_id)
    assert database.read_now(lambda connection: connection.execute(kept).all()) == [(True, "req_1")]


def test_void_gives_the_count_back(database: Database, token: Token) -> None:
    (grant,) = granted(admit(database, apply(token)))
    settle(database, Settlement.of(grant, Result(outcome="void")))
    assert counter(database, token) == 0
    assert rows(database) == (0, {"void": 1})
    assert rolled_up(database) == []
    assert database.read_now(queries.verify) == []


@pytest.mark.parametrize("batches", [1, 3])
def test_a_limit_is_exact_within_and_across_batches(database: Database, project: Project, batches: int) -> None:
    token = new_token(database, project, max_requests=10)
    decisions = [decision for _ in range(batches) for decision in admit(database, *(apply(token) for _ in range(12)))]
    assert len(granted(decisions)) == 10
    assert isinstance(decisions[10], RequestLimitExceeded)
    assert counter(database, token) == 10


def test_a_limit_is_decided_in_order_of_arrival(database: Database, project: Project) -> None:
    token, other = new_token(database, project, max_requests=1), new_token(database, project)
    decisions = admit(database, apply(other), apply(token), apply(token), apply(other))
    assert [isinstance(decision, Grant) for decision in decisions] == [True, True, False, True]
    assert (counter(database, token), counter(database, other)) == (1, 2)


def test_a_void_in_the_same_transaction_makes_room(database: Database, project: Project) -> None:
    token = new_token(database, project, max_requests=1)
    (grant,) = granted(admit(database, apply(token)))
    void = Settlement.of(grant, Result(outcome="void"))
    (decision,) = database.write_now(transact, WORKER, [apply(token)], [void], now())
    assert isinstance(decision, Grant)
    assert counter(database, token) == 1


def test_what_does_not_open(database: Database, project: Project) -> None:
    idle = a_project(active=False)
    database.write_now(projects.create, idle)
    past = now() - timedelta(seconds=1)
    cases: list[tuple[AdmissionRequest, type[ProxyError]]] = [
        (apply(bytes(32)), TokenInvalid),
        (apply(new_token(database, project, active=False)), TokenInactive),
        (apply(new_token(database, project, expires_at=past)), TokenExpired),
        (apply(new_token(database, idle)), ProjectInactive),
        (apply(new_token(database, project), provider="another"), CredentialMissing),
        (apply(new_token(database, project), refusal=EndpointNotAllowed()), EndpointNotAllowed),
        # From the token outwards: a dead token gets no information about its project.
        (apply(new_token(database, idle, active=False, expires_at=past)), TokenInactive),
    ]
    decisions = admit(database, *(application for application, _ in cases))
    assert [type(decision) for decision in decisions] == [expected for _, expected in cases]
    assert rows(database) == (0, {})


def test_each_provider_gets_its_own_credential(database: Database, project: Project, token: Token) -> None:
    usual, other = a_credential(api_key="copied"), a_credential(provider="anthropic", api_key="anthropic's")

    def add(connection: Connection) -> None:
        for credential in (usual, other):
            credentials.create(connection, credential)
        credentials.assign(connection, project.id, (usual, other))

    database.write_now(add)
    decisions = granted(admit(database, apply(token), apply(token, provider="anthropic")))

    assert [decision.reservation.provider for decision in decisions] == ["openai", "anthropic"]
    assert [(decision.key.owner, decision.key.sealed) for decision in decisions] == [
        (project.id, project.api_key),
        (other.id, other.api_key),
    ]
    assert counter(database, token) == 2

    def deactivate(connection: Connection) -> None:
        for credential in (usual, other):
            credentials.change(connection, credential, {"active": False}, now())

    database.write_now(deactivate)
    refused = admit(database, apply(token), apply(token, provider="anthropic"))
    assert [type(decision) for decision in refused] == [CredentialInactive, CredentialInactive]
    assert counter(database, token) == 2


def test_a_swept_request_that_settles_after_all_replaces_unknown(database: Database, token: Token) -> None:
    (grant,) = granted(admit(database, apply(token)))
    swept = database.write_now(lambda connection: queries.sweep(connection, [grant.reservation.id], now()))
    assert swept == 1
    assert rows(database) == (0, {"unknown": 1})
    assert rolled_up(database) == [("", 1, 1, 0)]
    late = Settlement.of(grant, Result(outcome="ok", status=200, model="m", input_tokens=3))
    with pytest.raises(queries.ReservationsMissing):
        settle(database, late)
    settle(database, late, doubtful=True)
    assert rows(database) == (0, {"ok": 1})
    assert rolled_up(database) == [("", 0, 0, 0), ("m", 1, 0, 3)]
    assert database.read_now(queries.verify) == []


def test_a_swept_void_gives_its_count_back_late(database: Database, token: Token) -> None:
    (grant,) = granted(admit(database, apply(token)))
    database.write_now(queries.sweep, [grant.reservation.id], now())
    settle(database, Settlement.of(grant, Result(outcome="void")), doubtful=True)
    assert counter(database, token) == 0
    assert database.read_now(queries.verify) == []


def test_a_void_gives_its_count_back_to_a_token_that_has_a_new_secret(database: Database, token: Token) -> None:
    (grant,) = granted(admit(database, apply(token)))
    database.write_now(tokens.rotate, token, digest("another"), "0000", now())
    settle(database, Settlement.of(grant, Result(outcome="void")))
    assert counter(database, token) == 0
    assert database.read_now(queries.verify) == []


def test_settling_twice_changes_nothing(database: Database, token: Token) -> None:
    (grant,) = granted(admit(database, apply(token)))
    settlement = Settlement.of(grant, Result(outcome="ok", status=200))
    settle(database, settlement)
    settle(database, settlement, doubtful=True)
    assert rows(database) == (0, {"ok": 1})
    assert database.read_now(queries.verify) == []


def test_an_admission_of_unknown_fate_is_given_back_if_it_exists(database: Database, token: Token) -> None:
    (grant,) = granted(admit(database, apply(token)))
    assert database.write_now(queries.give_back, [grant.reservation.id, request_id()], now()) == 1
    assert counter(database, token) == 0
    assert rows(database) == (0, {"void": 1})
    assert database.read_now(queries.verify) == []


def test_orphans_are_those_of_silent_workers(database: Database, token: Token) -> None:
    admit(database, apply(token))
    live = Worker(new_id(), "host", 1, "0", now(), now())
    database_time = database.write_now(queries.beat, live)
    orphans = database.read_now(queries.find_orphans, database_time, timedelta(seconds=20), 10)
    assert len(orphans) == 1, "the worker of this reservation has never been seen"
    assert database.write_now(queries.sweep, orphans, database_time) == 1
    assert database.read_now(queries.find_orphans, database_time, timedelta(seconds=20), 10) == []
    assert database.read_now(queries.verify) == []
    database.write_now(queries.forget_dead_workers, database_time, timedelta(seconds=20))
    assert [worker.id for worker in database.read_now(queries.list_workers)] == [live.id]
    database.write_now(queries.retire, live.id)
    assert database.read_now(queries.list_workers) == []


def test_verify_names_each_kind_of_difference(database: Database, token: Token) -> None:
    (grant,) = granted(admit(database, apply(token)))
    settle(database, Settlement.of(grant, Result(outcome="ok", status=200)))
    database.write_now(queries.add_to_counters, {token.id: 1}, None)
    (difference,) = database.read_now(queries.verify)
    assert difference == queries.Imbalance(token.id, counter=2, settled=1, rolled_up=1, in_flight=0)


@pytest.mark.parametrize("size", [1, 40])
def test_statements_do_not_grow_with_the_batch(database: Database, project: Project, size: int) -> None:
    made = [new_token(database, project) for _ in range(size)]
    first = granted(admit(database, *(apply(token) for token in made)))
    statements: list[str] = []

    def run(connection: Connection) -> None:
        nonlocal statements
        statements = sent_from_now_on(connection)
        asked = [apply(token) for token in made]
        settlements = [Settlement.of(grant, Result(outcome="ok", status=200)) for grant in first]
        transact(connection, WORKER, asked, settlements, now())

    database.write_now(run)
    assert len(statements) == 7, statements
