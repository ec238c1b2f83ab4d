"""The scripted provider, and clients that reach it without a network."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anthropic
import httpx2
import openai
import pytest

from tests.scripted.conversation import KEY
from tests.scripted.message import Request
from tests.scripted.provider import ScriptedProvider


@pytest.fixture
def provider() -> ScriptedProvider:
    return ScriptedProvider(KEY)


@pytest.fixture
async def client(provider: ScriptedProvider) -> AsyncIterator[httpx2.AsyncClient]:
    def answer(request: httpx2.Request) -> httpx2.Response:
        headers = tuple((name.lower(), value) for name, value in request.headers.raw)
        path, _, query = request.url.raw_path.partition(b"?")
        reply = provider.respond(Request(request.method, path, query, headers, request.content))
        return httpx2.Response(reply.status, headers=list(reply.headers), content=b"".join(reply.chunks))

    transport = httpx2.MockTransport(answer)
    async with httpx2.AsyncClient(transport=transport, base_url="http://scripted") as client:
        yield client


@pytest.fixture
def gpt(client: httpx2.AsyncClient) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key=KEY, base_url="http://scripted/v1", http_client=client, max_retries=0)


@pytest.fixture
def claude(client: httpx2.AsyncClient) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(api_key=KEY, base_url="http://scripted", http_client=client, max_retries=0)
