"""Clients that send requests and disconnect, while the database and the disk fail in every way in turn."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel
from attrs import define, evolve, field
from sqlalchemy import select

from db import Connection
from db.errors import CommitUnknown, Unavailable
from db.records import VOID
from db.schema import requests
from db.spool import SpoolFile
from llm_proxy.errors import ProxyError
from llm_proxy.ledger import writer
from tests.ledger.outage.scene import LIMITS, OK, OutageScene, outage_scene

CLIENTS = 12
FAULTS = 6


@define
class Storm:
    scene: OutageScene
    chance: random.Random
    sent: set[str] = field(factory=set)
    over: bool = False

    async def client(self) -> None:
        """Send requests, cancel some of them early, and remember which went upstream."""
        while not self.over:
            with trio.move_on_after(self.chance.choice([10, 10, 10, 0.001, 0.003, 0.01])):
                request = self.scene.stage.apply()
                try:
                    grant = await self.scene.admit(request)
                except ProxyError:
                    await trio.sleep(0.002)
                    continue
                result = VOID
                try:
                    await trio.lowlevel.checkpoint()
                    self.sent.add(request.id)
                    result = OK
                    await trio.sleep(self.chance.choice([0, 0.001, 0.05]))
                finally:
                    self.scene.mode.settle(grant, result)

    async def rage(self) -> None:
        """Cause one fault after the other, with pauses."""
        faults: list[Callable[[], Any]] = [
            lambda: self.failing(before=[Unavailable("away")]),
            lambda: self.failing(before=[CommitUnknown("lost")]),
            lambda: self.failing(after=[CommitUnknown("lost")]),
            lambda: self.failing(before=[None, None, Unavailable("away")], after=[None, None, CommitUnknown("lost")]),
            self.hanging,
            self.failing_disk,
        ]
        for fault in self.chance.sample(faults, FAULTS):
            with fault():
                await trio.sleep(self.chance.uniform(0.02, 0.3))
            await trio.sleep(self.chance.uniform(0, 0.2))
        self.over = True

    @contextmanager
    def failing(
        self, before: list[Exception | None] | None = None, after: list[Exception | None] | None = None
    ) -> Iterator[None]:
        database = self.scene.stage.database
        database.before = lambda: self.chance.choice(before or [None])
        database.after = lambda: self.chance.choice(after or [None])
        yield
        database.before = database.after = lambda: None

    @contextmanager
    def hanging(self) -> Iterator[None]:
        database = self.scene.stage.database
        database.hang()
        yield
        database.go_on()

    @contextmanager
    def failing_disk(self) -> Iterator[None]:
        append = SpoolFile.append

        def fail_now_and_then(file: SpoolFile, records: list[bytes], *, from_empty: bool = False) -> None:
            failures = [None, None, None, None, Unavailable("full"), CommitUnknown("failed"), CommitUnknown("failed")]
            failure = self.chance.choice(failures)
            if failure is None or self.chance.choice([isinstance(failure, CommitUnknown), False]):
                append(file, records, from_empty=from_empty)
            if failure is not None:
                raise failure

        with pytest.MonkeyPatch.context() as disk, self.failing(before=[Unavailable("away")]):
            disk.setattr(SpoolFile, "append", fail_now_and_then)
            yield


def served(connection: Connection) -> list[str]:
    return list(connection.scalars(select(requests.c.id).where(requests.c.outcome == "ok")))


@pytest.mark.parametrize("limit", [None, 500])
async def test_every_request_that_was_sent_is_in_the_ledger_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    monkeypatch.setattr(writer, "ADMISSION_DEADLINE", 0.1)
    limits = evolve(LIMITS, requests=1000)
    async with outage_scene(tmp_path, limits, refresh=0.02, max_requests=limit) as scene:
        storm = Storm(scene, random.Random(limit))
        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                nursery.start_soon(storm.client)
            nursery.start_soon(storm.rage)
        await scene.come_back()
        outcomes, count = await scene.everything()
        found = await scene.stage.database.real.read(served)
        assert len(found) == len(set(found)) == len(storm.sent) + 1, "one was there before"
        assert storm.sent < set(found)
        assert outcomes.keys() <= {"ok", "void"}
        assert count == outcomes["ok"]
        if limit is None:
            assert scene.mode.admissions > 0
        else:
            assert count <= limit, "one worker alone never exceeds a limit"
