"""A server with everything round it: a database, a scripted upstream, a project and its tokens."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from attrs import define, field

from benchmarks.processes import Upstream
from tests.harness import client
from tests.harness.server import Server

#: The only API key that the scripted upstream accepts; a client must never see it.
UPSTREAM_KEY = "sk-upstream-key-that-no-client-may-see"


def provider_settings(upstream: Upstream) -> dict[str, str]:
    """The settings that make a scripted upstream the server's OpenAI."""
    return {"OPENAI_API_URL": upstream.url}


@define(eq=False)
class Deployment:
    """A running server and what it serves.

    Attributes:
        server: the proxy.
        upstream: what it forwards to.
    """

    server: Server
    upstream: Upstream
    _numbers: Iterator[int] = field(factory=itertools.count, repr=False)
    _projects: dict[str, dict[str, Any]] = field(factory=dict, repr=False)

    def new_project(self, **fields: Any) -> dict[str, Any]:
        """Create a project whose key the upstream accepts; `fields` add to the request's JSON or replace it."""
        wanted = {"name": f"project {next(self._numbers)}", "api_key": UPSTREAM_KEY, **fields}
        created: dict[str, Any] = self.server.manage("POST", "/projects", wanted)
        return created

    def project(self, provider: str = "") -> dict[str, Any]:
        """The project for a provider, made once: no other project uses its account there, and uploads are streamed."""
        if provider not in self._projects:
            named = {"provider": provider} if provider else {}
            self._projects[provider] = self.new_project(stream_usage="off", **named)
        return self._projects[provider]

    def new_token(self, project_id: str | None = None, **fields: Any) -> dict[str, Any]:
        """Create a token, in a project of its own where none is named; the secret is under `token`."""
        project = self.new_project()["id"] if project_id is None else project_id
        created: dict[str, Any] = self.server.manage("POST", "/tokens", {"project_id": project, **fields})
        return created

    def new_secret(self, project_id: str | None = None, **fields: Any) -> str:
        """The secret of a new token."""
        return str(self.new_token(project_id, **fields)["token"])

    async def chat(self, secret: str, *headers: tuple[str, str], stream: bool = False) -> client.Response:
        """One chat completion through the proxy, on a connection of its own."""
        return await self.server.request(
            "POST", "/v1/chat/completions", chat_headers(secret, *headers), chat_body(stream=stream)
        )


def chat_headers(secret: str, *headers: tuple[str, str]) -> list[tuple[str, str]]:
    """The headers of a chat completion; further ones, such as `x-scripted-delay`, after them."""
    return [("Authorization", f"Bearer {secret}"), ("Content-Type", "application/json"), *headers]


def chat_body(*, stream: bool = False) -> bytes:
    """The body of a small chat completion."""
    flag = b', "stream": true, "stream_options": {"include_usage": true}' if stream else b""
    return b'{"model": "gpt-scripted", "messages": [{"role": "user", "content": "Hello"}]' + flag + b"}"
