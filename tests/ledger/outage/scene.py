"""A ledger with the outage mode, working on a database that becomes unavailable on request."""
# ruff: noqa: ASYNC110 (both are observed from outside, where there is no event to wait for)

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trio
from attrs import define

from db.dsn import Target
from db.errors import Unavailable
from db.queries import tokens
from db.records import Result
from db.spool import SpoolFile
from llm_proxy.errors import DatabaseUnavailable
from llm_proxy.ledger import AdmissionRequest, Grant, Settlement
from llm_proxy.ledger.outage.mode import OutageMode
from llm_proxy.ledger.outage.replay import decode, spool_path, write_spooled
from llm_proxy.ledger.outage.token_cache import OutageLimits
from tests.ledger.stage import Scene, scene

LIMITS = OutageLimits(window=300, requests=5, duration=600)
OK = Result(outcome="ok", status=200)


@define
class OutageScene:
    """`stage` has the ledger without the outage mode, and the database."""

    stage: Scene
    mode: OutageMode
    file: SpoolFile

    async def admit(self, request: AdmissionRequest | None = None) -> Grant:
        return await self.mode.admit(request or self.stage.apply())

    async def serve(self, times: int = 1) -> int:
        """Send requests one after the other; return how many were served."""
        served = 0
        for _ in range(times):
            try:
                self.mode.settle(await self.admit(), OK)
            except DatabaseUnavailable:
                continue
            served += 1
        return served

    def records(self) -> list[Settlement]:
        """The requests in the file of the spool."""
        found, damaged = decode(self.file.read()[0])
        assert not damaged
        return found

    async def everything(self) -> tuple[dict[str, int], int]:
        """Rows by outcome, none of them open, and the token's counter."""
        open_rows, outcomes = await self.stage.outcomes()
        assert open_rows == 0
        return outcomes, await self.stage.count()

    async def revoke(self) -> None:
        """Revoke the token in the database itself, where this worker does not see it."""
        now = datetime.now(UTC)
        await self.stage.database.real.write(tokens.change, self.stage.token, tokens.TokenValues(active=False), now)

    def admits_offline(self) -> bool:
        return self.mode.admits_offline

    def go_away(self) -> None:
        self.stage.database.before = lambda: Unavailable("away")

    async def hold_replay(self) -> None:
        """Bring the database back, and let the replay wait in it until the database's `let_go` is called."""
        database = self.stage.database
        database.hold(write_spooled)
        database.before = lambda: None
        with trio.fail_after(30):
            while database.running is not write_spooled:
                await trio.sleep(0.005)

    async def come_back(self) -> None:
        """Bring the database back, and wait until everything in the spool is in it."""
        self.stage.database.before = lambda: None
        with trio.fail_after(30):
            while self.mode._since is not None or self.mode.spooled or not self.stage.alive():
                await trio.sleep(0.005)
        await self.stage.settled()


@asynccontextmanager
async def outage_scene(
    folder: Path,
    limits: OutageLimits = LIMITS,
    *,
    target: Target | None = None,
    refresh: float = 3600,
    **fields: Any,
) -> AsyncIterator[OutageScene]:
    """A running outage mode that has seen one token once. At the end, the ledger is complete and the spool removed.

    Args:
        folder: for the database and the spool.
        limits: of the outage mode.
        target: the database; a new SQLite file by default.
        refresh: seconds between two reads of the cached tokens.
        fields: of the token.
    """
    async with scene(target or folder / "ledger.db", **fields) as stage:
        worker = stage.ledger._worker
        file = SpoolFile.open(spool_path(folder / "spools", worker.id))
        database: Any = stage.database
        mode = OutageMode(stage.ledger, database, worker, file, limits, refresh=refresh)
        async with trio.open_nursery() as nursery:
            await nursery.start(mode.run)
            scene_ = OutageScene(stage, mode, file)
            assert await scene_.serve() == 1
            await stage.settled()
            yield scene_
            with trio.fail_after(30):
                await mode.drain()
            nursery.cancel_scope.cancel()
        assert [path.name for path in file.path.parent.iterdir()] == []
