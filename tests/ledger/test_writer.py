"""The writer under concurrency, cancellation and outage.

SQLite stands for every database here: the statements have their own tests on all four.
"""
# ruff: noqa: ASYNC110 (the tests look at the ledger from outside, where there is no event to wait for)

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from db import dsn
from db.database import open_database
from db.errors import CommitUnknown, Unavailable
from db.options import Options
from db.queries import ledger as queries
from db.records import Result, Worker
from llm_proxy.errors import DatabaseUnavailable, RequestLimitExceeded
from llm_proxy.identifiers import new_id
from llm_proxy.ledger import Ledger, writer
from tests.db.rows import contents
from tests.ledger.stage import Observed, scene


async def test_many_at_once_share_transactions(tmp_path: Path) -> None:
    async with scene(tmp_path / "ledger.db") as stage:

        async def one() -> None:
            stage.ledger.settle(await stage.admit(), Result(outcome="ok", status=200))

        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(one)
        await stage.settled()
        assert await stage.outcomes() == (0, {"ok": 200})
        assert await stage.count() == 200
        assert sum(admitted for admitted, _ in stage.observed.transactions) == 200
        assert len(stage.observed.transactions) < 40


async def test_the_limit_holds_for_many_at_once(tmp_path: Path) -> None:
    async with scene(tmp_path / "ledger.db", max_requests=50) as stage:
        refused = 0

        async def one() -> None:
            nonlocal refused
            try:
                stage.ledger.settle(await stage.admit(), Result(outcome="ok", status=200))
            except RequestLimitExceeded:
                refused += 1

        async with trio.open_nursery() as nursery:
            for _ in range(120):
                nursery.start_soon(one)
        await stage.settled()
        assert (refused, await stage.count()) == (70, 50)


async def test_cancelled_while_its_transaction_runs_is_void(tmp_path: Path) -> None:
    async with scene(tmp_path / "ledger.db") as stage:
        stage.database.hang()
        with trio.move_on_after(0.02):
            await stage.admit()
        stage.database.go_on()
        await stage.settled()
        assert await stage.outcomes() == (0, {"void": 1})
        assert await stage.count() == 0


async def test_cancelled_in_the_queue_never_reaches_the_database(tmp_path: Path) -> None:
    async with scene(tmp_path / "ledger.db") as stage:
        stage.database.hang()
        async with trio.open_nursery() as nursery:

            async def ahead() -> None:
                stage.ledger.settle(await stage.admit(), Result(outcome="ok"))

            nursery.start_soon(ahead)
            await trio.sleep(0.01)
            with trio.move_on_after(0.01):
                await stage.admit()
            stage.database.go_on()
        await stage.settled()
        assert await stage.outcomes() == (0, {"ok": 1})


async def test_a_hanging_database_is_unavailable_and_what_it_grants_later_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "ADMISSION_DEADLINE", 0.1)
    async with scene(tmp_path / "ledger.db") as stage:
        stage.database.hang()
        with pytest.raises(DatabaseUnavailable):
            await stage.admit()
        stage.database.go_on()
        await stage.settled()
        assert await stage.outcomes() == (0, {"void": 1})
        assert await stage.count() == 0


async def test_a_settlement_shares_the_transaction_of_the_next_admission(tmp_path: Path) -> None:
    async with scene(tmp_path / "ledger.db") as stage:
        stage.ledger.settle(await stage.admit(), Result(outcome="ok", status=200))
        stage.ledger.settle(await stage.admit(), Result(outcome="ok", status=200))
        await stage.settled()
        # The last one has waited for company in vain.
        assert stage.observed.transactions == [(1, 0), (1, 1), (0, 1)]


async def test_requests_that_are_on_their_way_share_a_transaction(tmp_path: Path) -> None:
    async with scene(tmp_path / "ledger.db") as stage:
        running = await stage.admit()

        async def arrive_after(steps: int) -> None:
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            stage.ledger.settle(await stage.admit(), Result(outcome="ok", status=200))

        async with trio.open_nursery() as nursery:
            for steps in range(8):
                nursery.start_soon(arrive_after, steps)
        stage.ledger.settle(running, Result(outcome="ok", status=200))
        await stage.settled()
        assert stage.observed.transactions[1] == (8, 0)


async def test_a_request_waits_for_no_other_if_none_is_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "wait_all_tasks_blocked", None)
    async with scene(tmp_path / "ledger.db") as stage:
        for _ in range(3):
            stage.ledger.settle(await stage.admit(), Result(outcome="ok", status=200))
        await stage.settled()
        assert stage.observed.transactions == [(1, 0), (1, 1), (1, 1), (0, 1)]


async def test_a_process_that_is_never_idle_admits_all_the_same(tmp_path: Path) -> None:
    async with scene(tmp_path / "ledger.db") as stage, trio.open_nursery() as nursery:

        async def keep_busy() -> None:
            while True:
                await trio.lowlevel.checkpoint()

        nursery.start_soon(keep_busy)
        with trio.fail_after(5):
            stage.ledger.settle(await stage.admit(), Result(outcome="ok", status=200))
            await stage.settled()
        nursery.cancel_scope.cancel()


async def test_while_the_database_is_away_settlements_are_kept(tmp_path: Path) -> None:
    async with scene(tmp_path / "ledger.db") as stage:
        grants = [await stage.admit() for _ in range(3)]
        stage.database.before = lambda: Unavailable("away")
        for grant in grants:
            stage.ledger.settle(grant, Result(outcome="ok", status=200))
        await trio.sleep(0.01)
        with pytest.raises(DatabaseUnavailable) as refused:
            await stage.admit()
        assert refused.value.retry_after is not None
        assert not stage.alive()
        assert stage.ledger.unsettled == 3
        stage.database.before = lambda: None
        await stage.settled()
        assert stage.alive()
        assert await stage.outcomes() == (0, {"ok": 3})
        stage.ledger.settle(await stage.admit(), Result(outcome="ok", status=200))


@pytest.mark.parametrize("committed", [True, False])
async def test_a_commit_of_unknown_fate_is_charged_to_nobody(tmp_path: Path, *, committed: bool) -> None:
    async with scene(tmp_path / "ledger.db") as stage:
        grant = await stage.admit()
        stage.ledger.settle(grant, Result(outcome="ok", status=200))
        failures: list[Exception | None] = [CommitUnknown("lost")]

        def fail_once() -> Exception | None:
            return failures.pop() if failures else None

        if committed:
            stage.database.after = fail_once
        else:
            stage.database.before = fail_once
        with pytest.raises(DatabaseUnavailable):
            await stage.admit()
        await stage.settled()
        open_rows, outcomes = await stage.outcomes()
        assert open_rows == 0
        assert outcomes["ok"] == 1
        assert await stage.count() == 1


async def test_a_settlement_whose_reservation_was_swept_replaces_unknown(tmp_path: Path) -> None:
    async with scene(tmp_path / "ledger.db") as stage:
        grant = await stage.admit()
        await stage.database.real.write(queries.sweep, [grant.reservation.id], datetime.now(UTC))
        assert await stage.outcomes() == (0, {"unknown": 1})
        stage.ledger.settle(grant, Result(outcome="ok", status=200))
        await stage.settled()
        assert await stage.outcomes() == (0, {"ok": 1})


async def test_the_next_start_sweeps_what_a_dead_worker_left(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with trio.CancelScope() as death:
        async with scene(path) as stage:
            await stage.admit()
            death.cancel()
            await trio.sleep_forever()
    async with open_database(dsn.parse("sqlite", None, str(path)), Options()) as real:
        now = datetime.now(UTC)
        ledger = Ledger(real, Worker(new_id(), "here", 2, "0", now, now), Observed(), exclusive=True)
        async with trio.open_nursery() as nursery:
            await nursery.start(ledger.run)
            with trio.fail_after(5):
                while (await real.read(contents))["in_flight"]:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert await real.read(queries.verify) == []


async def test_no_heartbeat_adds_the_row_of_a_worker_that_has_ended(tmp_path: Path) -> None:
    async with scene(tmp_path / "ledger.db") as stage:
        ledger, database = stage.ledger, stage.database

        def begin_heartbeat() -> None:
            ledger._next_beat = -math.inf
            ledger._wake.set()

        async def heartbeat_done() -> None:
            with trio.fail_after(30):
                while ledger._next_beat < 0 or ledger._sleep is None:
                    await trio.sleep(0.001)

        database.hold(queries.beat)
        begin_heartbeat()
        while database.running is not queries.beat:
            await trio.sleep(0.001)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ledger.drain)
            await wait_all_tasks_blocked(0.05)
            database.let_go()
        await heartbeat_done()
        assert await database.real.read(queries.list_workers) == [], "a heartbeat was on its way"
        begin_heartbeat()
        await heartbeat_done()
        assert await database.real.read(queries.list_workers) == []
