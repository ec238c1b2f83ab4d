"""How long requests are admitted without the database, and that it has them afterwards. On SQLite only."""
# ruff: noqa: ASYNC110 (the ledger is observed from outside, where there is no event to wait for)

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
import trio.testing
from attrs import evolve

from db.errors import CommitUnknown, Unavailable
from db.queries import limits as limit_queries
from db.records import Result
from llm_proxy.errors import DatabaseUnavailable, RequestLimitExceeded, TokenInactive
from llm_proxy.ledger import writer
from llm_proxy.ledger.outage import mode
from llm_proxy.ledger.outage.replay import write_spooled
from tests.ledger.outage.scene import LIMITS, OK, outage_scene
from tests.ledger.outage.test_token_cache import a_limit


async def test_a_token_is_admitted_up_to_its_maximum_and_the_ledger_has_all_requests_afterwards(tmp_path: Path) -> None:
    async with outage_scene(tmp_path) as scene:
        scene.go_away()
        assert await scene.serve(8) == 5
        assert (scene.mode.spooled, scene.mode.admissions) == (5, 5)
        assert len(scene.records()) == 5
        await scene.come_back()
        assert await scene.everything() == ({"ok": 6}, 6)
        assert scene.records() == []
        assert await scene.serve() == 1


async def test_an_admission_is_on_the_disk_before_it_returns(tmp_path: Path) -> None:
    async with outage_scene(tmp_path) as scene:
        scene.go_away()
        grants = []
        for number in range(1, 4):
            grants.append(await scene.admit())
            assert len(scene.records()) == number
        for grant in grants:
            scene.mode.settle(grant, OK)
        await scene.come_back()
        assert await scene.everything() == ({"ok": 4}, 4)


async def test_a_request_during_the_last_replay_waits_for_the_ledger(tmp_path: Path) -> None:
    async with outage_scene(tmp_path) as scene:
        database = scene.stage.database
        scene.go_away()
        assert await scene.serve() == 1
        await scene.hold_replay()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.serve)
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert scene.mode.spooled == 1
            database.let_go()
        await scene.come_back()
        assert await scene.everything() == ({"ok": 3}, 3)
        assert scene.mode.admissions == 1


async def test_a_request_that_ends_during_the_replay_of_its_admission_is_settled(tmp_path: Path) -> None:
    async with outage_scene(tmp_path) as scene:
        scene.go_away()
        grant = await scene.admit()
        await scene.hold_replay()
        scene.mode.settle(grant, OK)
        scene.stage.database.let_go()
        await scene.come_back()
        assert await scene.everything() == ({"ok": 2}, 2)


async def test_a_late_decision_of_the_ledger_does_not_reset_the_maximum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "ADMISSION_DEADLINE", 0.2)
    async with outage_scene(tmp_path) as scene:
        database = scene.stage.database
        database.hang()
        assert await scene.serve(LIMITS.requests) == LIMITS.requests - 1, "the first one hangs in a transaction"
        assert await scene.serve() == 1
        database.go_on()
        await scene.hold_replay()
        assert await scene.serve() == 0, "the transaction was written after all, but knows nothing of these"
        database.let_go()
        await scene.come_back()
        assert await scene.everything() == ({"ok": 1 + LIMITS.requests, "void": 1}, 1 + LIMITS.requests)


async def test_simultaneous_requests_are_admitted_when_the_database_becomes_unavailable(tmp_path: Path) -> None:
    async with outage_scene(tmp_path, evolve(LIMITS, requests=100)) as scene:
        scene.go_away()
        async with trio.open_nursery() as nursery:

            async def one() -> None:
                assert await scene.serve() == 1

            for _ in range(100):
                nursery.start_soon(one)
        await scene.come_back()
        assert await scene.everything() == ({"ok": 101}, 101)


async def test_the_ledger_itself_refuses_requests_in_an_outage(tmp_path: Path) -> None:
    async with outage_scene(tmp_path) as scene:
        scene.go_away()
        with pytest.raises(DatabaseUnavailable):
            await scene.stage.admit()
        await scene.come_back()


async def test_the_limit_of_the_token_holds(tmp_path: Path) -> None:
    async with outage_scene(tmp_path, max_requests=4) as scene:
        scene.go_away()
        assert await scene.serve(8) == 3
        await scene.come_back()
        assert await scene.everything() == ({"ok": 4}, 4)
        with pytest.raises(RequestLimitExceeded):
            await scene.admit()


async def test_requests_that_were_not_sent_are_given_back_in_the_outage(tmp_path: Path) -> None:
    async with outage_scene(tmp_path, max_requests=4) as scene:
        scene.go_away()
        for _ in range(10):
            scene.mode.settle(await scene.admit(), Result(outcome="void"))
        assert await scene.serve(5) == 3
        await scene.come_back()
        assert await scene.everything() == ({"ok": 4, "void": 10}, 4)


async def test_a_request_that_outlasts_the_outage_is_settled_by_the_ledger(tmp_path: Path) -> None:
    async with outage_scene(tmp_path) as scene:
        before = await scene.admit()
        scene.go_away()
        grant = await scene.admit()
        scene.mode.settle(before, OK)
        assert scene.mode.spooled == 2
        with trio.fail_after(30):
            while not any(record.row.result == OK for record in scene.records()):
                await trio.sleep(0.005)
        await scene.come_back()
        assert await scene.stage.outcomes() == (1, {"ok": 2})
        scene.mode.settle(grant, OK)
        await scene.stage.settled()
        assert await scene.everything() == ({"ok": 3}, 3)


async def test_the_end_of_a_request_is_spooled_before_any_admission_in_the_outage(tmp_path: Path) -> None:
    async with outage_scene(tmp_path) as scene:
        running, drained = await scene.admit(), await scene.admit()
        scene.go_away()
        with pytest.raises(DatabaseUnavailable):
            await scene.stage.admit()
        scene.mode.settle(running, OK)
        assert (scene.mode.spooled, scene.stage.ledger.unsettled) == (1, 0)
        with trio.move_on_after(0.1) as drain:
            await scene.mode.drain()
        assert drain.cancelled_caught, "it waits for the database"
        with trio.fail_after(30):
            while [record.row.result for record in scene.records()] != [OK]:
                await trio.sleep(0.005)
        await scene.come_back()
        assert scene.mode.admissions == 0
        with trio.fail_after(30):
            while scene.records():
                await trio.sleep(0.005)
        scene.mode.settle(drained, OK)
        await scene.stage.settled()
        assert await scene.everything() == ({"ok": 3}, 3)


async def test_a_request_that_outlasts_the_outage_gives_back_what_it_holds(tmp_path: Path) -> None:
    async with outage_scene(tmp_path, refresh=0.01) as scene:
        database = scene.stage.database.real
        token = scene.stage.token
        limit = a_limit(scope="token", subject=token.id, metric="requests", amount=9, created_at=datetime.now(UTC))
        await database.write(limit_queries.create, limit)
        (cached,) = scene.mode._cache._tokens.values()
        with trio.fail_after(30):
            while not cached.token.limited:
                await trio.sleep(0.005)
        scene.go_away()
        grant = await scene.admit()
        await scene.come_back()
        key = limit_queries.counter_id(limit.id, None)
        assert (await database.read(limit_queries.read_counters, [key]))[key].reserved == 1
        scene.mode.settle(grant, OK)
        await scene.stage.settled()
        found = (await database.read(limit_queries.read_counters, [key]))[key]
        assert (found.used, found.reserved) == (1, 0)


async def test_a_token_that_was_revoked_before_the_outage_is_refused(tmp_path: Path) -> None:
    async with outage_scene(tmp_path, refresh=0.01) as scene:
        await scene.revoke()
        with trio.fail_after(30):
            # Nobody uses the token meanwhile: only its row shows that it was revoked.
            while len(scene.mode._cache):
                await trio.sleep(0.01)
        scene.go_away()
        assert await scene.serve() == 0
        await scene.come_back()
        with pytest.raises(TokenInactive):
            await scene.admit()


async def test_a_token_that_is_revoked_in_the_outage_is_admitted_until_its_window_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with outage_scene(tmp_path) as scene:
        scene.go_away()
        assert await scene.serve() == 1
        await scene.revoke()
        assert await scene.serve() == 1
        now = trio.current_time()
        with monkeypatch.context() as later:
            later.setattr(trio, "current_time", lambda: now + LIMITS.window)
            assert await scene.serve() == 0
        await scene.come_back()
        assert await scene.everything() == ({"ok": 3}, 3)
        with pytest.raises(TokenInactive):
            await scene.admit()


async def test_all_requests_are_refused_after_the_maximum_duration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with outage_scene(tmp_path, evolve(LIMITS, duration=100)) as scene:
        scene.go_away()
        assert await scene.serve() == 1
        assert scene.admits_offline()
        now = trio.current_time()
        with monkeypatch.context() as later:
            later.setattr(trio, "current_time", lambda: now + 100)
            assert await scene.serve() == 0
            assert (scene.admits_offline(), scene.mode.refuses_all) == (False, True)
        # It does not start again by itself.
        assert await scene.serve() == 0
        await scene.come_back()
        assert await scene.everything() == ({"ok": 2}, 2)
        scene.go_away()
        assert await scene.serve() == 1, "the next outage is another one"
        await scene.come_back()


async def test_requests_are_refused_when_the_spool_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mode, "MAX_SPOOLED", 2)
    async with outage_scene(tmp_path) as scene:
        scene.go_away()
        assert await scene.serve(5) == 2
        await scene.come_back()
        assert await scene.everything() == ({"ok": 3}, 3)


@pytest.mark.parametrize("committed", [True, False])
async def test_a_request_whose_commit_is_unknown_is_not_admitted_twice(tmp_path: Path, *, committed: bool) -> None:
    async with outage_scene(tmp_path) as scene:
        database = scene.stage.database

        def lose() -> Exception:
            scene.go_away()
            return CommitUnknown("lost")

        def lose_once() -> Exception:
            database.after = lambda: None
            return lose()

        if committed:
            database.after = lose_once
        else:
            database.before = lose
        assert await scene.serve() == 0, "the database may have it"
        assert scene.mode.spooled == 0
        assert await scene.serve() == 1, "the database cannot have this one"
        await scene.come_back()
        outcomes, count = await scene.everything()
        assert (outcomes, count) == ({"ok": 2} | ({"void": 1} if committed else {}), 2)


async def test_requests_in_a_hanging_transaction_are_refused_and_later_ones_admitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "ADMISSION_DEADLINE", 0.2)
    async with outage_scene(tmp_path) as scene:
        database = scene.stage.database
        database.hang()
        served: list[int] = []
        async with trio.open_nursery() as nursery:

            async def one() -> None:
                served.append(await scene.serve())

            nursery.start_soon(one)
            with trio.fail_after(30):
                while not scene.stage.ledger._under_way:
                    await trio.sleep(0.001)
            for _ in range(3):
                nursery.start_soon(one)
        assert Counter(served) == {0: 1, 1: 3}
        # Now that the outage mode has started, no request waits for the ledger.
        started = trio.current_time()
        assert await scene.serve() == 1
        assert trio.current_time() - started < writer.ADMISSION_DEADLINE
        database.go_on()
        await scene.come_back()
        assert await scene.everything() == ({"ok": 5, "void": 1}, 5)


@pytest.mark.parametrize("committed", [True, False])
async def test_an_outage_during_the_replay_loses_nothing(tmp_path: Path, *, committed: bool) -> None:
    async with outage_scene(tmp_path) as scene:
        scene.go_away()
        kept = await scene.admit()
        assert await scene.serve(2) == 2
        database, failures = scene.stage.database, [CommitUnknown("lost"), Unavailable("away")]

        def fail() -> Exception | None:
            return failures.pop() if failures and database.running is write_spooled else None

        database.before = lambda: None
        setattr(database, "after" if committed else "before", fail)
        await scene.come_back()
        assert await scene.stage.outcomes() == (1, {"ok": 3})
        scene.mode.settle(kept, OK)
        await scene.stage.settled()
        assert await scene.everything() == ({"ok": 4}, 4)
