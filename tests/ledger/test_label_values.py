"""The sums of a day distinguish so many values of a label, whichever servers write them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random

import pytest
from msgspec.structs import replace
from sqlalchemy import select

from db import Connection
from db.database import Database
from db.queries import label_values, projects, proof, tokens
from db.records import Result, Token
from db.schema import label_values as table
from db.schema import requests, usage_hourly
from llm_proxy.identifiers import request_id
from llm_proxy.ledger import label_values as bounds
from llm_proxy.ledger.label_values import LabelValues
from llm_proxy.ledger.transaction import AdmissionRequest, Grant, Settlement, transact
from tests.db.queries.factories import a_project, a_token, to_default

TODAY = datetime(2027, 1, 15, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _three_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_VALUES", 3)


def new_token(database: Database) -> Token:
    project = a_project()
    token = a_token(project.id)
    database.write_now(projects.create, project)
    database.write_now(tokens.create, token)
    return token


def run(database: Database, server: LabelValues, token: Token, day: int, *users: str, again: bool = False) -> None:
    """Admit a request for each user, and settle all of them in one transaction of this server."""
    when = TODAY + timedelta(days=day)
    asked = [
        AdmissionRequest(request_id(), token.digest, to_default, "POST", "/v1/responses", lambda _name: None)
        for _ in users
    ]
    decisions = database.write_now(transact, "worker", asked, [], when)
    ok = Result(outcome="ok", status=200, model="m", requested_model="m")
    settlements = [
        Settlement.of(grant, replace(ok, summed_labels={"user": user}))
        for grant, user in zip(decisions, users, strict=True)
        if isinstance(grant, Grant)
    ]
    write = partial(transact, label_values=server)
    database.write_now(write, "worker", [], settlements, when)
    if again:
        database.write_now(partial(write, doubtful=True), "worker", [], settlements, when)


def summed(database: Database) -> dict[tuple[int, str], int]:
    """Requests by day and user in the hourly sums."""
    rows = database.read_now(lambda connection: connection.execute(select(usage_hourly)).all())
    return {((row.hour - TODAY).days, row.labels["user"]): row.requests for row in rows}


def test_all_servers_together_distinguish_the_first_values(database: Database) -> None:
    token, first, second = new_token(database), LabelValues(), LabelValues()
    run(database, first, token, 0, "a", "b", "a")
    run(database, second, token, 0, "c", "d", "b")
    run(database, first, token, 0, "c", "e", "a")
    run(database, LabelValues(), token, 0, "f", "a")
    assert summed(database) == {(0, "a"): 4, (0, "b"): 2, (0, "c"): 2, (0, "other"): 3}
    assert database.read_now(proof.prove).differences == []
    rows = database.read_now(lambda connection: list(connection.scalars(select(requests.c.summed_labels))))
    assert sorted(row["user"] for row in rows) == ["a"] * 4 + ["b"] * 2 + ["c"] * 2 + ["other"] * 3


def test_values_of_one_transaction_are_bounded_too(database: Database) -> None:
    token, server = new_token(database), LabelValues()
    run(database, server, token, 0, "a", "b", "c", "d", "e", again=True)
    assert summed(database) == {(0, "a"): 1, (0, "b"): 1, (0, "c"): 1, (0, "other"): 2}


def test_each_project_and_each_day_has_values_of_its_own(database: Database) -> None:
    server = LabelValues()
    token, other = new_token(database), new_token(database)
    run(database, server, token, 0, "a", "b", "c", "d")
    run(database, server, other, 0, "d")
    run(database, server, token, 1, "d", "A")
    # What ends a day later belongs to the day of its admission.
    run(database, server, token, 0, "e", "a")
    of_days = {(0, "a"): 2, (0, "b"): 1, (0, "c"): 1, (0, "other"): 2, (1, "d"): 1, (1, "A"): 1}
    assert summed(database) == {**of_days, (0, "d"): 1}


def test_concurrent_servers_keep_all_requests(database: Database) -> None:
    """Each may add values that the others do not see yet, and none waits for another one in a circle."""
    token, users = new_token(database), [f"u{number}" for number in range(12)]

    def work(seed: int) -> None:
        server, chosen = LabelValues(), Random(seed)
        for _ in range(20):
            run(database, server, token, 0, *chosen.choices(users, k=6))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    found = summed(database)
    assert sum(found.values()) == 4 * 20 * 6
    assert found[0, "other"] > 0
    assert len(found) <= 1 + 4 * 3
    assert database.read_now(proof.prove).differences == []


def test_values_of_many_keys_are_found_in_one_transaction(database: Database) -> None:
    ids = [label_values.id_of(TODAY.date(), str(number), "user", "a") for number in range(1100)]
    database.write_now(label_values.add, ids)
    series = [label_values.series_of(one) for one in ids]
    assert sorted(database.read_now(lambda connection: list(label_values.find(connection, series)))) == sorted(ids)


def test_nothing_is_asked_about_known_values(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    token, server = new_token(database), LabelValues()
    run(database, server, token, 0, "a", "b", "c")
    run(database, server, token, 0, "d")
    asked: list[str] = []

    def find(_connection: Connection, series: list[str]) -> list[str]:
        asked.extend(series)
        return []

    monkeypatch.setattr(label_values, "find", find)
    run(database, server, token, 0, "a", "c", "e")
    assert asked == []
    assert summed(database) == {(0, "a"): 2, (0, "b"): 1, (0, "c"): 2, (0, "other"): 2}


def test_values_of_days_that_are_over_are_deleted(database: Database) -> None:
    token, server = new_token(database), LabelValues()
    run(database, server, token, 0, "a", "b", "c")
    run(database, server, token, 2, "a")
    delete = partial(label_values.prune, before=TODAY + timedelta(days=2))
    assert [database.write_now(partial(delete, limit=2)) for _ in range(3)] == [2, 1, 0]
    left = database.read_now(lambda connection: list(connection.scalars(select(table.c.id))))
    assert [one[:8] for one in left] == ["20270117"]
