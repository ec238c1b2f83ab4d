"""The tour: what a team would do with the proxy, with a scripted provider."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import click
import httpx
import trio
from attrs import frozen

from db import Connection
from db.database import Database
from db.queries import ledger, tokens
from llm_proxy.cli.client import ManagementClient, path
from llm_proxy.cli.commands.demo import screen
from llm_proxy.cli.output import table
from llm_proxy.version import VERSION

#: The provider's key. It is valid for the scripted provider only.
API_KEY = "sk-scripted-provider-7f3a"
#: The management token of the demo, which listens on this machine and has no secrets.
MANAGEMENT_TOKEN = "management-token-of-the-demo"  # noqa: S105 (no secret)
MODEL = "gpt-5.4-mini"
_CHAT = "/v1/chat/completions"
_QUESTION = "Who keeps the key, and who keeps the ledger?"
_LIMIT = 2
#: Seconds in which the ledger must show the requests.
_SETTLE_TIMEOUT = 5.0

_TITLES = ("REQUEST", "OUTCOME", "STATUS", "MODEL", "STREAM", "IN", "OUT", "MS")


class TourFailed(Exception):
    """A step of the tour had an unexpected result."""


@frozen
class Stage:
    """The servers of the tour, and the database of the proxy."""

    proxy_url: str
    provider_url: str
    database: Database


async def tour(stage: Stage) -> str:
    """Do all steps, and return a token for the user. Raises `TourFailed`."""
    click.echo(click.style(f"LLM Proxy {VERSION}, an offline tour", bold=True))
    click.echo(click.style("No network, no API key, no setup.", dim=True))
    screen.step("A provider, and a proxy before it")
    screen.block(f"provider   {stage.provider_url}   answers from a script")
    screen.block(f"proxy      {stage.proxy_url}   keeps its ledger in SQLite")
    token, token_for_user = await trio.to_thread.run_sync(_create_tokens, stage)
    secret = token["token"]
    screen.block(f"API key    …{API_KEY[-4:]}, encrypted in the database, never shown")
    screen.block(f"token      {secret[:6]}…{secret[-4:]}, expires after {_LIMIT} requests or one hour")
    headers = {"Authorization": f"Bearer {secret}"}
    async with httpx.AsyncClient(base_url=stage.proxy_url, headers=headers, trust_env=False, timeout=30.0) as client:
        await _ask(client)
        await _ask_streaming(client)
        await _ask_beyond_the_limit(client)
    await _show_ledger(stage, token["id"])
    return token_for_user


def _create_tokens(stage: Stage) -> tuple[dict[str, Any], str]:
    screen.step("A project has the provider's key, and issues a token")
    with ManagementClient(stage.proxy_url, MANAGEMENT_TOKEN) as client:
        project = client.post(path("projects"), {"name": "demo", "api_key": API_KEY})
        common = {"project_id": project["id"], "duration_hours": 1}
        token = client.post(path("tokens"), {**common, "name": "tour", "max_requests": _LIMIT})
        return token, client.post(path("tokens"), {**common, "name": "user"})["token"]


async def _ask(client: httpx.AsyncClient) -> None:
    screen.step("A chat completion")
    started = time.perf_counter()
    response = await client.post(_CHAT, json=_question())
    took = time.perf_counter() - started
    _expect(response, 200)
    answer = response.json()
    screen.say(f"“{_QUESTION}”")
    screen.say(answer["choices"][0]["message"]["content"], fg="green")
    screen.say(f"{response.status_code} in {took * 1000:.0f} ms · {_tokens(answer['usage'])}", dim=True)


async def _ask_streaming(client: httpx.AsyncClient) -> None:
    screen.step("The same, streamed: every piece is forwarded as it arrives")
    body = {**_question(), "stream": True, "stream_options": {"include_usage": True}}
    started = time.perf_counter()
    stream = screen.Stream()
    usage: Mapping[str, int] = {}
    async with client.stream("POST", _CHAT, json=body) as response:
        _expect(response, 200)
        async for line in response.aiter_lines():
            data = line.removeprefix("data:").strip()
            if data in ("", "[DONE]"):
                continue
            event = json.loads(data)
            usage = event.get("usage") or usage
            text = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
            if text:
                stream.write(text)
    seconds = time.perf_counter() - started
    if not stream.pieces:
        raise TourFailed("the streamed answer was empty")
    screen.block("")
    screen.say(f"{response.status_code}, {stream.pieces} pieces in {seconds:.1f} s · {_tokens(usage)}", dim=True)


async def _ask_beyond_the_limit(client: httpx.AsyncClient) -> None:
    screen.step("A third request is refused: the token is used up")
    response = await client.post(_CHAT, json=_question())
    _expect(response, 429)
    error = response.json()["error"]
    screen.block(f"{response.status_code} {error['code']}")
    screen.say(error["message"])


async def _show_ledger(stage: Stage, token_id: str) -> None:
    screen.step("The ledger has a row for each admitted request")
    rows = await _settled(stage, token_id)
    screen.block(table(_TITLES, map(_row, reversed(rows)), numbers=("STATUS", "IN", "OUT", "MS")))
    screen.step("The ledger is correct")

    def verify(connection: Connection) -> tuple[int, bool]:
        token = tokens.get(connection, token_id)
        return (0 if token is None else token.request_count), not ledger.verify(connection)

    counter, correct = await stage.database.read(verify)
    if not correct or counter != len(rows):
        raise TourFailed(f"the ledger is wrong: counter {counter}, settled {len(rows)}")
    mark = click.style("✓", fg="green", bold=True)
    screen.block(f"{mark} counter {counter} = settled {len(rows)} + in flight 0, and the same by the hourly sums")


def _row(request: dict[str, Any]) -> tuple[object, ...]:
    return (
        f"…{request['id'][-8:]}",
        request["outcome"],
        request["status"],
        request["model"],
        "yes" if request["streamed"] else "no",
        request["input_tokens"],
        request["output_tokens"],
        None if request["duration_us"] is None else f"{request['duration_us'] / 1000:.1f}",
    )


async def _settled(stage: Stage, token_id: str) -> list[dict[str, Any]]:
    """Wait for the rows of the tour: a request is settled shortly after its response."""

    def read() -> list[dict[str, Any]]:
        with ManagementClient(stage.proxy_url, MANAGEMENT_TOKEN) as client:
            return list(client.list(path("requests"), token_id=token_id))

    with trio.move_on_after(_SETTLE_TIMEOUT):
        while len(rows := await trio.to_thread.run_sync(read)) < _LIMIT:  # noqa: ASYNC110 (polls as a client would)
            await trio.sleep(0.02)
        return rows
    raise TourFailed(f"the ledger does not show {_LIMIT} requests after {_SETTLE_TIMEOUT:.0f} s")


def _question() -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": _QUESTION}]}


def _tokens(usage: Mapping[str, int]) -> str:
    return f"{usage['prompt_tokens']} tokens in, {usage['completion_tokens']} out"


def _expect(response: httpx.Response, status: int) -> None:
    if response.status_code != status:
        raise TourFailed(f"the proxy answered with status {response.status_code} instead of {status}")
