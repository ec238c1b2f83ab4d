"""No answer and no log line has an API key, and a token's secret is seen once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
from attrs import evolve

from llm_proxy.logging import log
from llm_proxy.secrets.encryption import KeyRing
from tests.api.conftest import MANAGEMENT_TOKEN, Api, make_api

API_KEY = "sk-canary-api-key-0123456789abcdef"
OTHER_KEY = "another_canary_0123456789_without_prefix"


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    """The process's log at its most talkative, as a server would write it."""
    handlers, level = logging.root.handlers, logging.root.level
    path = tmp_path / "proxy.log"
    with log.configure(level="debug", path=path, secrets=[MANAGEMENT_TOKEN]):
        yield path
    logging.captureWarnings(capture=False)
    logging.root.handlers, logging.root.level = handlers, level
    structlog.reset_defaults()


class Failing:
    """A database that fails with a message that has everything in it."""

    async def write(self, *args: object) -> None:
        raise RuntimeError(f"{args} {API_KEY} plain:{OTHER_KEY}")

    read = write


async def test_no_secret_is_in_a_response_or_in_the_log(api: Api, log_file: Path) -> None:
    replies = []
    secrets = [API_KEY, OTHER_KEY]

    async def call(method: str, path: str, body: object = None, **options: Any) -> Any:
        reply = await api(method, path, body, **options)
        replies.append(reply)
        return reply.json if reply.data else None

    project = await call("POST", "/manage/projects", {"name": "p", "api_key": API_KEY})
    other = await call("POST", "/manage/projects", {"name": "q", "api_key": OTHER_KEY})
    of_project = f"/manage/projects/{project['id']}"
    await call("PATCH", of_project, {"api_key": OTHER_KEY, "name": "r"})
    await call("GET", of_project)
    await call("GET", "/manage/projects")
    # Mistakes that carry a key.
    await call("POST", "/manage/projects", {"name": "p", "api_key": API_KEY})
    await call("POST", "/manage/projects", {"name": "r", "api_key": API_KEY + " ", API_KEY: 1, "key": API_KEY})
    await call("POST", "/manage/projects", {"name": {API_KEY: 1}, "api_key": [OTHER_KEY]})
    await call("POST", "/manage/projects", data=f'{{"api_key":"{API_KEY}"'.encode())
    await call("POST", f"/manage/projects?api_key={API_KEY}", {})
    await call("GET", f"/manage/projects?cursor={API_KEY}&{API_KEY}=1")
    await call("GET", f"/manage/projects/{API_KEY}")
    await call("GET", "/manage/projects", token=API_KEY)
    await call("DELETE", f"/nowhere/{API_KEY}")

    seen_once = []
    for _ in range(2):
        seen_once.append(await call("POST", "/manage/tokens", {"project_id": other["id"]}))
        replies.pop()
    token = f"/manage/tokens/{seen_once[0]['id']}"
    seen_once.append(await call("POST", f"{token}/rotate"))
    replies.pop()
    secrets += [shown["token"] for shown in seen_once]
    await call("GET", token)
    await call("GET", "/manage/tokens")
    await call("GET", f"/manage/tokens/{secrets[-1]}")
    await call("GET", f"/manage/tokens?project_id={secrets[-1]}")
    await call("PATCH", token, {"name": "x", secrets[-1]: 1})
    await call("PATCH", token, {"active": False})
    await call("POST", f"{token}/rotate")
    await call("POST", f"/manage/projects/{other['id']}/tokens/revoke")
    await call("GET", "/manage/requests")
    replies.append(await api("GET", "/metrics"))
    broken: Any = Failing()
    api = make_api(evolve(api.services, database=broken, keyring=KeyRing(allow_plaintext=True)))
    await call("POST", "/manage/projects", {"name": "z", "api_key": OTHER_KEY})
    await call("GET", f"/manage/requests?token_id={seen_once[0]['id']}")

    logged = await trio.Path(log_file).read_text()
    for event in ("project created", "project changed", "token created", "token rotated", "tokens revoked"):
        assert f'"event":"{event}"' in logged
    assert "RuntimeError" in logged
    assert "plain:[redacted]" in logged
    answered = "\n".join(f"{reply.headers} {reply.data.decode()}" for reply in replies)
    assert len(secrets) == 5
    for secret in (*secrets, MANAGEMENT_TOKEN):
        for part in (secret, secret[3:], secret[:20]):
            assert part not in answered, secret
            assert part not in logged, secret


async def test_log_lines_of_a_request_have_its_id(api: Api, log_file: Path) -> None:
    reply = await api("POST", "/manage/projects", {"name": "p", "api_key": API_KEY})
    identity = reply.headers["X-LLM-Proxy-Request-ID"]
    logged = await trio.Path(log_file).read_text()
    line = next(line for line in logged.splitlines() if "project created" in line)
    assert f'"request_id":"{identity}"' in line
    assert structlog.contextvars.get_contextvars() == {}


async def test_repr_of_the_services_has_no_secret(api: Api) -> None:
    assert MANAGEMENT_TOKEN not in repr(api.services)
    assert api.services.keyring.to_setting() not in repr(api.services)
