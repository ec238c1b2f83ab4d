"""Rows that another transaction holds: what needs them waits its time, and nothing else does."""
# ruff: noqa: ASYNC110 (the ledger is looked at from outside, where there is no event to wait for)

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
import trio
from sqlalchemy import select, update
from structlog.testing import capture_logs

from db import Connection
from db.database import Database, opened
from db.dsn import Target
from db.errors import DatabaseError
from db.options import Options
from db.queries import ledger as queries
from db.queries import limits as limit_queries
from db.queries import projects, tokens
from db.records import Limit, Result, Token
from db.schema import in_flight, usage_hourly
from db.schema import tokens as token_rows
from llm_proxy.errors import DatabaseUnavailable, RequestLimitExceeded, TokenInvalid, TokenLocked
from llm_proxy.ledger import Grant, writer
from llm_proxy.ledger.transaction import transact
from llm_proxy.limits import started_at
from tests.databases.kinds import SERVERS, on
from tests.db.queries.factories import a_project, a_settled_request, a_token
from tests.ledger.stage import Scene, scene
from tests.ledger.test_limits import apply, limited

OK = Result(outcome="ok", status=200, model="m")
OTHERS = 6


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    # Longer than a real deadline, because test machines are busy: what matters is that others are served at once.
    monkeypatch.setattr(writer, "ADMISSION_DEADLINE", 3.0)


@asynccontextmanager
async def locking(target: Target, lock: Callable[[Connection], object]) -> AsyncIterator[trio.Event]:
    """A transaction of somebody else that does something, and holds its locks until the event is set."""
    release, locked, gone = trio.Event(), trio.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()
    with opened(target, Options()) as foreign:

        def hold(connection: Connection) -> None:
            lock(connection)
            trio.from_thread.run_sync(locked.set, trio_token=token)
            trio.from_thread.run(release.wait, trio_token=token)
            raise DatabaseError("nothing of it is to stay")

        async def run() -> None:
            with suppress(DatabaseError):
                await foreign.write(hold)
            gone.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await locked.wait()
            try:
                yield release
            finally:
                release.set()
                with trio.CancelScope(shield=True):
                    await gone.wait()


def a_token_lock(token: Token) -> Callable[[Connection], object]:
    return lambda connection: connection.execute(
        select(token_rows.c.id).where(token_rows.c.id == token.id).with_for_update()
    ).all()


async def more_tokens(stage: Scene, count: int) -> list[Token]:
    made = [a_token(stage.token.project_id) for _ in range(count)]
    for token in made:
        await stage.database.real.write(tokens.create, token)
    return made


async def serve(stage: Scene, token: Token, served: list[Token], refused: list[Exception]) -> None:
    try:
        grant = await stage.ledger.admit(apply(token))
    except DatabaseUnavailable as error:
        refused.append(error)
        return
    served.append(token)
    stage.ledger.settle(grant, OK)


async def counts(database: Database, some: list[Token]) -> list[int]:
    found = [await database.read(tokens.get, token.id) for token in some]
    return [token.request_count for token in found if token is not None]


async def all_served(stage: Scene, some: list[Token], within: float) -> None:
    """One request of each token, all at once."""
    served: list[Token] = []
    refused: list[Exception] = []
    with trio.fail_after(within):
        async with trio.open_nursery() as nursery:
            for token in some:
                nursery.start_soon(serve, stage, token, served, refused)
    assert (len(served), refused) == (len(some), [])


@on(*SERVERS)
async def test_while_a_token_is_locked_all_others_are_served(migrated_target: Target) -> None:
    async with scene(migrated_target) as stage:
        others = await more_tokens(stage, OTHERS)
        served: list[Token] = []
        refused: list[Exception] = []
        with capture_logs() as logs:
            async with locking(migrated_target, a_token_lock(stage.token)), trio.open_nursery() as nursery:
                for token in (stage.token, *others, stage.token):
                    nursery.start_soon(serve, stage, token, served, refused)
                with trio.fail_after(2.5):
                    while len(served) < OTHERS:
                        await trio.sleep(0.01)
                # It is known by now that rows are locked: the next ones do not even wait once.
                await all_served(stage, others, within=0.5)
            assert stage.token not in served
            # Which of the two depends on whether a transaction has it when its time is over.
            assert len(refused) == 2
            assert all(isinstance(error, DatabaseUnavailable) for error in refused), "503, not 401"
            assert stage.alive(), "a lock is no outage"
            stage.ledger.settle(await stage.admit(), OK)
            await stage.settled()
        assert await counts(stage.database.real, others) == [2] * OTHERS
        assert await stage.count() == 1
        assert [line["event"] for line in logs if line["log_level"] == "error"] == []


@on(*SERVERS)
async def test_a_request_of_a_locked_token_keeps_its_place_until_the_lock_goes(migrated_target: Target) -> None:
    async with scene(migrated_target, max_requests=1) as stage:
        ends: dict[str, str] = {}

        async def one(name: str) -> None:
            try:
                stage.ledger.settle(await stage.admit(), OK)
                ends[name] = "served"
            except RequestLimitExceeded:
                ends[name] = "refused"

        async with trio.open_nursery() as nursery, locking(migrated_target, a_token_lock(stage.token)) as release:
            nursery.start_soon(one, "first")
            while not stage.ledger._locked:
                await trio.sleep(0.01)
            nursery.start_soon(one, "second")
            await trio.sleep(0.1)
            assert (ends, stage.ledger.waiting) == ({}, 2)
            release.set()
        assert ends == {"first": "served", "second": "refused"}


@on(*SERVERS)
async def test_a_token_that_is_not_there_is_invalid_also_while_others_are_locked(migrated_target: Target) -> None:
    async with scene(migrated_target) as stage, locking(migrated_target, a_token_lock(stage.token)):
        asked = [stage.apply(), apply(a_token(stage.token.project_id))]
        decide = partial(transact, skip_locked=True)
        decisions = await stage.database.real.write(decide, "worker", asked, [], datetime.now(UTC))
        assert [type(decision) for decision in decisions] == [TokenLocked, TokenInvalid]


def an_hour_lock(token: Token) -> Callable[[Connection], object]:
    return lambda connection: connection.execute(
        update(usage_hourly).where(usage_hourly.c.token_id == token.id).values(errors=usage_hourly.c.errors)
    ).close()


def a_new_hour(token: Token) -> Callable[[Connection], object]:
    """A sum that is not committed yet, as the transaction of a frozen worker leaves it."""
    return lambda connection: queries.roll_up(
        connection, [a_settled_request(token, admitted_at=datetime.now(UTC), model="m")]
    )


def a_reservation_lock(token: Token) -> Callable[[Connection], object]:
    return lambda connection: connection.execute(
        select(in_flight.c.id).where(in_flight.c.token_id == token.id).with_for_update()
    ).all()


@on(*SERVERS)
@pytest.mark.parametrize(
    ("lock", "result"),
    [(an_hour_lock, OK), (a_new_hour, OK), (a_reservation_lock, OK), (a_token_lock, Result(outcome="void"))],
    ids=["hourly sum", "new hourly sum", "reservation", "token"],
)
async def test_a_settlement_that_a_lock_holds_up_holds_up_nothing_else(
    migrated_target: Target, lock: Callable[[Token], Callable[[Connection], object]], result: Result
) -> None:
    async with scene(migrated_target) as stage:
        others = await more_tokens(stage, OTHERS)
        if lock is an_hour_lock:
            stage.ledger.settle(await stage.admit(), OK)
            await stage.settled()
        grant = await stage.admit()
        async with locking(migrated_target, lock(stage.token)):
            stage.ledger.settle(grant, result)
            await all_served(stage, others, within=2.5)
            await all_served(stage, others, within=0.5)
            with trio.fail_after(5):
                while stage.ledger.unsettled > 1:
                    await trio.sleep(0.01)
            assert stage.alive()
        with trio.fail_after(5):
            await stage.settled()
        open_rows, outcomes = await stage.outcomes()
        assert (open_rows, outcomes[result.outcome] > 0) == (0, True)
        assert await counts(stage.database.real, others) == [2] * OTHERS


@on(*SERVERS)
async def test_a_frozen_transaction_is_ended_and_its_tokens_are_served(
    migrated_target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("postgresql", "mysql", "mysql.connection"):
        monkeypatch.setattr(f"db.dialects.{module}.FROZEN", 2.0)
    async with scene(migrated_target) as stage:
        others = await more_tokens(stage, OTHERS)

        def work(connection: Connection) -> None:
            transact(connection, "frozen", [apply(stage.token)], [], datetime.now(UTC))

        async with locking(migrated_target, work):
            began = trio.current_time()
            await all_served(stage, others, within=2.5)
            await all_served(stage, others, within=2.5)
            served: list[Token] = []
            with trio.fail_after(10):
                while not served:
                    await serve(stage, stage.token, served, [])
            assert trio.current_time() - began > 1
        await stage.settled()
        assert await stage.count() == 1, "what the frozen one wrote is rolled back"
        assert (await stage.outcomes())[1] == {"ok": 2 * OTHERS + 1}


def a_counter_lock(limit: Limit) -> Callable[[Connection], object]:
    """The counter exists, and another transaction has changed it."""
    return lambda connection: limit_queries.lock_counters(connection, [limit_queries.counter_id(limit.id, None)])


async def limited_tokens(stage: Scene, count: int, **fields: Any) -> tuple[list[Token], Limit]:
    """Tokens of a project with a limit."""
    project = a_project()
    await stage.database.real.write(projects.create, project)
    made = [a_token(project.id) for _ in range(count)]
    for token in made:
        await stage.database.real.write(tokens.create, token)
    return made, await trio.to_thread.run_sync(partial(limited, stage.database.real, made[0], "project", **fields))


@on(*SERVERS)
@pytest.mark.parametrize("new", [False, True], ids=["counter", "new counter"])
async def test_a_locked_counter_of_a_limit_delays_only_requests_that_need_it(
    migrated_target: Target, *, new: bool
) -> None:
    async with scene(migrated_target) as stage:
        others = await more_tokens(stage, OTHERS)
        limited_ones, limit = await limited_tokens(stage, 3, amount=100)
        if not new:
            await all_served(stage, limited_ones[:1], within=5)
            await stage.settled()
        served: list[Token] = []
        refused: list[Exception] = []
        async with locking(migrated_target, a_counter_lock(limit)), trio.open_nursery() as nursery:
            for token in (*limited_ones, *others):
                nursery.start_soon(serve, stage, token, served, refused)
            with trio.fail_after(2.5):
                while len(served) < OTHERS:
                    await trio.sleep(0.01)
            await all_served(stage, others, within=0.5)
            assert set(served) == set(others)
            assert stage.alive()
        served.clear()
        await all_served(stage, limited_ones, within=5)
        await stage.settled()
        assert await counts(stage.database.real, others) == [2] * OTHERS
        counter = stage.database.real.read_now(limit_queries.read_counters, [limit_queries.counter_id(limit.id, None)])
        (found,) = counter.values()
        assert (found.used, found.reserved) == (sum(await counts(stage.database.real, limited_ones)), 0)


@on(*SERVERS)
async def test_a_frozen_transaction_of_a_limited_project_is_ended_and_its_tokens_are_served(
    migrated_target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("postgresql", "mysql", "mysql.connection"):
        monkeypatch.setattr(f"db.dialects.{module}.FROZEN", 2.0)
    async with scene(migrated_target) as stage:
        others = await more_tokens(stage, OTHERS)
        (first, second), limit = await limited_tokens(stage, 2, period="day")

        def work(connection: Connection) -> None:
            (decision,) = transact(connection, "frozen", [apply(first)], [], datetime.now(UTC))
            assert isinstance(decision, Grant)

        async with locking(migrated_target, work):
            await all_served(stage, others, within=2.5)
            await all_served(stage, others, within=2.5)
            served: list[Token] = []
            with trio.fail_after(10):
                while not served:
                    await serve(stage, second, served, [])
        await stage.settled()
        counters = stage.database.real.read_now(
            limit_queries.read_counters,
            [limit_queries.counter_id(limit.id, started_at("day", datetime.now(UTC)))],
        )
        assert [(one.used, one.reserved) for one in counters.values()] == [(1, 0)], "the frozen one is rolled back"


async def test_a_missing_counter_is_made_without_a_lock_that_is_met(migrated_target: Target) -> None:
    async with scene(migrated_target) as stage:
        limit = limited(stage.database.real, stage.token)
        key = limit_queries.counter_id(limit.id, datetime(2000, 1, 1, tzinfo=UTC))
        stage.ledger._aside.miss(key)
        with trio.fail_after(10):
            while not stage.database.real.read_now(limit_queries.read_counters, [key]):
                await trio.sleep(0.01)


@on("mariadb")
async def test_where_rows_cannot_be_skipped_each_is_asked_for_without_waiting(
    migrated_target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(migrated_target) as stage:
        others = await more_tokens(stage, 2)
        digests = [stage.token.digest, *(token.digest for token in others)]
        async with locking(migrated_target, a_token_lock(stage.token)):
            with opened(migrated_target, Options()) as old:
                old.read_now(tokens.get, stage.token.id)
                monkeypatch.setattr(old._backend.write.dialect, "server_version_info", (10, 5, 9))
                with trio.fail_after(1):
                    free, locked = await old.write(queries.lock_free_tokens, digests)
        assert set(free) == {token.digest for token in others}
        assert locked == {stage.token.digest}
