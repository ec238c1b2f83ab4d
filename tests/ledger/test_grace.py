"""How long requests go on, and that the books know of them afterwards. SQLite stands for every database here."""
# ruff: noqa: ASYNC110 (the tests look at the ledger from outside, where there is no event to wait for)

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import trio
import trio.testing
from attrs import evolve

from db.errors import CommitUnknown, Unavailable
from db.records import Result
from llm_proxy.errors import DatabaseUnavailable, RequestLimitExceeded, TokenInactive
from llm_proxy.ledger import writer
from llm_proxy.ledger.outage import grace
from llm_proxy.ledger.outage.reconciliation import enter
from tests.ledger.graceful import OK, TERMS, grace_scene


async def test_requests_go_on_so_often_and_are_in_the_books_afterwards(tmp_path: Path) -> None:
    async with grace_scene(tmp_path) as scene:
        scene.go_away()
        assert await scene.serve(8) == 5
        assert (scene.grace.spooled, scene.grace.admissions) == (5, 5)
        assert len(scene.file.read()) == 5
        await scene.come_back()
        assert await scene.everything() == ({"ok": 6}, 6)
        assert scene.file.path.stat().st_size == 0
        assert await scene.serve() == 1


async def test_an_admission_is_on_the_disk_before_it_is_one(tmp_path: Path) -> None:
    async with grace_scene(tmp_path) as scene:
        scene.go_away()
        grants = []
        for number in range(1, 4):
            grants.append(await scene.admit())
            assert len(scene.file.read().reservations) == number
        for grant in grants:
            scene.grace.settle(grant, OK)
        await scene.come_back()
        assert await scene.everything() == ({"ok": 4}, 4)


async def test_who_comes_while_the_last_are_written_waits_for_the_ledger(tmp_path: Path) -> None:
    async with grace_scene(tmp_path) as scene:
        database = scene.stage.database
        scene.go_away()
        assert await scene.serve() == 1
        await scene.hold_reconciliation()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.serve)
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert scene.grace.spooled == 1
            database.let_go()
        await scene.come_back()
        assert await scene.everything() == ({"ok": 3}, 3)
        assert scene.grace.admissions == 1


async def test_one_that_ends_while_its_admission_is_written_is_settled(tmp_path: Path) -> None:
    async with grace_scene(tmp_path) as scene:
        scene.go_away()
        grant = await scene.admit()
        await scene.hold_reconciliation()
        scene.grace.settle(grant, OK)
        scene.stage.database.let_go()
        await scene.come_back()
        assert await scene.everything() == ({"ok": 2}, 2)


async def test_what_the_ledger_decides_late_does_not_begin_the_count_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "ADMISSION_DEADLINE", 0.2)
    async with grace_scene(tmp_path) as scene:
        database = scene.stage.database
        database.hang()
        assert await scene.serve(TERMS.requests) == TERMS.requests - 1, "the first one hangs in a transaction"
        assert await scene.serve() == 1
        database.go_on()
        await scene.hold_reconciliation()
        assert await scene.serve() == 0, "the transaction was written after all, but knows nothing of these"
        database.let_go()
        await scene.come_back()
        assert await scene.everything() == ({"ok": 1 + TERMS.requests, "void": 1}, 1 + TERMS.requests)


async def test_nobody_is_refused_at_the_moment_when_the_database_goes(tmp_path: Path) -> None:
    async with grace_scene(tmp_path, evolve(TERMS, requests=100)) as scene:
        scene.go_away()
        async with trio.open_nursery() as nursery:

            async def one() -> None:
                assert await scene.serve() == 1

            for _ in range(100):
                nursery.start_soon(one)
        await scene.come_back()
        assert await scene.everything() == ({"ok": 101}, 101)


async def test_without_grace_nobody_goes_on(tmp_path: Path) -> None:
    async with grace_scene(tmp_path) as scene:
        scene.go_away()
        with pytest.raises(DatabaseUnavailable):
            await scene.stage.admit()
        await scene.come_back()


async def test_the_limit_of_the_token_holds(tmp_path: Path) -> None:
    async with grace_scene(tmp_path, max_requests=4) as scene:
        scene.go_away()
        assert await scene.serve(8) == 3
        await scene.come_back()
        assert await scene.everything() == ({"ok": 4}, 4)
        with pytest.raises(RequestLimitExceeded):
            await scene.admit()


async def test_what_was_never_sent_is_given_back_in_the_outage_too(tmp_path: Path) -> None:
    async with grace_scene(tmp_path, max_requests=4) as scene:
        scene.go_away()
        for _ in range(10):
            scene.grace.settle(await scene.admit(), Result(outcome="void"))
        assert await scene.serve(5) == 3
        await scene.come_back()
        assert await scene.everything() == ({"ok": 4, "void": 10}, 4)


async def test_a_request_that_outlasts_the_outage_is_settled_by_the_ledger(tmp_path: Path) -> None:
    async with grace_scene(tmp_path) as scene:
        before = await scene.admit()
        scene.go_away()
        grant = await scene.admit()
        scene.grace.settle(before, OK)
        assert scene.grace.spooled == 2
        with trio.fail_after(30):
            while len(scene.file.read().settled) < 1:
                await trio.sleep(0.005)
        await scene.come_back()
        assert await scene.stage.outcomes() == (1, {"ok": 2})
        scene.grace.settle(grant, OK)
        await scene.stage.settled()
        assert await scene.everything() == ({"ok": 3}, 3)


async def test_a_token_that_was_revoked_before_the_outage_does_not_go_on(tmp_path: Path) -> None:
    async with grace_scene(tmp_path, review=0.01) as scene:
        await scene.revoke()
        with trio.fail_after(30):
            # Nobody uses the token meanwhile: it is the look at its row that tells.
            while len(scene.grace._circle):
                await trio.sleep(0.01)
        scene.go_away()
        assert await scene.serve() == 0
        await scene.come_back()
        with pytest.raises(TokenInactive):
            await scene.admit()


async def test_a_token_that_is_revoked_in_the_outage_goes_on_until_the_end_of_its_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with grace_scene(tmp_path) as scene:
        scene.go_away()
        assert await scene.serve() == 1
        await scene.revoke()
        assert await scene.serve() == 1
        now = trio.current_time()
        with monkeypatch.context() as later:
            later.setattr(trio, "current_time", lambda: now + TERMS.window)
            assert await scene.serve() == 0
        await scene.come_back()
        assert await scene.everything() == ({"ok": 3}, 3)
        with pytest.raises(TokenInactive):
            await scene.admit()


async def test_grace_ends_for_all_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with grace_scene(tmp_path, evolve(TERMS, duration=100)) as scene:
        scene.go_away()
        assert await scene.serve() == 1
        assert scene.carries()
        now = trio.current_time()
        with monkeypatch.context() as later:
            later.setattr(trio, "current_time", lambda: now + 100)
            assert await scene.serve() == 0
            assert (scene.carries(), scene.grace.refuses) == (False, True)
        # It does not begin again by itself.
        assert await scene.serve() == 0
        await scene.come_back()
        assert await scene.everything() == ({"ok": 2}, 2)
        scene.go_away()
        assert await scene.serve() == 1, "the next outage is another one"
        await scene.come_back()


async def test_the_spool_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grace, "MAX_SPOOLED", 2)
    async with grace_scene(tmp_path) as scene:
        scene.go_away()
        assert await scene.serve(5) == 2
        await scene.come_back()
        assert await scene.everything() == ({"ok": 3}, 3)


@pytest.mark.parametrize("committed", [True, False])
async def test_a_request_whose_commit_is_unknown_is_not_admitted_twice(tmp_path: Path, *, committed: bool) -> None:
    async with grace_scene(tmp_path) as scene:
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
        assert await scene.serve() == 0, "it may be in the books already"
        assert scene.grace.spooled == 0
        assert await scene.serve() == 1, "this one cannot be"
        await scene.come_back()
        outcomes, count = await scene.everything()
        assert (outcomes, count) == ({"ok": 2} | ({"void": 1} if committed else {}), 2)


async def test_who_was_in_a_transaction_that_hangs_is_refused_and_the_next_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "ADMISSION_DEADLINE", 0.2)
    async with grace_scene(tmp_path) as scene:
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
        # Now that grace has begun, nobody waits for the ledger.
        started = trio.current_time()
        assert await scene.serve() == 1
        assert trio.current_time() - started < writer.ADMISSION_DEADLINE
        database.go_on()
        await scene.come_back()
        assert await scene.everything() == ({"ok": 5, "void": 1}, 5)


@pytest.mark.parametrize("committed", [True, False])
async def test_an_outage_in_the_middle_of_reconciliation_loses_nothing(tmp_path: Path, *, committed: bool) -> None:
    async with grace_scene(tmp_path) as scene:
        scene.go_away()
        kept = await scene.admit()
        assert await scene.serve(2) == 2
        database, failures = scene.stage.database, [CommitUnknown("lost"), Unavailable("away")]

        def fail() -> Exception | None:
            return failures.pop() if failures and database.running is enter else None

        database.before = lambda: None
        setattr(database, "after" if committed else "before", fail)
        await scene.come_back()
        assert await scene.stage.outcomes() == (1, {"ok": 3})
        scene.grace.settle(kept, OK)
        await scene.stage.settled()
        assert await scene.everything() == ({"ok": 4}, 4)
