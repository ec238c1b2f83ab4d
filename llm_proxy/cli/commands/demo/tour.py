"""The tour: what a team would do with the proxy, with a scripted provider. Prints numbered steps."""

from __future__ import annotations

import itertools
import json
import shutil
import textwrap
from typing import Any

import click
import httpx
import trio
from attrs import frozen

from db.database import Database
from db.queries import ledger
from llm_proxy import __version__
from llm_proxy.cli.commands.manage.limit import columns
from llm_proxy.cli.commands.manage.usage import report
from llm_proxy.cli.failures import CommandFailed
from llm_proxy.cli.output import printable, table

#: The provider's key. It is valid for the scripted provider only.
API_KEY = "sk-scripted-provider-7f3a"
#: The management token of the demo, which listens on this machine and has no secrets.
MANAGEMENT_TOKEN = "management-token-of-the-demo"  # noqa: S105 (no secret)
_MODEL = "gpt-5.4-mini"
_OTHER_MODEL = "gpt-5.4-nano"
_CHAT = "/v1/chat/completions"
_QUESTION = "Who keeps the key, and who keeps the ledger?"
_LIMIT = 2
#: In USD per month: two requests are less than it, three are more.
_BUDGET = "0.0003"
#: Seconds in which the ledger must show the requests.
_SETTLE_TIMEOUT = 5.0

_MAX_WIDTH = 80
_INDENT = "    "
_numbers = itertools.count(1)


@frozen
class Stage:
    """The servers of the tour, and the database of the proxy."""

    proxy_url: str
    provider_url: str
    database: Database


async def tour(stage: Stage) -> str:
    """Do all steps, and return a token for the user. Raises `CommandFailed`."""
    click.echo(click.style(f"LLM Proxy {__version__}, an offline tour", bold=True))
    click.echo(click.style("No network, no API key, no setup.", dim=True))
    _step("A provider, and a proxy before it")
    _block(f"provider   {stage.provider_url}   answers from a script")
    _block(f"proxy      {stage.proxy_url}   keeps its ledger in SQLite")
    async with httpx.AsyncClient(base_url=stage.proxy_url, trust_env=False, timeout=30.0) as client:
        _step("A project has the provider's key, and issues a token")
        project = await _manage(client, "POST", "projects", json={"name": "demo", "api_key": API_KEY})
        common = {"project_id": project["id"], "duration_hours": 1}
        token = await _manage(client, "POST", "tokens", json={**common, "name": "tour", "max_requests": _LIMIT})
        user = await _manage(client, "POST", "tokens", json={**common, "name": "user"})
        secret = token["token"]
        _block(f"API key    …{API_KEY[-4:]}, encrypted in the database, never shown")
        _block(f"token      {secret[:6]}…{secret[-4:]}, expires after {_LIMIT} requests or one hour")
        client.headers["Authorization"] = f"Bearer {secret}"
        await _ask(client)
        await _ask_streaming(client)
        await _ask_beyond_the_limit(client)
        await _show_ledger(client, stage.database, token["id"])
        await _show_usage(client)
        await _spend_a_budget(client, common)
    return str(user["token"])


def invite(stage: Stage, token: str) -> None:
    """Show how to use the proxy with this token."""
    _step("Now you")
    _say(f"The proxy serves at {stage.proxy_url}. Here is a token for you:")
    _block(
        f"\ncurl -N {stage.proxy_url}{_CHAT} \\\n"
        f"  -H 'Authorization: Bearer {token}' \\\n"
        "  -H 'Content-Type: application/json' \\\n"
        f'  -d \'{{"model": "{_MODEL}", "stream": true,\n'
        '       "messages": [{"role": "user", "content": "Hello"}]}\'\n',
        indent="  ",
    )
    _say("Manage its projects and tokens:")
    _block(
        "\nllm-proxy manage token list \\\n"
        f"  --manage-api-base-url {stage.proxy_url} --management-token {MANAGEMENT_TOKEN}\n",
        indent="  ",
    )
    _say("Ctrl-C ends the demo and removes its database.", dim=True)


async def _ask(client: httpx.AsyncClient) -> None:
    _step("A chat completion")
    response = await client.post(_CHAT, json=_question())
    _expect(response, 200)
    answer = response.json()
    _say(f"“{_QUESTION}”")
    _say(answer["choices"][0]["message"]["content"], fg="green")
    took = response.elapsed.total_seconds() * 1000
    _say(f"{response.status_code} in {took:.0f} ms · {_tokens(answer['usage'])}", dim=True)


async def _ask_streaming(client: httpx.AsyncClient) -> None:
    _step("Another model, streamed: every piece is forwarded as it arrives")
    body = {**_question(_OTHER_MODEL), "stream": True, "stream_options": {"include_usage": True}}
    stream = Stream()
    usage: dict[str, int] = {}
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
    if not stream.pieces:
        raise _failure("the streamed answer was empty")
    _block("")
    took = response.elapsed.total_seconds()
    _say(f"{response.status_code}, {stream.pieces} pieces in {took:.1f} s · {_tokens(usage)}", dim=True)


async def _ask_beyond_the_limit(client: httpx.AsyncClient) -> None:
    _step("A third request is refused: the token is used up")
    response = await client.post(_CHAT, json=_question())
    _expect(response, 429)
    error = response.json()["error"]
    _block(f"{response.status_code} {error['code']}")
    _say(error["message"])


async def _show_ledger(client: httpx.AsyncClient, database: Database, token_id: str) -> None:
    _step("The ledger has a row for each admitted request")
    requests: list[dict[str, Any]] = []
    with trio.move_on_after(_SETTLE_TIMEOUT):
        # A request is settled shortly after its response.
        while len(requests) < _LIMIT:
            await trio.sleep(0.02)
            requests = (await _manage(client, "GET", "requests", params={"token_id": token_id}))["data"]
    if len(requests) < _LIMIT:
        raise _failure(f"the ledger does not show {_LIMIT} requests after {_SETTLE_TIMEOUT:.0f} s")
    rows = [
        (
            f"…{request['id'][-8:]}",
            request["outcome"],
            request["status"],
            request["model"],
            "yes" if request["streamed"] else "no",
            request["input_tokens"],
            request["output_tokens"],
            None if request["duration_us"] is None else f"{request['duration_us'] / 1000:.1f}",
        )
        for request in reversed(requests)
    ]
    titles = ("REQUEST", "OUTCOME", "STATUS", "MODEL", "STREAM", "IN", "OUT", "MS")
    _block(table(titles, rows, numbers=("STATUS", "IN", "OUT", "MS")))
    _step("The ledger is correct")
    counter = (await _manage(client, "GET", f"tokens/{token_id}"))["request_count"]
    if counter != len(rows) or await database.read(ledger.verify):
        raise _failure(f"the ledger is wrong: counter {counter}, settled {len(rows)}")
    mark = click.style("✓", fg="green", bold=True)
    _block(f"{mark} counter {counter} = settled {len(rows)} + in flight 0, and the same by the hourly sums")


async def _show_usage(client: httpx.AsyncClient) -> None:
    names = ("project", "model")
    _step(f"Who spent what: llm-proxy manage usage --group-by {','.join(names)}")
    found = await _manage(client, "GET", "usage", params={"group_by": ",".join(names)})
    _block(report(found["data"], names, _width() - len(_INDENT)))


async def _spend_a_budget(client: httpx.AsyncClient, common: dict[str, Any]) -> None:
    _step(f"A token with a budget of ${_BUDGET} per month, until it is spent")
    token = await _manage(client, "POST", "tokens", json={**common, "name": "budget"})
    budget = {"token_id": token["id"], "metric": "cost", "window": "month", "amount": _BUDGET}
    limit = await _manage(client, "POST", "limits", json=budget)
    headers = {"Authorization": f"Bearer {token['token']}"}
    while (response := await client.post(_CHAT, json=_question(), headers=headers)).status_code == 200:
        limit = await _charged(client, limit)
        _block(f"{response.status_code}, and ${limit['used'].rstrip('0')} of ${_BUDGET} are used")
    _expect(response, 429)
    error = response.json()["error"]
    _block(f"{response.status_code} {error['code']}")
    _say(error["message"])
    _step("What is used of each limit: llm-proxy manage limit list")
    found = (await _manage(client, "GET", "limits"))["data"]
    titles, rows = columns(found, {token["id"]: f"token {token['name']}"})
    # The id does not fit beside the rest, and nothing is reserved.
    shown = [number for number, title in enumerate(titles) if title not in ("ID", "RESERVED")]
    chosen = [tuple(row[number] for number in shown) for row in rows]
    _block(table([titles[number] for number in shown], chosen, numbers=("USED", "AMOUNT")))


async def _charged(client: httpx.AsyncClient, limit: dict[str, Any]) -> dict[str, Any]:
    """The limit after the request is settled, which is shortly after its response."""
    with trio.move_on_after(_SETTLE_TIMEOUT):
        while True:
            found = await _manage(client, "GET", f"limits/{limit['id']}")
            if found["used"] != limit["used"]:
                return found
            await trio.sleep(0.02)
    raise _failure(f"the budget is not charged after {_SETTLE_TIMEOUT:.0f} s")


async def _manage(client: httpx.AsyncClient, method: str, path: str, **content: Any) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {MANAGEMENT_TOKEN}"}
    response = await client.request(method, f"/manage/{path}", headers=headers, **content)
    _expect(response, 201 if method == "POST" else 200)
    body: dict[str, Any] = response.json()
    return body


def _question(model: str = _MODEL) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": _QUESTION}]}


def _tokens(usage: dict[str, int]) -> str:
    return f"{usage['prompt_tokens']} tokens in, {usage['completion_tokens']} out"


def _expect(response: httpx.Response, status: int) -> None:
    if response.status_code != status:
        raise _failure(f"the proxy answered with status {response.status_code} instead of {status}")


def _failure(reason: str) -> CommandFailed:
    return CommandFailed(f"the tour failed: {reason}")


def _step(text: str) -> None:
    number = click.style(f"{next(_numbers):>2}", fg="cyan", bold=True)
    click.echo(f"\n{number}  {click.style(text, bold=True)}")


def _say(text: str, **style: Any) -> None:
    lines = textwrap.fill(printable(text), _width(), initial_indent=_INDENT, subsequent_indent=_INDENT)
    click.echo(click.style(lines, **style))


def _block(text: str, indent: str = _INDENT) -> None:
    click.echo(textwrap.indent(text, indent))


def _width() -> int:
    return min(shutil.get_terminal_size((_MAX_WIDTH, 24)).columns, _MAX_WIDTH)


class Stream:
    """Prints a streamed response piece by piece, and wraps it."""

    def __init__(self) -> None:
        self.pieces = 0
        self._width = _width()
        self._column = 0

    def write(self, piece: str) -> None:
        text = printable(piece)
        if self._column == 0 or self._column + len(text) > self._width:
            click.echo(("\n" if self._column else "") + _INDENT, nl=False)
            self._column = len(_INDENT)
            text = text.lstrip()
        click.echo(click.style(text, fg="green"), nl=False)
        self._column += len(text)
        self.pieces += 1
