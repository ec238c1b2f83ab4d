"""Rows that the database will not have: they are given up alone, and keep nobody else from being written."""
# ruff: noqa: ASYNC110 (the ledger is looked at from outside, where there is no event to wait for)

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec.structs import replace
from structlog.testing import capture_logs

from db.database import open_database
from db.dsn import Target
from db.errors import CommitUnknown, Refused, Unavailable
from db.options import Options
from db.queries import ledger as queries
from db.records import Result
from llm_proxy.errors import DatabaseUnavailable, ProxyError
from llm_proxy.ledger import AdmissionRequest, Grant
from llm_proxy.ledger.transaction import Settlement
from llm_proxy.ledger.writer import _sweep as sweep
from tests.db.queries.factories import a_settled_request
from tests.db.rows import contents
from tests.ledger.stage import Scene, scene

OK = Result(outcome="ok", status=200)
#: More than any of the databases has room for in this column.
TOO_LARGE = Result(outcome="ok", input_tokens=2**70)


async def a_double(stage: Scene, grant: Grant) -> None:
    """Write a final row for a grant behind the ledger's back; its reservation stays."""
    row = a_settled_request(stage.token, id=grant.reservation.id, outcome="void")
    await stage.database.real.write(queries._settle, [row.values()])


async def settle_at_once(stage: Scene, *settlements: tuple[Grant, Result]) -> None:
    """Queue settlements so that one transaction gets all of them, and wait until the queue is empty."""
    for grant, result in settlements:
        stage.ledger.settle(grant, result)
    await stage.settled()


async def test_settlements_that_are_refused_alone_are_dropped_and_the_others_written(migrated_target: Target) -> None:
    async with scene(migrated_target) as stage:
        grants = [await stage.admit() for _ in range(9)]
        results = dict.fromkeys(range(9), OK) | {2: TOO_LARGE, 7: TOO_LARGE}
        await a_double(stage, grants[4])
        with capture_logs() as logs:
            await settle_at_once(stage, *((grants[n], results[n]) for n in range(9)))
            assert stage.alive()
        assert await stage.outcomes() == (3, {"ok": 6, "void": 1})
        assert [entry["settlement"]["id"] for entry in logs] == [grants[n].reservation.id for n in (2, 4, 7)]
        assert {entry["log_level"] for entry in logs} == {"error"}
        # The log has all that the row would have.
        row = Settlement.of(grants[2], TOO_LARGE).row
        shown = logs[0]["settlement"]
        assert shown == row.by_column() | {"settled_at": shown["settled_at"]}
        # The server continues as before.
        await settle_at_once(stage, (await stage.admit(), OK))
        assert await stage.outcomes() == (3, {"ok": 7, "void": 1})
        assert await stage.count() == 10


async def test_one_refused_row_costs_a_few_transactions(tmp_path: Path) -> None:
    async with scene(tmp_path / "ledger.db") as stage:
        grants = [await stage.admit() for _ in range(64)]
        before = stage.database.writes
        with capture_logs() as logs:
            await settle_at_once(stage, *((grant, TOO_LARGE if n == 40 else OK) for n, grant in enumerate(grants)))
        assert len(logs) == 1
        # Each cut is a refused transaction and one that is written; the last refusal is followed by a heartbeat.
        assert stage.database.writes - before == 2 * 6 + 2
        assert [settled for _, settled in stage.observed.transactions if settled] == [32, 8, 1, 2, 4, 16]


def burst(_name: str) -> None:
    raise KeyError("a rule with a mistake in it")


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ({"method": None}, "database_unavailable"),
        ({"path": "/v1/\ud800"}, "database_unavailable"),
        ({"refusal": burst}, "internal_error"),
    ],
    ids=["refused by the database", "refused by the driver", "not judged"],
)
async def test_a_request_that_cannot_be_written_down_is_turned_away_alone(
    migrated_target: Target, bad: dict[str, Any], code: str
) -> None:
    async with scene(migrated_target) as stage:
        applications = [replace(stage.apply(), **bad) if n == 3 else stage.apply() for n in range(8)]
        earlier = await stage.admit()
        turned_away: dict[str, str] = {}

        async def one(application: AdmissionRequest) -> None:
            try:
                stage.ledger.settle(await stage.ledger.admit(application), OK)
            except ProxyError as error:
                turned_away[application.id] = error.code

        with capture_logs() as logs:
            async with trio.open_nursery() as nursery:
                stage.ledger.settle(earlier, OK)
                for application in applications:
                    nursery.start_soon(one, application)
            await stage.settled()
            assert stage.alive()
        assert turned_away == {applications[3].id: code}
        assert [entry["request_id"] for entry in logs] == list(turned_away)
        assert logs[0]["exc_info"] is not None, "the log has the traceback"
        assert await stage.outcomes() == (0, {"ok": 8})
        assert await stage.count() == 8


async def test_a_mistake_in_the_transaction_ends_the_writer_and_settles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = 0

    async def one(stage: Scene) -> None:
        nonlocal refused
        try:
            await stage.admit()
        except DatabaseUnavailable:
            refused += 1

    def mistaken(*_: object) -> None:
        raise AttributeError("a mistake in the program")

    stages: list[Scene] = []

    async def break_down() -> None:
        async with scene(tmp_path / "ledger.db") as stage:
            stages.append(stage)
            grants = [await stage.admit() for _ in range(3)]
            monkeypatch.setattr(queries, "reserve", mistaken)
            for grant in grants:
                stage.ledger.settle(grant, OK)
            for _ in range(4):
                clients.start_soon(one, stage)
            await trio.sleep_forever()

    async with trio.open_nursery() as clients:
        with capture_logs() as logs, pytest.raises(ExceptionGroup) as ended:
            await break_down()
    (stage,) = stages
    assert ended.group_contains(AttributeError, match="a mistake in the program")
    assert refused == 4
    assert not stage.alive()
    with pytest.raises(DatabaseUnavailable):
        await stage.admit()
    with trio.fail_after(1):
        await stage.ledger.drain()  # it has nothing to wait for
    assert logs == [], "no settlement is called refused or lost"
    async with open_database(stage.database.real.target, Options()) as real:
        assert len((await real.read(contents))["in_flight"]) == 3
        assert [worker.id for worker in await real.read(queries.list_workers)] == [stage.ledger._worker.id]


async def test_those_who_leave_meanwhile_are_not_admitted(tmp_path: Path) -> None:
    async with scene(tmp_path / "ledger.db") as stage:
        failures: list[Exception | None] = [Refused("no")]
        with trio.CancelScope() as leaving:

            def fail_once() -> Exception | None:
                if not failures:
                    return None
                leaving.cancel()
                return failures.pop()

            stage.database.before = fail_once
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(stage.admit)
        await stage.settled()
        assert await stage.outcomes() == (0, {})
        assert await stage.count() == 0


async def test_where_not_even_a_heartbeat_is_taken_the_database_is_away(tmp_path: Path) -> None:
    async with scene(tmp_path / "ledger.db") as stage:
        grants = [await stage.admit() for _ in range(5)]
        stage.database.before = lambda: Refused("all of it")
        for grant in grants:
            stage.ledger.settle(grant, OK)
        with capture_logs() as logs, trio.fail_after(5):
            while stage.alive():
                await trio.sleep(0.005)
            with pytest.raises(DatabaseUnavailable):
                await stage.admit()
            assert stage.ledger.unsettled == 5
            stage.database.before = lambda: None
            await stage.settled()
        assert [entry["event"] for entry in logs] == ["the database is away", "the database is back"]
        assert await stage.outcomes() == (0, {"ok": 5})


@pytest.mark.parametrize("error", [Unavailable("away"), CommitUnknown("lost")])
@pytest.mark.parametrize("committed", [True, False])
async def test_an_outage_amid_a_refused_batch_loses_nothing(
    tmp_path: Path, error: Exception, *, committed: bool
) -> None:
    async with scene(tmp_path / "ledger.db") as stage:
        grants = [await stage.admit() for _ in range(8)]
        # Refused, its first half refused, the first quarter written; then the outage comes.
        script: list[Exception | None] = [Refused("no"), Refused("no"), None, error]

        def follow() -> Exception | None:
            return script.pop(0) if script else None

        def at_last(step: Callable[[], Exception | None]) -> Callable[[], Exception | None]:
            return lambda: step() if len(script) == 1 else None

        if committed and isinstance(error, CommitUnknown):
            stage.database.before = lambda: follow() if len(script) != 1 else None
            stage.database.after = at_last(follow)
        else:
            stage.database.before = follow
        await settle_at_once(stage, *((grant, OK) for grant in grants))
        assert script == []
        assert stage.alive()
        assert await stage.outcomes() == (0, {"ok": 8})
        assert await stage.count() == 8


async def test_a_dead_worker_s_row_that_is_refused_keeps_no_other_from_being_swept(tmp_path: Path) -> None:
    async with scene(tmp_path / "ledger.db") as stage:
        grants = [await stage.admit() for _ in range(5)]
        await a_double(stage, grants[1])
        ids = [grant.reservation.id for grant in grants]
        with capture_logs() as logs:
            swept = await sweep(stage.database.real, ids, grants[0].reservation.admitted_at)
        assert swept == 4
        assert [entry["request_id"] for entry in logs] == [ids[1]]
        assert await stage.outcomes() == (1, {"unknown": 4, "void": 1})


async def test_the_lag_is_the_age_of_the_oldest_settlement(tmp_path: Path) -> None:
    async with scene(tmp_path / "ledger.db") as stage:
        first, second = await stage.admit(), await stage.admit()
        assert stage.ledger.lag == 0
        stage.database.hang()
        settlement = Settlement.of(first, OK)
        minute_ago = settlement.row.settled_at - timedelta(minutes=1)
        stage.ledger._unsettled.append(replace(settlement, row=replace(settlement.row, settled_at=minute_ago)))
        stage.ledger.settle(second, OK)
        assert 60 <= stage.ledger.lag < 90
        await trio.sleep(0.01)  # they are in a transaction now, which hangs
        assert stage.ledger.unsettled == 2
        assert 60 <= stage.ledger.lag < 90
        stage.database.go_on()
        await stage.settled()
        assert stage.ledger.lag == 0
