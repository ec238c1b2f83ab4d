"""The scripted provider, and clients that reach it without a network."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anthropic
import httpx2
import openai
import pytest

from llm_proxy.scripted import ScriptedProvider
from tests.scripted.conversation import KEY


@pytest.fixture
def provider() -> ScriptedProvider:
    return ScriptedProvider(KEY, scriptable=True)


@pytest.fixture
async def client(provider: ScriptedProvider) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(provider)
    async with httpx2.AsyncClient(transport=transport, base_url="http://scripted") as client:
        yield client


@pytest.fixture
def gpt(client: httpx2.AsyncClient) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key=KEY, base_url="http://scripted/v1", http_client=client, max_retries=0)


@pytest.fixture
def claude(client: httpx2.AsyncClient) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(api_key=KEY, base_url="http://scripted", http_client=client, max_retries=0)
