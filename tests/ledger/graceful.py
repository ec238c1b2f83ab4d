"""A ledger with grace in front of it, at work on a database that goes away when it is told to."""
# ruff: noqa: ASYNC110 (both are looked at from outside, where there is no event to wait for)

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trio
from attrs import define

from db.errors import Unavailable
from db.queries import tokens
from db.records import Result
from llm_proxy.errors import DatabaseUnavailable
from llm_proxy.ledger import AdmissionRequest, Grace, Grant, SpoolFile, Terms
from llm_proxy.ledger.outage.reconciliation import enter
from tests.ledger.stage import Scene, scene

TERMS = Terms(window=300, requests=5, duration=600)
OK = Result(outcome="ok", status=200)


@define
class GraceScene:
    """`stage` has the ledger without grace, and the database."""

    stage: Scene
    grace: Grace
    file: SpoolFile

    async def admit(self, application: AdmissionRequest | None = None) -> Grant:
        return await self.grace.admit(application or self.stage.apply())

    async def serve(self, times: int = 1) -> int:
        """Let so many requests come one after the other; say how many were served."""
        served = 0
        for _ in range(times):
            try:
                self.grace.settle(await self.admit(), OK)
            except DatabaseUnavailable:
                continue
            served += 1
        return served

    async def everything(self) -> tuple[dict[str, int], int]:
        """Rows by outcome, none of them open, and the token's counter."""
        open_rows, outcomes = await self.stage.outcomes()
        assert open_rows == 0
        return outcomes, await self.stage.count()

    async def revoke(self) -> None:
        """Revoke the token where this worker does not see it: in the database itself."""
        now = datetime.now(UTC)
        await self.stage.database.real.write(tokens.change, self.stage.token, tokens.Changes(active=False), now)

    def carries(self) -> bool:
        return self.grace.carries

    def go_away(self) -> None:
        self.stage.database.before = lambda: Unavailable("away")

    async def hold_reconciliation(self) -> None:
        """The database is there again, and what was spooled is on its way until the database is told to `let_go`."""
        database = self.stage.database
        database.hold(enter)
        database.before = lambda: None
        with trio.fail_after(30):
            while database.running is not enter:
                await trio.sleep(0.005)

    async def come_back(self) -> None:
        """The database is there again, and all that was spooled is in it."""
        self.stage.database.before = lambda: None
        with trio.fail_after(30):
            while self.grace.spooled or self.grace.carries or not self.stage.alive():
                await trio.sleep(0.005)
        await self.stage.settled()


@asynccontextmanager
async def grace_scene(
    folder: Path, terms: Terms = TERMS, *, review: float = 3600, **limits: Any
) -> AsyncIterator[GraceScene]:
    """Grace that runs, on a token that was verified once; all is in the books and the spool is gone at the end."""
    async with scene(folder / "ledger.db", **limits) as stage:
        file = SpoolFile.create(folder / "spools", stage.ledger._worker.id)
        database: Any = stage.database
        grace = Grace(stage.ledger, database, stage.ledger._worker, file, terms, review=review)
        async with trio.open_nursery() as nursery:
            await nursery.start(grace.run)
            scene_ = GraceScene(stage, grace, file)
            assert await scene_.serve() == 1
            await stage.settled()
            yield scene_
            with trio.fail_after(30):
                await grace.drain()
            nursery.cancel_scope.cancel()
        assert list(file.path.parent.glob("*.spool")) == []
