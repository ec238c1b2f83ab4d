"""Tokens are looked up together, in bounded number and time, and by what is remembered if the database is away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, field
from msgspec.structs import replace

from db.errors import Unavailable
from llm_proxy.errors import (
    CredentialMissing,
    DatabaseAway,
    DatabaseUnavailable,
    EndpointNotAllowed,
    Overloaded,
    ProxyError,
    TokenInvalid,
)
from llm_proxy.ledger import lookup
from llm_proxy.ledger.lookup import Lookups
from tests.ledger.outage.scene import outage_scene
from tests.ledger.stage import scene


@define
class Reads:
    """A database that answers when it is told to; `rounds` has the digests of each SELECT."""

    rounds: list[set[bytes]] = field(factory=list)
    answer: trio.Event = field(factory=trio.Event)
    error: Exception | None = None

    async def read(self, _fn: Callable[..., Any], digests: set[bytes]) -> dict[bytes, Any]:
        self.rounds.append(set(digests))
        await self.answer.wait()
        if self.error is not None:
            raise self.error
        return {digest: ("token", digest) for digest in digests if digest != b"unknown"}


async def find(lookups: Lookups, digest: bytes, found: dict[bytes, Any]) -> None:
    try:
        found[digest] = await lookups.find(digest)
    except ProxyError as error:
        found[digest] = type(error)


async def test_all_that_come_during_a_look_up_share_the_next_one(autojump_clock: trio.testing.MockClock) -> None:
    database: Any = Reads()
    lookups, found = Lookups(database, 1.5), dict[bytes, Any]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lookups.run)
        async with trio.open_nursery() as waiting:
            waiting.start_soon(find, lookups, b"first", found)
            await trio.testing.wait_all_tasks_blocked()
            for number in range(500):
                waiting.start_soon(find, lookups, b"%d" % (number % 100), found)
            waiting.start_soon(find, lookups, b"unknown", found)
            await trio.testing.wait_all_tasks_blocked()
            assert (lookups.waiting, len(database.rounds)) == (502, 1)
            database.answer.set()
        nursery.cancel_scope.cancel()
    assert list(map(len, database.rounds)) == [1, 101]
    assert found.pop(b"unknown") is None
    assert all(value == ("token", digest) for digest, value in found.items())
    assert lookups.waiting == 0


async def test_more_than_may_wait_are_turned_away_at_once(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "MAX_WAITING", 3)
    database: Any = Reads()
    lookups, found = Lookups(database, 1.5), dict[bytes, Any]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lookups.run)
        for number in range(3):
            nursery.start_soon(find, lookups, b"%d" % number, found)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Overloaded):
            await lookups.find(b"another")
        nursery.cancel_scope.cancel()
    assert lookups.waiting == 0


async def test_nobody_waits_longer_than_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    database: Any = Reads()
    lookups = Lookups(database, 1.5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lookups.run)
        began = trio.current_time()
        with pytest.raises(DatabaseUnavailable):
            await lookups.find(b"x")
        assert trio.current_time() - began == pytest.approx(1.5)
        nursery.cancel_scope.cancel()


async def test_a_database_that_is_away_is_told_from_an_unknown_token(autojump_clock: trio.testing.MockClock) -> None:
    database: Any = Reads(error=Unavailable("away"))
    database.answer.set()
    lookups, found = Lookups(database, 1.5), dict[bytes, Any]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lookups.run)
        await find(lookups, b"x", found)
        assert found == {b"x": DatabaseAway}
        database.error = None
        found = {}
        await find(lookups, b"x", found)
        assert found == {b"x": ("token", b"x")}
        nursery.cancel_scope.cancel()


async def test_a_check_judges_the_head_and_counts_nothing(tmp_path: Path) -> None:
    async with scene(tmp_path / "ledger.db", max_requests=1) as stage:
        application = stage.apply()
        for _ in range(3):
            checked = await stage.ledger.check(application)
            assert (checked.token.id, checked.provider) == (stage.token.id, "openai")
        assert await stage.count() == 0
        with pytest.raises(TokenInvalid):
            await stage.ledger.check(replace(application, digest=b"\0" * 32))
        with pytest.raises(CredentialMissing):
            await stage.ledger.check(replace(application, provider=lambda _: "anthropic"))
        with pytest.raises(EndpointNotAllowed):
            await stage.ledger.check(replace(application, refusal=lambda _: EndpointNotAllowed()))


async def test_in_an_outage_a_check_goes_by_what_is_remembered(tmp_path: Path) -> None:
    async with outage_scene(tmp_path) as stage:
        stage.go_away()
        assert await stage.serve() == 1
        application = stage.stage.apply()
        checked = await stage.mode.check(application)
        assert (checked.token.id, checked.provider) == (stage.stage.token.id, "openai")
        with pytest.raises(DatabaseUnavailable):
            await stage.mode.check(replace(application, digest=b"\0" * 32))
        await stage.come_back()
        assert (await stage.mode.check(application)).provider == "openai"
