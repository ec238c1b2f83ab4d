"""A ledger at work on a database that fails when it is told to."""
# ruff: noqa: ASYNC110 (the ledger is looked at from outside, where there is no event to wait for)

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trio
from attrs import define, field
from sqlalchemy import select

from db import dsn
from db.database import Database, open_database
from db.dsn import Target
from db.options import Options
from db.queries import ledger as queries
from db.queries import projects, tokens
from db.records import Token, Worker
from db.schema import in_flight, metadata, requests
from llm_proxy.identifiers import new_id, request_id
from llm_proxy.ledger import AdmissionRequest, Grant, Ledger
from tests.db.queries.factories import a_project, a_token, to_default


@define
class Faulty:
    """A database whose writes can be made to fail or to hang, before or after the commit."""

    real: Database
    before: Callable[[], Exception | None] = lambda: None
    after: Callable[[], Exception | None] = lambda: None
    writes: int = 0
    #: The function that was last begun, and one that waits for its own gate.
    running: Callable[..., Any] | None = None
    _held: Callable[..., Any] | None = None
    waits: trio.Event = field(factory=trio.Event)
    _release: trio.Event = field(factory=trio.Event)
    _gate: trio.Event | None = None

    def hang(self) -> None:
        """Block all writes from now on until `go_on`."""
        self._gate = trio.Event()

    def go_on(self) -> None:
        assert self._gate is not None
        self._gate.set()
        self._gate = None

    def hold(self, fn: Callable[..., Any]) -> None:
        """Let this function wait until `let_go`. `waits` is set when it does."""
        self._held = fn

    def let_go(self) -> None:
        self._release.set()

    async def read(self, fn: Callable[..., Any], *args: Any) -> Any:
        return await self.real.read(fn, *args)

    async def write_unless_locked(
        self, fn: Callable[..., Any], *args: Any, then: Callable[[Any], None] | None = None
    ) -> Any:
        result = await self.write(fn, *args)
        if then is not None:
            then(result)
        return result

    async def end_frozen(self) -> str | None:
        return await self.real.end_frozen()

    async def write(self, fn: Callable[..., Any], *args: Any) -> Any:
        self.writes += 1
        self.running = fn
        if fn is self._held:
            self.waits.set()
            await self._release.wait()
        if self._gate is not None:
            await self._gate.wait()
        if error := self.before():
            raise error
        result = await self.real.write_unless_locked(fn, *args)
        if error := self.after():
            raise error
        return result


@define
class Observed:
    transactions: list[tuple[int, int]] = field(factory=list)
    booked: int = 0

    def observe_transaction(self, seconds: float, admitted: int, settled: int) -> None:
        assert seconds >= 0
        self.transactions.append((admitted, settled))

    def late_usage(self, result: str, count: int = 1) -> None:
        assert result == "booked"
        self.booked += count


@define
class Scene:
    database: Faulty
    ledger: Ledger
    observed: Observed
    token: Token

    def apply(self) -> AdmissionRequest:
        return AdmissionRequest(request_id(), self.token.digest, to_default, "POST", "/v1/x", lambda _name: None)

    def alive(self) -> bool:
        return self.ledger.alive

    async def admit(self) -> Grant:
        return await self.ledger.admit(self.apply())

    async def settled(self) -> None:
        while self.ledger.busy or self.database.writes == 0:
            await trio.sleep(0.005)

    async def outcomes(self) -> tuple[int, dict[str, int]]:
        def read(connection: Any) -> tuple[int, dict[str, int]]:
            found = Counter(connection.scalars(select(requests.c.outcome)))
            return len(connection.execute(select(in_flight.c.id)).all()), dict(found)

        return await self.database.real.read(read)

    async def count(self) -> int:
        token = await self.database.real.read(tokens.get, self.token.id)
        assert token is not None
        return token.request_count


@asynccontextmanager
async def scene(where: Path | Target, **limits: Any) -> AsyncIterator[Scene]:
    """A ledger that runs, and must be balanced and have given everything back when the block ends.

    Args:
        where: the database; a path is a new SQLite file.
        limits: fields of the token.
    """
    target = dsn.parse("sqlite", None, str(where)) if isinstance(where, Path) else where
    async with open_database(target, Options()) as real:
        await real.write(metadata.create_all)
        project = a_project()
        token = a_token(project.id, **limits)
        await real.write(projects.create, project)
        await real.write(tokens.create, token)
        now = datetime.now(UTC)
        database, observed = Faulty(real), Observed()
        worker = Worker(new_id(), "here", 1, "0", now, now)
        stand_in: Any = database
        ledger = Ledger(stand_in, worker, observed, exclusive=target.driver == "sqlite")
        async with trio.open_nursery() as nursery:
            await nursery.start(ledger.run)
            # The heartbeat of the start, that of the first round, and its look for dead workers.
            while database.writes < 3:
                await trio.sleep(0.001)
            yield Scene(database, ledger, observed, token)
            with trio.fail_after(30):
                await ledger.drain()
            nursery.cancel_scope.cancel()
        assert await real.read(queries.verify) == []
        assert await real.read(queries.list_workers) == []
        assert real.connections.in_use == 0
