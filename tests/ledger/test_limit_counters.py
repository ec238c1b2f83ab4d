"""Counters of limits: proven from the rows, repaired, and deleted once nothing needs them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, delete, func, insert, select, update

from db import copy
from db.database import Database, opened
from db.options import Options
from db.queries import counters, projects, tokens
from db.queries import ledger as queries
from db.queries import limits as limit_queries
from db.queries.counters import CounterProof, UnprovenWindow, WrongCounter
from db.records import Limit, Result, Token
from db.schema import limit_counters, limits, requests, usage_days, usage_hourly
from llm_proxy.limits import Bound, started_at
from tests.databases.kinds import Kind
from tests.databases.scratch import Databases
from tests.db.queries.factories import a_project, a_token
from tests.ledger import test_limits
from tests.ledger.test_limits import OK, FixedDemand, admit, apply, counter, grants, settle, state, wait_for_a_window

VOID = Result(outcome="void")


@pytest.fixture
def token(database: Database) -> Token:
    project = a_project()
    database.write_now(projects.create, project)
    made = a_token(project.id)
    database.write_now(tokens.create, made)
    return made


def limited(database: Database, token: Token, scope: str = "token", **fields: Any) -> Limit:
    return test_limits.limited(database, token, scope, **{"created_at": datetime.now(UTC), **fields})


def proof(database: Database) -> CounterProof:
    return database.read_now(counters.prove, started_at)


def repair(database: Database, found: CounterProof) -> CounterProof:
    database.write_now(counters.repair, started_at, sorted({one.key for one in found.wrong}))
    return proof(database)


def change(database: Database, limit: Limit, **values: Any) -> None:
    def write(connection: Connection) -> None:
        connection.execute(update(limit_counters).where(limit_counters.c.limit_id == limit.id).values(**values))

    database.write_now(write)


def make_busy(database: Database, token: Token) -> list[Limit]:
    """Limits of all kinds; of their requests one is open, one void, one unknown, and one is settled."""
    found = [
        limited(database, token, metric="requests", period="month", amount=9),
        limited(database, token, "project", metric="tokens", period="day", amount=10**6),
        limited(database, token, "proxy", metric="cost", policy="reserved", amount=10**6),
        limited(database, token, "proxy", metric="concurrency", amount=9),
    ]
    demand = FixedDemand(bound=Bound(10, 10, 2000))
    _, void, dead, ended = grants(admit(database, *(apply(token, demand) for _ in range(4))))
    settle(database, (void, VOID), (ended, OK))
    database.write_now(queries.sweep, [dead.reservation.id], datetime.now(UTC))
    return found


def test_counters_that_servers_wrote_are_correct(database: Database, token: Token) -> None:
    of_requests, of_tokens, of_money, of_concurrency = make_busy(database, token)
    assert state(database, of_requests) == (2, 1, 1)
    assert state(database, of_tokens) == (22, 0, 10)
    assert state(database, of_money) == (3200, 2000, 2000)
    assert state(database, of_concurrency) == (0, 1, 0)
    assert proof(database) == CounterProof()


@pytest.mark.parametrize("figure", limit_queries.COUNTED)
@pytest.mark.parametrize("wrong", [-5, 10**6])
def test_a_wrong_counter_is_found_and_repaired(database: Database, token: Token, figure: str, wrong: int) -> None:
    limit = make_busy(database, token)[2]
    right = getattr(counter(database, limit), figure)
    change(database, limit, **{figure: wrong})
    found = proof(database)
    assert found.wrong == [WrongCounter(limit.id, None, figure, right, wrong)]
    assert repair(database, found) == CounterProof()
    assert getattr(counter(database, limit), figure) == right


def test_a_counter_that_is_missing_is_made_again(database: Database, token: Token) -> None:
    limit = make_busy(database, token)[0]
    database.write_now(lambda connection: connection.execute(delete(limit_counters)))
    found = proof(database)
    assert ("used", 2, 0) in {(one.figure, one.expected, one.found) for one in found.wrong if one.limit_id == limit.id}
    assert repair(database, found) == CounterProof()
    assert state(database, limit) == (2, 1, 1)


def test_the_opening_amount_is_part_of_what_is_used(database: Database, token: Token) -> None:
    limit = limited(database, token, amount=9)
    database.write_now(limit_queries.open_counter, limit_queries.counter_id(limit.id, None), 4)
    (grant,) = grants(admit(database, apply(token)))
    settle(database, (grant, OK))
    assert proof(database) == CounterProof()
    change(database, limit, used=1)
    assert repair(database, proof(database)) == CounterProof()
    assert state(database, limit) == (5, 0, 0)


def test_many_counters_are_proven_in_pieces(database: Database, token: Token, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "COUNTERS", 2)
    monkeypatch.setattr(counters, "ROWS", 1)
    made = make_busy(database, token)
    assert proof(database) == CounterProof()
    change(database, made[3], reserved=7)
    database.write_now(
        lambda connection: connection.execute(delete(limit_counters).where(limit_counters.c.limit_id == made[0].id))
    )
    assert {one.limit_id for one in proof(database).wrong} == {made[0].id, made[3].id}


def test_windows_whose_rows_were_pruned_are_named_and_only_raised(database: Database, token: Token) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=60)
    old = limited(database, token, amount=9, created_at=long_ago)
    new = limited(database, token, amount=9, period="day", created_at=datetime.now(UTC) + timedelta(hours=2))
    (first,) = grants(admit(database, apply(token)))
    settle(database, (first, OK))

    def prune(connection: Connection) -> None:
        connection.execute(
            update(usage_hourly).values(pruned=1, hour=long_ago.replace(minute=0, second=0, microsecond=0))
        )

    database.write_now(prune)
    change(database, old, used=7)
    found = proof(database)
    assert found == CounterProof([], [UnprovenWindow(old.id, None)])
    change(database, old, used=0, reserved=3)
    found = proof(database)
    assert {(one.figure, one.expected, one.found) for one in found.wrong} == {("used", 1, 0), ("reserved", 0, 3)}
    assert repair(database, found).wrong == []
    assert state(database, old) == state(database, new) == (1, 0, 0)


def test_a_repair_leaves_what_is_settled_meanwhile_to_the_settlement(database: Database, token: Token) -> None:
    limit = limited(database, token, amount=9)
    (grant,) = grants(admit(database, apply(token)))
    change(database, limit, used=3)
    wrong = proof(database)
    settle(database, (grant, OK))
    assert repair(database, wrong) == CounterProof()
    assert state(database, limit) == (1, 0, 0)


def prune(database: Database) -> int:
    return database.write_now(counters.prune, started_at, 100)


def windows(database: Database) -> set[tuple[str, datetime | None]]:
    def read(connection: Connection) -> set[tuple[str, datetime | None]]:
        rows = connection.execute(select(limit_counters.c.limit_id, limit_counters.c.started_at))
        return {(limit_id, start) for limit_id, start in rows}

    return database.read_now(read)


@pytest.mark.parametrize("period", ["minute", "hour", "day", "week", "month"])
def test_counters_of_windows_that_ended_two_days_ago_are_deleted(database: Database, token: Token, period: Any) -> None:
    wait_for_a_window(period)
    limit = limited(database, token, period=period, amount=9)
    now = datetime.now(UTC)
    current, last_kept = started_at(period, now), started_at(period, now - timedelta(days=2))
    assert current is not None
    assert last_kept is not None
    ended = started_at(period, last_kept - timedelta(minutes=1))
    older = started_at(period, last_kept - timedelta(days=100))
    assert ended is not None

    def fill(connection: Connection) -> None:
        for start, reserved in {current: 0, last_kept: 0, ended: 0, older: 2}.items():
            key = limit_queries.counter_id(limit.id, start)
            limit_queries.lock_counters(connection, [key])
            connection.execute(update(limit_counters).where(limit_counters.c.id == key).values(reserved=reserved))

    database.write_now(fill)
    assert prune(database) == 1
    assert windows(database) == {(limit.id, current), (limit.id, last_kept), (limit.id, older)}
    assert prune(database) == 0


def test_counters_of_limits_that_do_not_exist_are_deleted(database: Database, token: Token) -> None:
    kept, gone = (limited(database, token, amount=9) for _ in range(2))
    admit(database, apply(token))
    database.write_now(lambda connection: connection.execute(delete(limits).where(limits.c.id == gone.id)))
    assert proof(database).wrong == []
    assert prune(database) == 1
    assert windows(database) == {(kept.id, None)}


def test_a_counter_of_a_limit_that_is_deleted_during_an_admission_is_deleted(
    database: Database, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, kept = limited(database, token, amount=9), limited(database, token, amount=9)
    read = limit_queries.of_subjects

    def read_then_delete(connection: Connection, subjects: Any) -> Any:
        found = read(connection, subjects)
        limit_queries.remove(connection, limit)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(limit_queries, "of_subjects", read_then_delete)
        (grant,) = grants(admit(database, apply(token)))
    settle(database, (grant, OK))
    assert state(database, kept) == (1, 0, 0)
    assert state(database, limit) == (0, 1, 0)
    assert proof(database) == CounterProof()
    assert database.write_now(counters.prune, started_at, 1000) == 1
    assert proof(database) == CounterProof()


def resolve(database: Database, request_id: str, cost: int | None) -> None:
    def correct(connection: Connection) -> None:
        row = queries.get_locked(connection, request_id)
        assert row is not None
        queries.resolve(connection, row, cost)

    database.write_now(correct)
    assert proof(database) == CounterProof()


def sums(database: Database) -> tuple[int, int]:
    """Requests and cost of the hourly sums."""
    query = select(func.sum(usage_hourly.c.requests), func.sum(usage_hourly.c.cost_nanousd))
    count, cost = database.read_now(lambda connection: connection.execute(query).one())
    return int(count), int(cost)


def test_what_a_resolved_request_cost_is_charged_and_no_longer_unknown(database: Database, token: Token) -> None:
    budget = limited(database, token, metric="cost", amount=10**6)
    of_tokens = limited(database, token, metric="tokens", amount=10**6)
    (grant,) = grants(admit(database, apply(token)))
    database.write_now(queries.sweep, [grant.reservation.id], datetime.now(UTC))
    assert (state(database, budget), state(database, of_tokens)) == ((1000, 0, 1000), (10, 0, 10))
    for cost in (1500, 1200):
        resolve(database, grant.reservation.id, cost)
        assert (state(database, budget), state(database, of_tokens)) == ((cost, 0, 0), (10, 0, 0))
        assert sums(database) == (1, cost)
    # Its server was only paused, and knows it better.
    settle(database, (grant, OK), doubtful=True)
    assert (state(database, budget), state(database, of_tokens)) == ((1200, 0, 0), (12, 0, 0))


def test_a_request_that_was_never_sent_gives_everything_back(database: Database, token: Token) -> None:
    found = [limited(database, token, metric=metric, amount=10**6) for metric in ("requests", "cost", "tokens")]
    (grant,) = grants(admit(database, apply(token)))
    database.write_now(queries.sweep, [grant.reservation.id], datetime.now(UTC))
    assert [state(database, limit) for limit in found] == [(1, 0, 1), (1000, 0, 1000), (10, 0, 10)]
    resolve(database, grant.reservation.id, None)
    assert [state(database, limit) for limit in found] == [(0, 0, 0)] * 3
    assert sums(database) == (0, 0)
    again = database.read_now(tokens.get, token.id)
    assert again is not None
    assert again.request_count == 0
    settle(database, (grant, OK), doubtful=True)
    assert [state(database, limit) for limit in found] == [(0, 0, 0)] * 3


def test_a_resolved_request_has_its_day_summed_up_again(database: Database, token: Token) -> None:
    (grant,) = grants(admit(database, apply(token)))
    database.write_now(queries.sweep, [grant.reservation.id], datetime.now(UTC))
    old = grant.reservation.admitted_at - timedelta(days=3)
    day = old.replace(hour=0, minute=0, second=0, microsecond=0)

    def age(connection: Connection) -> None:
        connection.execute(update(requests).values(admitted_at=old))
        connection.execute(update(usage_hourly).values(hour=queries.hour_of(old)))
        connection.execute(insert(usage_days).values(day=day, marked_at=day, written=True))

    database.write_now(age)
    resolve(database, grant.reservation.id, 7)
    assert database.read_now(lambda connection: connection.execute(select(usage_days.c.day)).all()) == []


def test_a_copy_of_a_database_with_limits_is_correct(
    database: Database, databases: Databases, database_kind: Kind, token: Token
) -> None:
    made = make_busy(database, token)
    with databases.migrated(database_kind) as scratch, opened(scratch.target, Options()) as target:
        found = copy.copy(database, target, progress=lambda *_: None)
        assert all(one.equal for one in found)
        assert proof(target) == CounterProof()
        assert [state(target, limit) for limit in made] == [state(database, limit) for limit in made]
