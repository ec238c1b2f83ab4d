"""What a request costs before it is admitted: round trips, slots, and the event loop's time."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, evolve, field
from sqlalchemy import update

from db.queries.ledger import look_up
from db.queries.requests import Filter, page
from db.schema import projects, tokens
from llm_proxy.gateway import exchange, relay
from llm_proxy.ledger.transaction import transact
from llm_proxy.tokens import new_secret
from tests.gateway.stage import Client, Scene, add_project, scene

#: The answers of the provider, and of the proxy.
OK, UNAUTHORIZED, BAD_REQUEST, UNAVAILABLE = 200, 401, 400, 503


def status(client: Client) -> int:
    return int(client.received[0]["status"])


def error(client: Client) -> str:
    return str(json.loads(client.received[-1]["body"])["error"]["code"])


async def ask(stage: Scene, *pieces: bytes, at_once: bool = True) -> Client:
    client = Client(list(pieces), at_once)
    with trio.fail_after(20):
        await stage.request(client, chunked=len(pieces) > 1, told=True)
    return client


@pytest.mark.parametrize(
    ("pieces", "at_once", "looked_up"),
    [([b"{}"], True, 0), ([b"{}"], False, 1), ([b"{", b"}"], True, 1)],
    ids=["complete", "behind-the-head", "in-pieces"],
)
async def test_only_a_body_that_is_not_complete_costs_a_look_up(
    tmp_path: Path, pieces: list[bytes], at_once: bool, looked_up: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path) as stage:
        await ask(stage, b"{}")
        await stage.assert_nothing_is_left()
        calls = count_calls(stage, monkeypatch)
        client = await ask(stage, *pieces, at_once=at_once)
        assert status(client) == OK
        assert calls == ["look_up"] * looked_up + ["transact"]
        await stage.assert_nothing_is_left()


async def test_request_whose_cost_cannot_be_computed_is_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "cost_of", lambda *_: 1 // 0)
    async with scene(tmp_path) as stage:
        assert status(await ask(stage, b"{}")) == OK
        await stage.assert_nothing_is_left()
        (row,), _ = await stage.database.read(page, 10, None, Filter())
    assert (row.result.outcome, row.result.status, row.result.unmetered) == ("ok", OK, True)


def count_calls(stage: Scene, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The functions that visit the database from now on, settlements, heartbeats and sweeps left out."""
    calls: list[str] = []
    attempt = stage.database._attempt

    def noting(side: Any, fn: Any, args: Any) -> Any:
        called = fn.func if isinstance(fn, partial) else fn
        if called is look_up or (called is transact and args[1]):
            calls.append(called.__name__)
        return attempt(side, fn, args)

    monkeypatch.setattr(stage.database, "_attempt", noting)
    return calls


async def test_an_unknown_token_is_refused_before_its_body_is_waited_for(tmp_path: Path) -> None:
    async with scene(tmp_path, judged=True) as stage:
        client = Client([b"{", b"}"], at_once=False)
        stranger = evolve(stage, secret=new_secret().encode())
        with trio.fail_after(5):
            await stranger.request(client, chunked=True, told=True)
        assert (status(client), error(client)) == (UNAUTHORIZED, "token_invalid")
        assert client.pieces == [b"{", b"}"], "nothing of the body was taken"


async def test_a_request_without_a_good_token_takes_no_slot(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        stage.relay.max_concurrent = 1
        stranger = evolve(stage, secret=new_secret().encode())
        async with trio.open_nursery() as nursery:
            for at_once in (True, False):
                for _ in range(20):
                    pieces = [b"{}"] if at_once else [b"{", b"}"]
                    nursery.start_soon(ask_as_stranger, stranger, Client(pieces, at_once))
            for _ in range(10):
                assert status(await ask(stage, b"{}")) == OK
        assert stage.relay.running == 0


async def ask_as_stranger(stranger: Scene, client: Client) -> None:
    await stranger.request(client, chunked=not client.at_once, told=True)
    assert status(client) == UNAUTHORIZED


async def test_requests_that_come_at_once_never_exceed_the_bound_and_the_rest_is_void(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        stage.relay.max_concurrent = 3
        clients: list[Client] = []
        most = Most(stage)
        trio.lowlevel.add_instrument(most)

        async def one(*, at_once: bool) -> None:
            clients.append(await ask(stage, b"{}", at_once=at_once))

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(partial(one, at_once=bool(number % 2)))
        trio.lowlevel.remove_instrument(most)
        assert most.seen == 3
        assert {status(client) for client in clients} == {OK, UNAVAILABLE}
        assert {error(client) for client in clients if status(client) != OK} == {"overloaded"}
        refused = sum(status(client) != OK for client in clients)
        assert f'llm_proxy_refusals_total{{code="overloaded"}} {refused}' in stage.relay.metrics.render()[0].decode()
        assert stage.provider.answered == sum(status(client) == OK for client in clients)
        assert stage.relay.running == 0


@define(eq=False)
class Most(trio.abc.Instrument):
    """The largest number of running requests that there is at any step."""

    stage: Scene
    seen: int = 0

    def after_task_step(self, _task: trio.lowlevel.Task) -> None:
        self.seen = max(self.seen, self.stage.relay.running)


@define(eq=False)
class LongestStep(trio.abc.Instrument):
    """The most CPU time that one step of the tasks of a request takes, in seconds. Made in the request's own task."""

    longest: float = 0.0
    _root: trio.lowlevel.Task = field(factory=trio.lowlevel.current_task)
    _began: float = field(factory=time.thread_time)

    def before_task_step(self, _task: trio.lowlevel.Task) -> None:
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        nursery = task.parent_nursery
        if task is self._root or (nursery is not None and nursery.parent_task is self._root):
            self.longest = max(self.longest, time.thread_time() - self._began)


JUDGED = {
    "short-lists": (b'{"model":"m","x":[' + b"[]," * 20_000_000 + b"[]]}", BAD_REQUEST),
    "deep": (b'{"model":"m","x":' + b"[" * 10_000_000, BAD_REQUEST),
    "text": (b'{"model":"m","x":"' + b"A" * 5_000_000 + b'"}', OK),
    "numbers": (b'{"model":"m","x":[' + b"1," * 2_000_000 + b"1]}", OK),
    "complete-at-once": (b'{"model":"m","x":[' + b"[]," * 21_000 + b"[]]}", OK),
}


@pytest.mark.parametrize("name", list(JUDGED))
async def test_judging_a_body_takes_no_step_of_more_than_50_ms(tmp_path: Path, name: str) -> None:
    body, expected = JUDGED[name]
    size = 65_536
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    async with scene(tmp_path, judged=True) as stage:
        stage.relay.max_request_size = 100 << 20
        await ask(stage, b'{"model":"m"}')
        watch = LongestStep()
        trio.lowlevel.add_instrument(watch)
        client = await ask(stage, *pieces, at_once=len(pieces) == 1)
        trio.lowlevel.remove_instrument(watch)
        assert status(client) == expected
        assert watch.longest < 0.05
        assert stage.relay.held.size == 0


@define
class Slow(Client):
    """A client during whose body, after the head was judged, something changes; its rest comes after the decision."""

    change: Callable[[], Awaitable[None]] | None = None
    decided: trio.Event = field(factory=trio.Event)

    async def receive(self) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        if self.change is not None:
            change, self.change = self.change, None
            await change()
        else:
            await self.decided.wait()
        return await super().receive()


async def share_account(stage: Scene) -> None:
    """Let a second project use the same account."""
    await add_project(stage.database, stage.relay.keyring, new_secret(), provider="plain")


async def allow_models(stage: Scene) -> None:
    await stage.database.write(_execute, update(tokens).values(models={"patterns": ["m"]}))


async def use_openai(stage: Scene) -> None:
    """Change the provider of the project to the one that has rules."""
    await stage.database.write(_execute, update(projects).values(provider="openai"))


def _execute(connection: Any, statement: Any) -> None:
    connection.execute(statement)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize(
    ("change", "wrong", "code"),
    [
        (share_account, b'{"model": "m", "file_id": "file-1"}', "object_not_found"),
        (allow_models, b'{"model": "n"}', "model_not_allowed"),
        (use_openai, b'{"model": "n"}', "parameter_not_allowed"),
    ],
)
async def test_a_change_while_the_body_arrives_is_judged_with_the_whole_body(
    tmp_path: Path,
    change: Callable[[Scene], Awaitable[None]],
    wrong: bytes,
    code: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    told: bool,
) -> None:
    right = b'{"model": "m"}'
    for number, (body, expected) in enumerate(((right, OK), (wrong, code))):
        folder = tmp_path / str(number)
        folder.mkdir()
        async with scene(folder, judged=True) as stage:
            # No rule of this provider reads the body, or waits for all of it.
            await stage.database.write(_execute, update(projects).values(provider="plain"))
            client = Slow([body[:3], body[3:9], body[9:]], at_once=False, change=partial(change, stage))
            admit = stage.ledger.admit

            async def decide(request: Any, client: Slow = client, admit: Any = admit) -> Any:
                try:
                    return await admit(request)
                finally:
                    client.decided.set()

            monkeypatch.setattr(stage.ledger, "admit", decide)
            with trio.fail_after(20):
                await stage.request(client, chunked=True, told=told)
            assert (status(client) if expected == OK else error(client)) == expected
            assert [right in seen for seen in stage.provider.seen] == [True] * (expected == OK)
            await stage.assert_nothing_is_left()


async def test_a_client_that_does_not_take_its_refusal_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "REFUSAL_PATIENCE", 0.05)

    class Deaf(Client):
        async def send(self, _message: object) -> None:
            await trio.sleep_forever()

    async with scene(tmp_path) as stage:
        stranger = evolve(stage, secret=new_secret().encode())
        with trio.fail_after(5):
            await stranger.request(Deaf([b"{}"]), chunked=False, told=True)
