"""The outage mode while another transaction holds rows of a token. On all servers."""
# ruff: noqa: ASYNC110 (the ledger is observed from outside, where there is no event to wait for)

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from db.dsn import Target
from db.records import VOID
from llm_proxy.errors import TokenLocked
from llm_proxy.ledger.outage.replay import write_spooled
from tests.databases.kinds import SERVERS, on
from tests.ledger.outage.scene import OK, outage_scene
from tests.ledger.test_limits import apply
from tests.ledger.test_locks import a_token_lock, counts, locking, more_tokens


@on(*SERVERS)
async def test_a_locked_token_delays_only_its_own_requests_after_an_outage(
    migrated_target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("postgresql", "mysql", "mysql.connection"):
        # The lock must last until the test is done with it.
        monkeypatch.setattr(f"db.dialects.{module}.FROZEN", 60.0)
    async with outage_scene(tmp_path, target=migrated_target) as scene:
        stage, mode = scene.stage, scene.mode
        (other,) = await more_tokens(stage, 1)
        mode.settle(await scene.admit(apply(other)), OK)
        void, lasting = await scene.admit(), await scene.admit()
        await stage.settled()
        async with locking(migrated_target, a_token_lock(stage.token)):
            mode.settle(void, VOID)
            with trio.fail_after(30):
                while not stage.ledger._aside.settlements:
                    await trio.sleep(0.01)
            scene.go_away()
            for request in (stage.apply(), apply(other), stage.apply(), apply(other)):
                mode.settle(await scene.admit(request), OK)
            running = await scene.admit()
            mode.settle(lasting, OK)
            assert mode.spooled == 6
            stage.database.before = lambda: None
            with trio.fail_after(30):
                while mode._since is not None:
                    await trio.sleep(0.01)
            assert stage.ledger.unsettled == 1
            mode.settle(await scene.admit(apply(other)), OK)
            mode.settle(running, OK)
            await mode._spool.flush()
            left = scene.records()
            assert {one.digest for one in left} == {stage.token.digest}, "the file has what the database does not have"
            assert {one.row.result for one in left} == {OK}
            assert len(left) == mode.spooled == 4
            stage.database.hold(write_spooled)
            with trio.fail_after(30):
                await stage.database.waits.wait()
        with pytest.raises(TokenLocked):
            # Its counter lacks the requests that are still in the spool.
            await scene.admit()
        stage.database.let_go()
        with trio.fail_after(30):
            while mode.spooled:
                await trio.sleep(0.01)
            await stage.settled()
        assert await counts(stage.database.real, [stage.token, other]) == [5, 4]
        assert await scene.everything() == ({"ok": 9, "void": 1}, 5)
        assert await scene.serve() == 1
