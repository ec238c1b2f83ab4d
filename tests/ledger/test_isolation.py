"""Whose an object is, and who shares an account, in the shared transaction: on every database."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from sqlalchemy import select

from db import Connection
from db.database import Database
from db.queries import credentials, objects, projects, tokens
from db.records import UNKNOWN, Project, ProviderObject, Reservation, Result, Token
from db.schema import provider_objects
from llm_proxy.errors import (
    DatabaseUnavailable,
    ListNotIsolated,
    ObjectNotFound,
    Overloaded,
    ParameterNotAllowed,
    ProxyError,
)
from llm_proxy.identifiers import new_id, request_id
from llm_proxy.ledger import AdmissionRequest, Grant, Named, Settlement
from llm_proxy.ledger.outage.replay import write_spooled
from llm_proxy.ledger.outage.token_cache import OutageLimits, TokenCache
from llm_proxy.ledger.transaction import transact
from tests.databases.sent import sent_from_now_on
from tests.db.queries.factories import NOON, a_credential, a_project, a_token, an_account, to_default

WORKER = new_id()
OK = Result(outcome="ok", status=200)


def new_project(database: Database, **fields: Any) -> tuple[Project, Token]:
    project = a_project(**fields)
    token = a_token(project.id)
    database.write_now(projects.create, project)
    database.write_now(tokens.create, token)
    return project, token


def apply(token: Token, *ids: str, provider: str = "", **named: Any) -> AdmissionRequest:
    chosen = to_default if not provider else lambda _: provider
    what = Named(ids, **named)
    return AdmissionRequest(request_id(), token.digest, chosen, "GET", "/v1/x", lambda _name: None, what)


def decide(database: Database, *requests: AdmissionRequest, settlements: Any = ()) -> list[str]:
    """What is decided of each: `ok` or the code of the error."""
    decisions = database.write_now(transact, WORKER, requests, settlements, NOON)
    return [one.code if isinstance(one, ProxyError) else "ok" for one in decisions]


@pytest.mark.parametrize("text", ["file-\0", "file-\ud800", "é", "a b", "", "x" * 256])
def test_text_that_no_recorded_id_can_be_is_an_unknown_object(database: Database, text: str) -> None:
    _, alone = new_project(database, api_key_last4="1111")
    _, first = new_project(database, api_key_last4="2222")
    new_project(database, api_key_last4="2222")
    _, allowed = new_project(database, api_key_last4="2222", allow_unknown_objects=True)
    found = decide(database, *(apply(token, text) for token in (alone, first, allowed)))
    assert found == ["ok", "object_not_found", "ok"]


def grant(database: Database, token: Token) -> Grant:
    (decision,) = database.write_now(transact, WORKER, [apply(token)], [], NOON)
    assert isinstance(decision, Grant)
    return decision


def recorded(database: Database) -> dict[str, tuple[str, str]]:
    columns = provider_objects.c
    query = select(columns.object_id, columns.kind, columns.project_id)
    rows = database.read_now(lambda connection: connection.execute(query).all())
    return {key: (kind, project) for key, kind, project in rows}


@pytest.mark.parametrize(
    ("other", "shared"),
    [
        (None, False),
        ({}, True),
        ({"api_key_last4": "else"}, False),
        ({"api_key_last4": ""}, True),
        ({"provider": "anthropic"}, False),
        ({"active": False}, True),
    ],
)
def test_projects_share_an_account_if_their_keys_look_alike(
    database: Database, other: dict[str, Any] | None, shared: bool
) -> None:
    project, _ = new_project(database)
    if other is not None:
        new_project(database, **other)
    expected = {(project.id, "openai")} if shared else set()
    assert database.read_now(objects.find_shared, [(project.id, "openai")]) == expected


@pytest.mark.parametrize(("same", "last4", "shared"), [(True, "", True), (False, "cdef", True), (False, "else", False)])
def test_projects_share_an_account_if_they_use_one_credential(
    database: Database, same: bool, last4: str, shared: bool
) -> None:
    pairs = []
    used = a_credential(provider="anthropic")
    database.write_now(credentials.create, used)
    for number in range(2):
        project, _ = new_project(database)
        if number and not same:
            used = a_credential(provider="anthropic", api_key_last4=last4)
            database.write_now(credentials.create, used)
        database.write_now(credentials.assign, project.id, [used])
        pairs.append((project.id, "anthropic"))
    assert database.read_now(objects.find_shared, pairs) == (set(pairs) if shared else set())


def test_a_settlement_records_what_the_same_transaction_judges(database: Database) -> None:
    (first, token), (_, other) = new_project(database), new_project(database)
    settlement = Settlement.of(grant(database, token), OK, (("file-1", "file"), ("resp_1", "response")))
    asked = [apply(token, "file-1", "resp_1"), apply(other, "resp_1"), apply(token, "file-9"), apply(other)]
    assert decide(database, *asked, settlements=[settlement]) == ["ok", "object_not_found", "object_not_found", "ok"]
    assert recorded(database) == {"file-1": ("file", first.id), "resp_1": ("response", first.id)}


def test_the_first_owner_stays_and_only_it_can_remove_its_object(database: Database) -> None:
    (first, token), (_, other) = new_project(database), new_project(database)
    for one, changed in (
        (token, (("file-1", "file"),)),
        (other, (("file-1", "batch"), ("File-1", "file"))),
        (other, (("file-1", ""),)),
    ):
        decide(database, settlements=[Settlement.of(grant(database, one), OK, changed)])
        assert recorded(database)["file-1"] == ("file", first.id)
    decide(database, settlements=[Settlement.of(grant(database, token), OK, (("file-1", ""), ("File-1", "")))])
    assert set(recorded(database)) == {"File-1"}


def test_an_object_that_is_named_by_clients_belongs_to_the_last_one_that_made_it(database: Database) -> None:
    """The first file has expired at the provider: otherwise there could be no second one."""
    (_, token), (second, other) = new_project(database), new_project(database)
    for one in (token, other, other):
        decide(database, settlements=[Settlement.of(grant(database, one), OK, (("report", "named_file"),))])
    assert recorded(database) == {"report": ("named_file", second.id)}


def test_two_requests_that_show_one_object_at_once_record_it_once(database: Database) -> None:
    first, token = new_project(database)
    made = [Settlement.of(grant(database, token), OK, (("file-1", "file"),)) for _ in range(2)]
    decide(database, settlements=made)
    assert recorded(database) == {"file-1": ("file", first.id)}


def test_a_doubtful_settlement_and_a_replayed_one_record_their_objects(database: Database) -> None:
    first, token = new_project(database)
    doubtful = Settlement.of(grant(database, token), OK, (("file-1", "file"),))
    for _ in range(2):
        database.write_now(partial(transact, doubtful=True), WORKER, [], [doubtful], NOON)
    spooled = Settlement.of(grant(database, token), OK, (("file-2", "file"),))
    running = Settlement.of(grant(database, token), UNKNOWN)
    database.write_now(write_spooled, [spooled, running], WORKER, NOON)
    assert recorded(database) == {"file-1": ("file", first.id), "file-2": ("file", first.id)}


def test_what_is_refused_while_an_account_is_shared(database: Database) -> None:
    _, token = new_project(database)
    fault = ParameterNotAllowed()
    asked = [apply(token, account=True), apply(token, account=True, known=False), apply(token, unread=True)]
    asked += [apply(token, fault=fault), apply(token, "file-1")]
    assert decide(database, *asked) == ["ok"] * 5
    new_project(database)
    codes = [ListNotIsolated.code, ListNotIsolated.code, Overloaded.code, fault.code, ObjectNotFound.code]
    assert decide(database, *asked) == codes


def test_an_object_of_one_provider_is_not_that_of_another(database: Database) -> None:
    project, token = new_project(database)
    new_project(database)
    row = ProviderObject("anthropic", "file-1", "file", project.id, token.id, new_id(), NOON)
    database.write_now(objects.record, [row])
    assert decide(database, apply(token, "file-1")) == ["object_not_found"]


@pytest.mark.parametrize("size", [1, 40])
def test_a_batch_reads_objects_with_two_statements_at_most_and_none_without_need(database: Database, size: int) -> None:
    made = [new_project(database) for _ in range(size)]
    rows = [
        ProviderObject("openai", f"file-{number}", "file", project.id, token.id, new_id(), NOON)
        for number, (project, token) in enumerate(made)
    ]
    database.write_now(objects.record, rows)

    def count(*asked: AdmissionRequest) -> int:
        statements: list[str] = []

        def run(connection: Connection) -> None:
            nonlocal statements
            statements = sent_from_now_on(connection)
            transact(connection, WORKER, asked, [], NOON)

        database.write_now(run)
        return len(statements)

    plain = count(
        *(AdmissionRequest(request_id(), token.digest, to_default, "GET", "/", lambda _: None) for _, token in made)
    )
    assert count(*(apply(token, f"file-{number}") for number, (_, token) in enumerate(made))) == plain + 1
    assert count(*(apply(token, "unknown") for _, token in made)) <= plain + 2


def test_without_the_database_only_requests_that_need_no_owner_pass() -> None:
    project = a_project()
    token = a_token(project.id)
    cache = TokenCache(OutageLimits(300, 10, 600))
    reservation = Reservation(request_id(), WORKER, token.id, project.id, "openai", "GET", "/v1/x", NOON)
    cache.record(token.digest, Grant(reservation, token.digest, an_account(project), token, 1), 0.0, keep_used=False)
    for passing in (apply(token), apply(token, unread=True)):
        cache.authorize_offline(passing, 1.0, NOON)
    for refused in (apply(token, "file-1"), apply(token, account=True), apply(token, fault=ParameterNotAllowed())):
        with pytest.raises(DatabaseUnavailable):
            cache.authorize_offline(refused, 1.0, NOON)
