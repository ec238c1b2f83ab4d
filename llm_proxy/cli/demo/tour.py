"""The tour: what a team would do with the proxy, done against a scripted provider."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import trio
from attrs import frozen

from db import Connection
from db.queries import ledger as books
from db.queries import tokens as token_queries
from llm_proxy.cli.client import ManagementClient, path
from llm_proxy.cli.demo.screen import Screen
from llm_proxy.cli.demo.stage import API_KEY, MANAGEMENT_TOKEN, Stage
from llm_proxy.cli.output import Column, table
from llm_proxy.version import VERSION

_CHAT = "/v1/chat/completions"
MODEL = "gpt-5.4-mini"
_QUESTION = "Who keeps the key, and who keeps the books?"
_LIMIT = 2
#: Seconds within which the books must show what was done.
_SETTLED_WITHIN = 5.0

_LEDGER = [
    Column("REQUEST"),
    Column("OUTCOME"),
    Column("STATUS", number=True),
    Column("MODEL"),
    Column("STREAM"),
    Column("IN", number=True),
    Column("OUT", number=True),
    Column("MS", number=True),
]


class TourFailed(Exception):
    """Something in the tour did not go as it must."""


@frozen
class Keys:
    """The two tokens of the demo: one is used up by the tour, the other is for whoever watches it."""

    project_id: str
    tour_id: str
    tour: str
    visitor: str


async def tour(stage: Stage, screen: Screen) -> Keys:
    """Go through all steps; raises `TourFailed` where one does not go as it must."""
    screen.title(f"LLM Proxy {VERSION}, an offline tour", "No network, no API key, nothing to set up.")
    screen.step("A provider and a proxy in front of it")
    screen.block(f"provider   {stage.provider_url}   answers from a script")
    screen.block(f"proxy      {stage.proxy_url}   keeps its books in SQLite")
    keys = await _hand_out(stage, screen)
    async with httpx.AsyncClient(base_url=stage.proxy_url, trust_env=False, timeout=30.0) as client:
        await _ask(client, keys, screen)
        await _ask_streaming(client, keys, screen)
        await _ask_too_often(client, keys, screen)
    await _show_ledger(stage, keys, screen)
    return keys


async def _hand_out(stage: Stage, screen: Screen) -> Keys:
    screen.step("A project holds the provider's key, and hands out a token")
    with ManagementClient(stage.proxy_url, MANAGEMENT_TOKEN) as client:

        async def post(place: str, body: Mapping[str, object]) -> dict[str, Any]:
            answer: dict[str, Any] = await trio.to_thread.run_sync(client.post, place, body)
            return answer

        project = await post(path("projects"), {"name": "demo", "api_key": API_KEY})
        common = {"project_id": project["id"], "duration_hours": 1}
        token = await post(path("tokens"), {**common, "name": "tour", "max_requests": _LIMIT})
        visitor = await post(path("tokens"), {**common, "name": "visitor"})
    secret = token["token"]
    screen.block(f"API key    …{API_KEY[-4:]}, encrypted in the database, shown to nobody")
    screen.block(f"token      {secret[:6]}…{secret[-4:]}, expires after {_LIMIT} requests or one hour")
    return Keys(project["id"], token["id"], secret, visitor["token"])


async def _ask(client: httpx.AsyncClient, keys: Keys, screen: Screen) -> None:
    screen.step("A chat completion")
    started = time.perf_counter()
    response = await client.post(_CHAT, headers=_authorization(keys), json=_question())
    took = time.perf_counter() - started
    _expect(response, 200)
    answer = response.json()
    screen.say(f"“{_QUESTION}”")
    screen.answer(answer["choices"][0]["message"]["content"])
    screen.note(f"{response.status_code} in {took * 1000:.0f} ms · {_tokens(answer['usage'])}")


async def _ask_streaming(client: httpx.AsyncClient, keys: Keys, screen: Screen) -> None:
    screen.step("The same, streamed: every piece passes as it comes")
    body = {**_question(), "stream": True, "stream_options": {"include_usage": True}}
    started = time.perf_counter()
    pieces = 0
    usage: Mapping[str, int] = {}
    async with client.stream("POST", _CHAT, headers=_authorization(keys), json=body) as response:
        _expect(response, 200)
        async for event in _events(response):
            usage = event.get("usage") or usage
            text = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
            if text:
                pieces += 1
                screen.stream(text)
    ended = time.perf_counter()
    screen.end_stream()
    if not pieces:
        raise TourFailed("the streamed answer was empty")
    screen.note(f"{response.status_code}, {pieces} pieces in {ended - started:.1f} s · {_tokens(usage)}")


async def _ask_too_often(client: httpx.AsyncClient, keys: Keys, screen: Screen) -> None:
    screen.step("A third request is refused: the token is used up")
    response = await client.post(_CHAT, headers=_authorization(keys), json=_question())
    _expect(response, 429)
    error = response.json()["error"]
    screen.block(f"{response.status_code} {error['code']}")
    screen.say(error["message"])


async def _show_ledger(stage: Stage, keys: Keys, screen: Screen) -> None:
    screen.step("The ledger has a row for each admitted request")
    rows = await _settled(stage, keys)
    screen.block(
        table(
            _LEDGER,
            [
                (
                    f"…{row['id'][-8:]}",
                    row["outcome"],
                    row["status"],
                    row["model"],
                    "yes" if row["streamed"] else "no",
                    row["input_tokens"],
                    row["output_tokens"],
                    None if row["duration_us"] is None else f"{row['duration_us'] / 1000:.1f}",
                )
                for row in reversed(rows)
            ],
        )
    )
    screen.step("The books balance")
    used, differences = await stage.services.database.read(_balance, keys.tour_id)
    if differences or used != len(rows):
        screen.bad(f"counter {used}, settled {len(rows)}: the books do not balance")
        raise TourFailed("the books do not balance")
    screen.good(f"counter {used} = settled {len(rows)} + in flight 0, and the same by the hourly sums")


def _balance(connection: Connection, token_id: str) -> tuple[int | None, list[books.Imbalance]]:
    token = token_queries.get(connection, token_id)
    return (None if token is None else token.request_count), books.verify(connection)


async def _settled(stage: Stage, keys: Keys) -> list[dict[str, Any]]:
    """Read the tour's rows once they are there: a request is settled just after its answer has ended."""

    def read() -> list[dict[str, Any]]:
        with ManagementClient(stage.proxy_url, MANAGEMENT_TOKEN) as client:
            return list(client.list(path("requests"), token_id=keys.tour_id))

    with trio.move_on_after(_SETTLED_WITHIN):
        while len(rows := await trio.to_thread.run_sync(read)) < _LIMIT:  # noqa: ASYNC110 (asks as a client would)
            await trio.sleep(0.02)
        return rows
    raise TourFailed(f"the ledger does not show {_LIMIT} requests after {_SETTLED_WITHIN:.0f} s")


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """Read the JSON of a stream of server-sent events, to its end mark."""
    async for line in response.aiter_lines():
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        if line.startswith("data:"):
            yield json.loads(data)


def _question() -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": _QUESTION}]}


def _authorization(keys: Keys) -> dict[str, str]:
    return {"Authorization": f"Bearer {keys.tour}"}


def _tokens(usage: Mapping[str, int]) -> str:
    return f"{usage['prompt_tokens']} tokens in, {usage['completion_tokens']} out"


def _expect(response: httpx.Response, status: int) -> None:
    if response.status_code != status:
        raise TourFailed(f"the proxy answered with {response.status_code} where {status} was due")
