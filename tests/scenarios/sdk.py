"""The providers' own SDKs, told nothing but a base URL and a token, with one vocabulary for both of them.

The tests are written once for a blocking and an asynchronous client: `result` and `items` take what either gives. That
a blocking one holds up trio harms nobody, because the proxy and the upstream are processes of their own.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import anthropic
import openai

from tests.harness.deployment import UPSTREAM_KEY, Deployment

Kind = Literal["sync", "async"]
KINDS: tuple[Kind, ...] = ("sync", "async")

GPT = "gpt-scripted"
CLAUDE = "claude-scripted-small"
ASK: Any = [{"role": "user", "content": "How do tokens expire?"}]
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}

#: The SDKs stop reading at the last event, and leave their own generators to the garbage collector.
LAX_GENERATORS = (
    "ignore:Async generator 'openai:ResourceWarning",
    "ignore:Async generator 'anthropic:ResourceWarning",
    "ignore:Async generator 'httpx2:ResourceWarning",
    "ignore:Async generator 'httpcore2:ResourceWarning",
)


async def result(value: Any) -> Any:
    """What a call of either client has given."""
    return await value if inspect.isawaitable(value) else value


async def items(values: Any) -> list[Any]:
    """Everything that a stream or a list of pages of either client holds."""
    values = await result(values)
    if hasattr(values, "__aiter__"):
        return [value async for value in values]
    return list(values)


@asynccontextmanager
async def entered(manager: Any) -> AsyncIterator[Any]:
    """Enter what either client gives for a `with`."""
    if hasattr(manager, "__aenter__"):
        async with manager as value:
            yield value
    else:
        with manager as value:
            yield value


@asynccontextmanager
async def gpt(kind: Kind, base_url: str, token: str, **options: Any) -> AsyncIterator[Any]:
    """OpenAI's client, closed at the end; it does not retry unless `options` say so."""
    make = openai.OpenAI if kind == "sync" else openai.AsyncOpenAI
    wanted: dict[str, Any] = {"base_url": f"{base_url}/v1", "api_key": token, "max_retries": 0, **options}
    async with entered(make(**wanted)) as client:
        yield client


@asynccontextmanager
async def claude(kind: Kind, base_url: str, token: str, **options: Any) -> AsyncIterator[Any]:
    """Anthropic's client with the same settings."""
    make = anthropic.Anthropic if kind == "sync" else anthropic.AsyncAnthropic
    wanted: dict[str, Any] = {"base_url": base_url, "api_key": token, "max_retries": 0, **options}
    async with entered(make(**wanted)) as client:
        yield client


@asynccontextmanager
async def pair(make: Any, kind: Kind, deployment: Deployment, token: str, prefix: str = "") -> AsyncIterator[Any]:
    """Two clients: one of the proxy with a token, one of the upstream itself with its key.

    The upstream always gives the same request the same answer, so the two must never differ.
    """
    async with (
        make(kind, deployment.server.url + prefix, token) as proxied,
        make(kind, deployment.upstream.url, UPSTREAM_KEY) as direct,
    ):
        yield proxied, direct
