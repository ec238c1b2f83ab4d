"""What is logged about an outage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio
from structlog.testing import capture_logs

from db.errors import DatabaseError, Unavailable
from db.records import Result
from llm_proxy.ledger.writer import OutageLog
from tests.ledger.stage import scene


async def test_each_reason_and_the_end_are_logged_once() -> None:
    outage = OutageLog()
    with capture_logs() as logs:
        outage.over()
        for words in ("lost", "lost", "refused", "lost"):
            outage.note(DatabaseError(words))
        outage.over()
        outage.over()
        outage.note(DatabaseError("lost"))
    assert [(line["event"], line.get("reason")) for line in logs] == [
        ("the database is away", "lost"),
        ("the database is away", "refused"),
        ("the database is back", None),
        ("the database is away", "lost"),
    ]


async def test_an_outage_is_logged_when_it_begins_and_when_a_transaction_succeeds(tmp_path: Path) -> None:
    failures: list[Any] = [Unavailable("full"), Unavailable("full"), Unavailable("busy")]
    async with scene(tmp_path / "ledger.db") as stage:
        grant = await stage.admit()
        with capture_logs() as logs:
            stage.database.before = lambda: failures.pop(0) if failures else None
            stage.ledger.settle(grant, Result(outcome="ok", status=200))
            with trio.fail_after(10):
                await stage.settled()
    assert [line.get("reason") for line in logs] == ["full", "busy", None]
    assert logs[-1]["seconds"] > 0
